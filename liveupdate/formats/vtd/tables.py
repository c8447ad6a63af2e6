# SPDX-License-Identifier: Apache-2.0
"""Decode the tables of one VT-d unit: root, context, PASID directory and PASID table.

Intel Virtualization Technology for Directed I/O, rev. 4.x: root entry 9.1, scalable-mode root
entry 9.2, context entry 9.3, scalable-mode context entry 9.4, PASID directory entry 9.5, PASID
table entry 9.6; how they are used: 3.4. Memory is read through a
:class:`~liveupdate.formats.iommu.ByteReader`; what the registers say is the caller's to pass in.
Fields that hardware checks and reserves are checked here too; a violation is a fault, as it would
be for the device.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats.iommu import (
    ADDRESS_MASK,
    Binding,
    ByteReader,
    FaultKind,
    IommuFormatError,
    MappingSet,
    Requester,
    TableFault,
    Translation,
)
from liveupdate.formats.iommu_walk import DecodedTables, Walk, WalkLimits, devices_of
from liveupdate.formats.vtd.paging import FIRST_STAGE, SECOND_STAGE, PageTableWalker, PagingFormat
from liveupdate.formats.vtd.regs import MODE_ABORT, MODE_RESERVED, RootPointer

PASIDS_PER_TABLE = 64
_PAIR = struct.Struct("<QQ")
_SM_CONTEXT = struct.Struct("<4Q")
_PASID_ENTRY = struct.Struct("<8Q")
_WORD = struct.Struct("<Q")
#: address widths (AW, 9.3 and 9.6) that exist: 39, 48 and 57 bits
_AW_LEVELS = {1: 3, 2: 4, 3: 5}
#: first-stage paging modes (FSPM, 9.6)
_FSPM_LEVELS = {0: 4, 1: 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A decoded context or PASID entry; ``error`` says which field has no meaning."""

    binding: Binding
    paging: PagingFormat | None = None
    error: tuple[FaultKind, str] | None = None


def _reserved(binding: Binding, detail: str) -> Attachment:
    return Attachment(binding=binding, error=(FaultKind.RESERVED, detail))


def decode_context(requester: Requester, low: int, high: int) -> Attachment:
    """Decode a present legacy context entry (9.3): two u64."""
    kind = low >> 2 & 3
    width = high & 7
    domain_id = high >> 8 & 0xFFFF
    binding = Binding(requester=requester, translation=Translation.UNKNOWN, domain_id=domain_id)
    if low & 0xFF0 or high >> 24 or high & 0x80:
        return _reserved(binding, f"context entry {high:#018x}:{low:#018x}")
    if kind == 2:
        return Attachment(binding=replace(binding, translation=Translation.PASS_THROUGH))
    if kind == 3:
        return _reserved(binding, f"translation type 3 in {low:#018x}")
    return _paged(
        binding, Translation.SECOND_STAGE, SECOND_STAGE, low & ADDRESS_MASK, _AW_LEVELS.get(width)
    )


def decode_pasid_entry(requester: Requester, words: tuple[int, ...]) -> Attachment:
    """Decode a present scalable-mode PASID table entry (9.6): eight u64.

    :raises IommuFormatError: if there are not eight words.
    """
    if len(words) != 8:
        raise IommuFormatError(f"{len(words)} words instead of 8", where="PASID entry")
    granular_type = words[0] >> 6 & 7
    second_top = words[0] & ADDRESS_MASK
    second_levels = _AW_LEVELS.get(words[0] >> 2 & 7)
    first_top = words[2] & ADDRESS_MASK
    binding = Binding(
        requester=requester, translation=Translation.UNKNOWN, domain_id=words[1] & 0xFFFF
    )
    if words[0] & 0xC00:
        return _reserved(binding, f"PASID entry word 0 {words[0]:#018x}")
    if granular_type == 1:
        levels = _FSPM_LEVELS.get(words[2] >> 2 & 3)
        return _paged(binding, Translation.FIRST_STAGE, FIRST_STAGE, first_top, levels)
    if granular_type == 2:
        return _paged(binding, Translation.SECOND_STAGE, SECOND_STAGE, second_top, second_levels)
    if granular_type == 3:
        nested = replace(binding, first_top=first_top)
        return _paged(nested, Translation.NESTED, SECOND_STAGE, second_top, second_levels)
    if granular_type == 4:
        return Attachment(binding=replace(binding, translation=Translation.PASS_THROUGH))
    return _reserved(binding, f"translation type {granular_type} in {words[0]:#018x}")


def _paged(
    binding: Binding,
    translation: Translation,
    paging: PagingFormat,
    top: int,
    levels: int | None,
) -> Attachment:
    if levels is None:
        error = (FaultKind.LEVELS, f"reserved address width of the {translation} at {top:#x}")
        return Attachment(binding=replace(binding, top=top), error=error)
    bound = replace(binding, translation=translation, top=top, levels=levels)
    return Attachment(binding=bound, paging=paging)


def decode_unit(
    reader: ByteReader,
    rtaddr: int,
    *,
    segment: int = 0,
    only: Iterable[Requester] | None = None,
    limits: WalkLimits | None = None,
    is_walking: bool = True,
) -> DecodedTables:
    """Decode every present requester of a unit, or those asked for.

    :param rtaddr: value of RTADDR_REG. Whether translation is on at all is in GSTS_REG.
    :param only: decode these requesters; PASIDs are ignored, all of a device's are decoded. One
        without a present entry gets a set that is BLOCKED.
    :param is_walking: follow page tables; without, the sets are their bindings and have no runs,
        which is cheap enough to do again and again.
    """
    walk = Walk(reader, limits or WalkLimits())
    decoder = _UnitDecoder(walk, RootPointer.decode(rtaddr), is_walking=is_walking)
    sets = tuple(decoder.decode(segment, None if only is None else devices_of(only)))
    return DecodedTables(sets=sets, faults=decoder.unit_faults(), pages=decoder.walk.pages())


def find_entry(reader: ByteReader, rtaddr: int, requester: Requester) -> int:
    """Find the physical address of a requester's context entry.

    :raises IommuFormatError: there is no table for it.
    :raises ValueError, LookupError, OSError or LiveUpdateError: as the reader.
    """
    root = RootPointer.decode(rtaddr)
    at, index, size = root.address + 16 * requester.bus, requester.devfn, _PAIR.size
    if root.is_scalable:
        # 9.2: the lower half of the devices through the low word, the upper through the high
        at, index, size = at + 8 * (index >> 7), index & 127, _SM_CONTEXT.size
    (pointer,) = _WORD.unpack(reader.read(at, _WORD.size))
    if not pointer & 1:
        raise IommuFormatError(f"no context table for {requester.bdf}", where=f"root entry {at:#x}")
    entry: int = (pointer & ADDRESS_MASK) + index * size
    return entry


class _UnitDecoder:
    def __init__(self, walk: Walk, root: RootPointer, *, is_walking: bool) -> None:
        self.walk = walk
        self._root = root
        self._is_walking = is_walking
        self._faults: list[TableFault] = []
        self._bad_roots: set[tuple[int, int]] = set()
        #: context tables already read: address -> bytes, None: unreadable
        self._contexts: dict[int, bytes | None] = {}

    def unit_faults(self) -> tuple[TableFault, ...]:
        return (*self._faults, *self.walk.take_faults())

    def decode(self, segment: int, wanted: list[Requester] | None) -> Iterator[MappingSet]:
        if self._root.mode == MODE_ABORT:
            for requester in wanted or ():
                yield _blocked(requester)
            return
        if self._root.mode == MODE_RESERVED:
            detail = "RTADDR_REG.TTM is the reserved mode 2"
            self.walk.fault(FaultKind.RESERVED, self._root.address, detail)
            return
        root = self.walk.read(self._root.address, PAGE_BYTES, "root table")
        if root is None:
            return
        is_scan = wanted is None
        if wanted is None:
            wanted = [
                Requester(segment=segment, bus=bus, devfn=devfn)
                for bus in range(256)
                if any(root[16 * bus : 16 * bus + 16])
                for devfn in range(256)
            ]
        for requester in wanted:
            if self.walk.is_exhausted:
                return
            yield from self._device(root, requester, is_scan=is_scan)

    def _device(self, root: bytes, requester: Requester, *, is_scan: bool) -> Iterator[MappingSet]:
        """Decode one device; in a scan one that is not present is left out, not BLOCKED."""
        absent = () if is_scan else (_blocked(requester),)
        entry = self._context_entry(root, requester, is_recorded=not is_scan)
        if isinstance(entry, tuple):
            address, data = entry
        else:
            # unreadable: what lies behind is unknown, which is not the same as blocked
            if entry:
                yield from absent
            self._faults.extend(self.walk.take_faults())
            return
        if not data[0] & 1:
            yield from absent
            return
        self.walk.record(address, data)
        if self._root.is_scalable:
            yield from self._pasids(requester, address, data)
        elif self.walk.charge_requester(address):
            low, high = _PAIR.unpack(data)
            yield self._mapping_set(decode_context(requester, low, high), address)

    def _context_entry(
        self, root: bytes, requester: Requester, *, is_recorded: bool
    ) -> tuple[int, bytes] | bool:
        """Give address and bytes of a context entry; True: none there; False: cannot be read."""
        at = 16 * requester.bus
        root_address = self._root.address + at
        entry = root[at : at + 16]
        low, high = _PAIR.unpack(entry)
        index, size = requester.devfn, _PAIR.size
        pointer = low
        if self._root.is_scalable:
            # 9.2: the lower half of the devices through the low word, the upper through the high
            pointer = low if index < 128 else high
            index, size = index & 127, _SM_CONTEXT.size
            reserved = pointer & 0xFFE
        else:
            reserved = low & 0xFFE or high
        if is_recorded or pointer & 1:
            self.walk.record(root_address, entry)
        if not pointer & 1:
            return True
        if reserved:
            # once per entry, not once per device behind it
            if (root_address, pointer) not in self._bad_roots:
                self._bad_roots.add((root_address, pointer))
                detail = f"root entry {high:#018x}:{low:#018x}"
                self.walk.fault(FaultKind.RESERVED, root_address, detail)
            return False
        table = pointer & ADDRESS_MASK
        if table not in self._contexts:
            self._contexts[table] = self.walk.read(table, PAGE_BYTES, "context table")
        page = self._contexts[table]
        if page is None:
            return False
        address = table + index * size
        data = page[index * size : (index + 1) * size]
        if is_recorded:
            self.walk.record(address, data)
        return address, data

    def _pasids(self, requester: Requester, address: int, data: bytes) -> Iterator[MappingSet]:
        """Decode all PASIDs of a scalable-mode context entry (9.4, 9.5)."""
        low, high, *rest = _SM_CONTEXT.unpack(data)
        if low & 0x1E0 or high >> 21 or any(rest):
            detail = f"scalable-mode context entry {high:#018x}:{low:#018x}"
            self.walk.fault(FaultKind.RESERVED, address, detail)
            self._faults.extend(self.walk.take_faults())
            return
        entries = 1 << (low >> 9 & 7) + 7
        directory = low & ADDRESS_MASK
        words = self.walk.read(directory, entries * _WORD.size, "PASID directory")
        for index, (word,) in enumerate(_WORD.iter_unpack(words or b"")):
            if not word & 1 or self.walk.is_exhausted:
                continue
            where = directory + index * _WORD.size
            self.walk.record(where, _WORD.pack(word))
            if word & 0xFFC:
                self.walk.fault(FaultKind.RESERVED, where, f"PASID directory entry {word:#018x}")
                continue
            table = word & ADDRESS_MASK
            page = self.walk.read(table, PAGE_BYTES, "PASID table")
            yield from self._pasid_table(requester, index * PASIDS_PER_TABLE, table, page or b"")
        self._faults.extend(self.walk.take_faults())

    def _pasid_table(
        self, requester: Requester, first: int, table: int, page: bytes
    ) -> Iterator[MappingSet]:
        for index, words in enumerate(_PASID_ENTRY.iter_unpack(page)):
            if not words[0] & 1:
                continue
            address = table + index * _PASID_ENTRY.size
            if not self.walk.charge_requester(address):
                return
            self.walk.record(address, _PASID_ENTRY.pack(*words))
            # what went wrong above belongs to the unit, not to this PASID
            self._faults.extend(self.walk.take_faults())
            attachment = decode_pasid_entry(replace(requester, pasid=first + index), words)
            yield self._mapping_set(attachment, address)

    def _mapping_set(self, attachment: Attachment, address: int) -> MappingSet:
        binding = attachment.binding
        if attachment.error:
            kind, detail = attachment.error
            self.walk.fault(kind, address, detail)
        if attachment.paging is None or not self._is_walking:
            return MappingSet(binding=binding, faults=self.walk.take_faults())
        top, levels, paging = binding.top, binding.levels, attachment.paging
        runs, faults = self.walk.share(
            (top, levels, paging.name), lambda: PageTableWalker(self.walk, paging).runs(top, levels)
        )
        return MappingSet(binding=binding, runs=runs, faults=faults)


def _blocked(requester: Requester) -> MappingSet:
    return MappingSet(
        binding=Binding(requester=requester, translation=Translation.BLOCKED, access=0)
    )
