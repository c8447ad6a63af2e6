# SPDX-License-Identifier: Apache-2.0
"""Have the tables changed since they were decoded? Cheap enough to ask 50 times a second.

A :class:`TableFingerprint` keeps the bytes a decode was made from and compares them with memory
as it is now. For 65,000 mappings that is half a MiB, so comparing costs no more than hashing and,
unlike a hash, says which entry changed from what to what. Accessed and dirty bits, which hardware
sets while DMA goes on, are not changes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from liveupdate.core.units import format_addr
from liveupdate.formats.iommu import UNREADABLE, ByteReader

_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePage:
    """A part of the tables as it was read, a multiple of 8 bytes.

    :ivar volatile: bits of each u64 that hardware may set by itself.
    :ivar is_paging: a page table, not an entry on the way to one.
    """

    phys: int
    data: bytes
    volatile: int = 0
    is_paging: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """Result of one comparison.

    :ivar changes: of each part that is not as it was: its first changed entry with both values
        (volatile bits as found), or why it could not be read.
    :ivar fingerprint: to be used for the next comparison; carries volatile bits as they are now, so
        that they are masked out only once. Changes stay changes until a new decode.
    """

    changes: tuple[str, ...]
    fingerprint: TableFingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFingerprint:
    """The bytes behind a decode."""

    pages: tuple[TablePage, ...]

    def recheck(self, reader: ByteReader) -> Recheck:
        """Compare with memory as it is now."""
        read = reader.read
        changes: list[str] = []
        moved: dict[int, TablePage] = {}
        for index, page in enumerate(self.pages):
            before = page.data
            try:
                now = read(page.phys, len(before))
            except UNREADABLE as error:
                changes.append(str(error))
                continue
            if now == before:
                continue
            if len(now) != len(before):
                changes.append(f"{len(now)} of {len(before)} bytes")
            elif page.volatile and _stable(now, page.volatile) == _stable(before, page.volatile):
                moved[index] = replace(page, data=bytes(now))
            else:
                changes.append(_first_change(page, now))
        if not moved:
            return Recheck(changes=tuple(changes), fingerprint=self)
        pages = tuple(moved.get(index, page) for index, page in enumerate(self.pages))
        return Recheck(changes=tuple(changes), fingerprint=TableFingerprint(pages=pages))


def _stable(data: bytes, volatile: int) -> int:
    """Give the page as one integer without its volatile bits; much faster than entry by entry."""
    value = int.from_bytes(data, "little")
    if not volatile:
        return value
    return value & ~int.from_bytes(_U64.pack(volatile) * (len(data) // 8), "little")


def _first_change(page: TablePage, now: bytes) -> str:
    pairs = zip(_U64.iter_unpack(page.data), _U64.iter_unpack(now), strict=True)
    return next(
        f"{format_addr(page.phys + 8 * index)}: {before:#018x} -> {after:#018x}"
        for index, ((before,), (after,)) in enumerate(pairs)
        if (before ^ after) & ~page.volatile
    )
