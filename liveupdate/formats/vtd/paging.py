# SPDX-License-Identifier: Apache-2.0
"""Walk VT-d page tables into runs.

Intel Virtualization Technology for Directed I/O, rev. 4.x: second stage 3.7 and 9.8 (SS-PML5E to
SS-PTE), first stage 3.6 and 9.7 (FS-PML5E to FS-PTE). Both have 512 entries of 8 bytes per 4 KiB
table; bit 7 (PS) at levels 2 and 3 makes an entry a 2 MiB or 1 GiB leaf; access is what every level
on the way allows. Entries with neither R nor W (second stage) or without P (first stage) are not
present, whatever else they hold.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from liveupdate.formats.iommu import (
    ADDRESS_MASK,
    READ,
    SUPERVISOR,
    WRITE,
    ByteReader,
    FaultKind,
    IommuFormatError,
    Run,
    RunBuilder,
)
from liveupdate.formats.iommu_walk import Walk

_WORD = struct.Struct("<Q")
PAGE_SIZE_BIT = 1 << 7
#: highest level at which PS makes a leaf (1 GiB)
_TOP_LEAF_LEVEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PagingFormat:
    """One of the two entry formats.

    :ivar access: access for each value of the low entry bits that all levels must grant; 0 where
        nothing can get through. Its length is a power of two.
    :ivar volatile: accessed and dirty bits.
    :ivar present: an entry with none of these bits is not present.
    :ivar large_reserved_from: lowest address bit that must be zero in a 2 MiB or 1 GiB leaf (12 is
        PAT in the first stage).
    :ivar is_signed: addresses are canonical: the upper half lies at the top of 64 bits (3.6).
    """

    name: str
    access: tuple[int, ...]
    volatile: int
    large_reserved_from: int
    is_signed: bool
    present: int
    levels: tuple[int, ...]


#: 9.8: R bit 0, W bit 1, A bit 8, D bit 9. X (bit 2) matters only to execute requests.
SECOND_STAGE = PagingFormat(
    name="second-stage",
    access=(0, READ, WRITE, READ | WRITE),
    volatile=1 << 8 | 1 << 9,
    large_reserved_from=12,
    is_signed=False,
    present=3,
    levels=(3, 4, 5),
)

#: 9.7: P bit 0, R/W bit 1, U/S bit 2, A bit 5, D bit 6; bit 10 is the extended accessed flag.
#: Present means readable.
FIRST_STAGE = PagingFormat(
    name="first-stage",
    access=(
        0, READ | SUPERVISOR, 0, READ | WRITE | SUPERVISOR, 0, READ, 0, READ | WRITE,
    ),
    volatile=1 << 5 | 1 << 6 | 1 << 10,
    large_reserved_from=13,
    is_signed=True,
    present=1,
    levels=(4, 5),
)  # fmt: skip


def find_leaf(reader: ByteReader, top: int, levels: int, iova: int) -> int:
    """Find the physical address of the entry that maps ``iova``, in either format.

    :raises IommuFormatError: nothing maps it.
    :raises ValueError, LookupError, OSError or LiveUpdateError: as the reader.
    """
    table = top
    for level in range(levels, 0, -1):
        address = table + 8 * (iova >> 3 + 9 * level & 511)
        (entry,) = _WORD.unpack(reader.read(address, _WORD.size))
        if not entry & SECOND_STAGE.present:
            break
        if level == 1 or entry & PAGE_SIZE_BIT:
            return address
        table = entry & ADDRESS_MASK
    raise IommuFormatError(f"nothing maps {iova:#x}", where=f"tables at {top:#x}")


class PageTableWalker:
    """One top table; :meth:`runs` walks it."""

    def __init__(self, walk: Walk, paging: PagingFormat) -> None:
        self._walk = walk
        self._paging = paging
        self._builder = RunBuilder()
        self._charged = 0

    def runs(self, top: int, levels: int) -> tuple[Run, ...]:
        """Walk ``levels`` levels from the table at ``top``; faults are noted in the walk."""
        paging = self._paging
        if levels not in paging.levels:
            detail = f"{levels}-level {paging.name} tables do not exist"
            self._walk.fault(FaultKind.LEVELS, top, detail, level=levels)
            return ()
        rights = len(paging.access) - 1
        sign_from = 1 << 11 + 9 * levels if paging.is_signed else 0
        self._table(top, levels, 0, rights, (), sign_from)
        return self._builder.finish()

    def _table(
        self, table: int, level: int, base: int, rights: int, above: tuple[int, ...], sign: int
    ) -> None:
        """Walk one table.

        :param base: IOVA of its first entry.
        :param rights: low entry bits which all levels above have set.
        :param above: tables on the way here.
        :param sign: IOVAs from here on belong to the upper half; 0: no such half in this table.
        """
        walk, paging = self._walk, self._paging
        entries = walk.read_entries(table, level, paging.volatile)
        if entries is None:
            return
        if level == 1:
            access = paging.access
            if rights != len(access) - 1:
                access = tuple(access[low & rights] for low in range(len(access)))
            self._builder.add_pages(entries, base, ADDRESS_MASK, access)
            self._charged = walk.charge_runs(self._builder, self._charged, table, level)
            return
        shift = 3 + 9 * level
        for index, entry in enumerate(entries):
            if not entry & paging.present:
                continue
            iova = base + (index << shift)
            if sign and iova >= sign:
                iova += (1 << 64) - (sign << 1)
            address = table + 8 * index
            if entry & PAGE_SIZE_BIT:
                self._large(entry, address, level, iova, rights & entry)
                continue
            child = entry & ADDRESS_MASK
            if not paging.access[rights & entry]:
                continue
            if child == table or child in above:
                detail = f"points back at the table {child:#x} above it"
                walk.fault(FaultKind.LOOP, address, detail, level=level)
            else:
                self._table(child, level - 1, iova, rights & entry, (*above, table), 0)
            if walk.is_exhausted:
                return

    def _large(self, entry: int, address: int, level: int, iova: int, rights: int) -> None:
        walk, paging = self._walk, self._paging
        size = 1 << 3 + 9 * level
        if level > _TOP_LEAF_LEVEL:
            detail = f"PS is reserved in {entry:#018x}: no {size:#x}-byte pages"
            walk.fault(FaultKind.RESERVED, address, detail, level=level)
            return
        if entry & ADDRESS_MASK & (size - (1 << paging.large_reserved_from)):
            detail = f"{entry:#018x} is not aligned to its {size:#x} bytes"
            walk.fault(FaultKind.RESERVED, address, detail, level=level)
            return
        access = paging.access[rights]
        if access:
            phys = entry & ADDRESS_MASK & -size
            self._builder.add(iova, phys, size, access, size)
            self._charged = walk.charge_runs(self._builder, self._charged, address, level)
