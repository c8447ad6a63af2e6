# SPDX-License-Identifier: Apache-2.0
"""Decode the tick page of the guest payload from a copy of its bytes.

Knows nothing of how the bytes were read. Layout: ``struct lu_tick`` in
guest-images/guest/payload_abi.h; all little-endian.

The guest writes while others read, so a copy can be torn: ``lock`` is odd while the guest writes,
and the checksum catches a copy made across a whole write. Either means *read again*; only when that
goes on is the page damaged, or the vCPU stopped in the middle of a write.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import astuple, dataclass

from liveupdate.formats.malformed import MalformedError
from liveupdate.model.evidence import Tick

MAGIC = b"LUTICK01"
VERSION = 1
#: bytes at the head of the page that matter
SIZE_BYTES = 128

#: struct format and the names of its fields, in order; compared with the C header by a test
LAYOUT = struct.Struct("<8sII13QII")
FIELDS = (
    "magic", "version", "size", "lock", "boot", "seq", "tsc", "monotonic_ns", "boottime_ns",
    "realtime_ns", "seed", "pattern_pages", "pattern_bad", "journal_seq", "echo_count",
    "reserved", "reserved2", "crc32",
)  # fmt: skip
_CRC_OFFSET = 124
_CRC = struct.Struct("<I")


class TickPageError(MalformedError):
    """The bytes are not a tick page."""


class TornTickError(TickPageError):
    """The copy was taken while the guest wrote, or the page is damaged: read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TickPage:
    """Everything the tick page says; see ``struct lu_tick`` for the meaning of each field."""

    lock: int
    boot: int
    seq: int
    tsc: int
    monotonic_ns: int
    boottime_ns: int
    realtime_ns: int
    seed: int
    pattern_pages: int
    pattern_bad: int
    journal_seq: int
    echo_count: int

    def to_tick(self, host_ns: int) -> Tick:
        """The reading as evidence.

        :param host_ns: CLOCK_MONOTONIC of the control host when the page was read.
        """
        same = {name: getattr(self, name) for name in Tick.__struct_fields__ if name != "host_ns"}
        return Tick(host_ns=host_ns, **same)


def decode_tick(data: bytes) -> TickPage:
    """Decode the head of a tick page; what follows the first 128 bytes is ignored.

    :raises TornTickError: odd lock or wrong checksum.
    :raises TickPageError: too short, or not a tick page of a known version.
    """
    if len(data) < SIZE_BYTES:
        raise TickPageError(f"{len(data)} bytes, expected {SIZE_BYTES}", where="length")
    data = bytes(data[:SIZE_BYTES])
    magic, version, size, lock, *values, _reserved, _reserved2, crc = LAYOUT.unpack(data)
    if magic != MAGIC:
        raise TickPageError(f"magic is {magic!r}, expected {MAGIC!r}", where="offset 0")
    if version != VERSION:
        raise TickPageError(f"version is {version}, known is {VERSION}", where="offset 8")
    if size != SIZE_BYTES:
        raise TickPageError(f"size is {size}, expected {SIZE_BYTES}", where="offset 12")
    if lock % 2:
        raise TornTickError(f"lock is odd ({lock}): a write was under way", where="offset 16")
    computed = zlib.crc32(data[:_CRC_OFFSET])
    if crc != computed:
        raise TornTickError(
            f"crc32 is 0x{crc:08x}, the bytes give 0x{computed:08x}", where=f"offset {_CRC_OFFSET}"
        )
    return TickPage(lock=lock, **dict(zip(FIELDS[4:15], values, strict=True)))


def read_tick(read: Callable[[], bytes], attempts: int = 8) -> TickPage:
    """Copy and decode until a copy is whole.

    :param read: makes a fresh copy of the page.
    :raises TornTickError: no copy out of ``attempts`` was whole.
    :raises TickPageError: there is no tick page there; not tried again.
    """
    for _ in range(attempts - 1):
        try:
            return decode_tick(read())
        except TornTickError:
            continue
    return decode_tick(read())


def encode_tick(page: TickPage) -> bytes:
    """The 128 bytes a guest would show; for fakes and tests.

    :raises ValueError: ``lock`` is odd.
    """
    if page.lock % 2:
        raise ValueError(f"lock {page.lock} is odd: the checksum covers an even one")
    body = LAYOUT.pack(MAGIC, VERSION, SIZE_BYTES, *astuple(page), 0, 0, 0)[:_CRC_OFFSET]
    return body + _CRC.pack(zlib.crc32(body))
