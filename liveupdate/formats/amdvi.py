# SPDX-License-Identifier: Apache-2.0
"""Decode AMD-Vi tables: device table entries and I/O page tables for host translations.

AMD I/O Virtualization Technology (IOMMU) Specification, 48882: device table and its entries 2.2.2,
I/O page tables for host translations with their page size encodings 2.2.3, registers 3.4. Guest
translations (GV set, GCR3 tables, 2.2.6) are named as unsupported, not decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats.iommu import (
    ADDRESS_MASK,
    READ,
    WRITE,
    Binding,
    ByteReader,
    FaultKind,
    IommuFormatError,
    MappingSet,
    Requester,
    Run,
    RunBuilder,
    TableFault,
    Translation,
)
from liveupdate.formats.iommu_walk import DecodedTables, Walk, WalkLimits, devices_of

DTE_BYTES = 32
_DTE = struct.Struct("<2Q")

#: PTE and PDE: A bit 5, D bit 6 are set by hardware
_VOLATILE = 1 << 5 | 1 << 6
#: IR and IW, of DTE, PDE and PTE alike, as READ and WRITE after this shift
_ACCESS_SHIFT = 61
#: next-level field of an entry: 0 a page of the level's own size, 7 a page of encoded size
_PAGE, _SIZED_PAGE = 0, 7
#: next level and PR together, and the values of it that mean a plain page or nothing
_KIND = 7 << 9 | 1
_PLAIN = frozenset((0, 1))
_MAX_MODE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTableBase:
    """Device Table Base Address Register (MMIO offset 0, 3.4.1)."""

    address: int
    size: int

    @classmethod
    def decode(cls, value: int) -> DeviceTableBase:
        """Split the register's value."""
        return cls(address=value & ADDRESS_MASK, size=((value & 0x1FF) + 1) * PAGE_BYTES)


def bind_device(requester: Requester, data: bytes) -> tuple[Binding, tuple[FaultKind, str] | None]:
    """Say what a device table entry (2.2.2.1) does to DMA and, if it cannot be decoded, why.

    Without V nothing is translated or checked; with V and without TV every request is aborted; mode
    0 passes addresses through within IR and IW.

    :raises IommuFormatError: for data of another length than an entry's.
    """
    if len(data) != DTE_BYTES:
        raise IommuFormatError(f"{len(data)} bytes of {DTE_BYTES}", where="device table entry")
    word0, word1 = _DTE.unpack_from(data)
    if not word0 & 1:
        return Binding(requester=requester, translation=Translation.PASS_THROUGH), None
    is_translating, mode = word0 & 2, word0 >> 9 & 7
    bound = Binding(
        requester=requester,
        translation=Translation.BLOCKED,
        domain_id=word1 & 0xFFFF,
        access=word0 >> _ACCESS_SHIFT & 3 if is_translating else 0,
    )
    if not is_translating:
        return bound, None
    if word0 >> 55 & 1:
        problem = (FaultKind.UNSUPPORTED, "guest translation (GV) is not decoded")
        return replace(bound, translation=Translation.UNKNOWN), problem
    if mode > _MAX_MODE:
        problem = (FaultKind.LEVELS, "mode 7 is reserved")
        return replace(bound, translation=Translation.UNKNOWN), problem
    if mode:
        top = word0 & ADDRESS_MASK
        return replace(bound, translation=Translation.HOST, top=top, levels=mode), None
    if bound.access:
        return replace(bound, translation=Translation.PASS_THROUGH), None
    return bound, None


def decode_device_table(
    reader: ByteReader,
    base: int,
    *,
    only: Iterable[Requester],
    limits: WalkLimits | None = None,
    is_walking: bool = True,
) -> DecodedTables:
    """Decode the entries of some devices of a table.

    :param base: value of the Device Table Base Address Register. Whether the IOMMU is enabled at
        all is in its control register.
    :param is_walking: follow the page tables, too; without, the sets have no runs.
    """
    table = DeviceTableBase.decode(base)
    walk = Walk(reader, limits or WalkLimits())
    entries = _look_up(walk, table, devices_of(only))
    decoder = _DeviceDecoder(walk, is_walking=is_walking)
    sets = tuple(decoder.decode(entries))
    faults = (*decoder.table_faults, *walk.take_faults())
    return DecodedTables(sets=sets, faults=faults, pages=walk.pages())


def _look_up(
    walk: Walk, table: DeviceTableBase, wanted: Iterable[Requester]
) -> Iterator[tuple[Requester, int, bytes]]:
    for requester in wanted:
        offset = requester.source_id * DTE_BYTES
        address = table.address + offset
        if offset >= table.size:
            detail = f"{requester} lies beyond the device table's {table.size:#x} bytes"
            walk.fault(FaultKind.INCONSISTENT, address, detail)
            continue
        data = walk.read(address, DTE_BYTES, "device table entry")
        if data is not None:
            yield requester, address, data


class _DeviceDecoder:
    def __init__(self, walk: Walk, *, is_walking: bool) -> None:
        self._walk = walk
        self._is_walking = is_walking
        self.table_faults: list[TableFault] = []

    def decode(self, entries: Iterable[tuple[Requester, int, bytes]]) -> Iterator[MappingSet]:
        for requester, address, data in entries:
            self.table_faults.extend(self._walk.take_faults())
            if not self._walk.charge_requester(address):
                return
            self._walk.record(address, data)
            binding, problem = bind_device(requester, data)
            if problem:
                self._walk.fault(problem[0], address, problem[1])
            if binding.translation is not Translation.HOST or not self._is_walking:
                yield MappingSet(binding=binding, faults=self._walk.take_faults())
                continue
            key = (binding.top, binding.levels, binding.access)
            walker = HostTableWalker(self._walk)
            runs, faults = self._walk.share(key, partial(walker.runs, *key))
            yield MappingSet(binding=binding, runs=runs, faults=faults)


class HostTableWalker:
    """I/O page tables for host translations (2.2.3) from one top table."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._builder = RunBuilder()
        self._charged = 0

    def runs(self, top: int, levels: int, access: int) -> tuple[Run, ...]:
        """Walk ``levels`` (1 to 6) levels from the table at ``top``.

        :param access: what the device table entry grants.
        """
        if not 1 <= levels <= _MAX_MODE:
            detail = f"{levels}-level tables do not exist"
            self._walk.fault(FaultKind.LEVELS, top, detail, level=levels)
            return ()
        if access:
            self._table(top, levels, 0, access, ())
        runs = self._builder.finish()
        for run in runs:
            # hardware may cache the whole page from any one of its entries
            if (run.iova | run.size) & (run.page - 1):
                detail = f"part of a {run.page:#x}-byte page: {run}"
                self._walk.fault(FaultKind.INCONSISTENT, top, detail)
        return runs

    def _table(
        self, table: int, level: int, base: int, access: int, above: tuple[int, ...]
    ) -> None:
        walk = self._walk
        entries = walk.read_entries(table, level, _VOLATILE)
        if entries is None:
            return
        if level == 1 and {entry & _KIND for entry in entries} <= _PLAIN:
            # nothing but 4 KiB pages: the fast way, with access moved to the low bits
            plain = [
                entry & ADDRESS_MASK | entry >> _ACCESS_SHIFT & -(entry & 1) & access
                for entry in entries
            ]
            self._builder.add_pages(plain, base, ADDRESS_MASK, (0, READ, WRITE, READ | WRITE))
            self._charged = walk.charge_runs(self._builder, self._charged, table, level)
            return
        shift = 3 + 9 * level
        for index, entry in enumerate(entries):
            if not entry & 1:
                continue
            address = table + 8 * index
            iova = base + (index << shift)
            next_level = entry >> 9 & 7
            granted = access & entry >> _ACCESS_SHIFT
            if iova >> 64:
                # level 6 has address bits 63:57 only: 128 entries
                walk.fault(FaultKind.RESERVED, address, "entry beyond 64 bits", level=level)
            elif next_level in (_PAGE, _SIZED_PAGE):
                self._page(entry, address, level, iova, granted)
            elif next_level >= level:
                detail = f"next level {next_level} in {entry:#018x}"
                walk.fault(FaultKind.LEVELS, address, detail, level=level)
            elif (child := entry & ADDRESS_MASK) == table or child in above:
                detail = f"points back at the table {child:#x} above it"
                walk.fault(FaultKind.LOOP, address, detail, level=level)
            elif granted:
                # skipped levels (2.2.3): their address bits must be zero, so only the first part
                # of what this entry covers is mapped
                self._table(child, next_level, iova, granted, (*above, table))
            if walk.is_exhausted:
                return
        self._charged = walk.charge_runs(self._builder, self._charged, table, level)

    def _page(self, entry: int, address: int, level: int, iova: int, access: int) -> None:
        """Append what one entry of a page maps.

        Encoded sizes: the page number ends in n one bits below a zero, the page has 2^(13+n) bytes,
        and the entry stands in every slot the page covers.
        """
        slot = 1 << 3 + 9 * level
        page = slot
        target = entry & ADDRESS_MASK
        if entry >> 9 & 7 == _SIZED_PAGE:
            number = target >> 12
            page = (~number & number + 1) << 13
            if not slot <= page < slot << 9:
                detail = f"a {page:#x}-byte page has no place at this level, {entry:#018x}"
                self._walk.fault(FaultKind.RESERVED, address, detail, level=level)
                return
            target &= -page
        if level == _MAX_MODE or target & (page - 1):
            detail = f"a {page:#x}-byte page in {entry:#018x}"
            self._walk.fault(FaultKind.RESERVED, address, detail, level=level)
            return
        if access:
            self._builder.add(iova, target | iova & (page - 1), slot, access, page)
