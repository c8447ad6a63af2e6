# SPDX-License-Identifier: Apache-2.0
"""Parse what the kernel says of its VT-d tables: the inside view.

``/sys/kernel/debug/iommu/intel/dmar_translation_struct`` lists context (and PASID) entries,
``…/intel/<BDF>[/<PASID>]/domain_translation_struct`` every leaf with the entries above it. Format:
Linux ``drivers/iommu/intel/debugfs.c`` (7.3). Results are the same mapping sets that
:mod:`liveupdate.formats.vtd.tables` makes from memory.

Two habits of the kernel matter: IOVAs in the upper half of a first stage are printed without their
sign, and a file is empty for a requester that is not attached to page tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from liveupdate.formats.iommu import (
    ADDRESS_MASK,
    Binding,
    IommuFormatError,
    MappingSet,
    Requester,
    RunBuilder,
    TableFault,
    Translation,
    parse_bdf,
)
from liveupdate.formats.vtd.paging import FIRST_STAGE, PAGE_SIZE_BIT, SECOND_STAGE, PagingFormat
from liveupdate.formats.vtd.tables import decode_context, decode_pasid_entry

_UNIT = re.compile(r"IOMMU (\S+): Root Table Address: 0x([0-9a-f]+)")
_DISABLED = re.compile(r"DMA Remapping is not enabled on (\S+)")
_ENTRY = re.compile(
    r"([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])\t0x([0-9a-f]{16}):0x([0-9a-f]{16})"
    r"\t0x([0-9a-f]{16}):0x([0-9a-f]{16})\t(-?\d+) *"
    r"\t0x([0-9a-f]{16}):0x([0-9a-f]{16}):0x([0-9a-f]{16})"
)
_DEVICE = re.compile(
    r"Device ([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) (?:with pasid ([0-9a-f]+) )?"
    r"@0x([0-9a-f]+)"
)
_COLUMNS = "IOVA_PFN"
#: columns after the IOVA: PML5E PML4E PDPE, then PDE and PTE if there are any
_MIN_ENTRIES, _MAX_ENTRIES = 3, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitBindings:
    """One unit of ``dmar_translation_struct``; ``root`` None: translation is off."""

    name: str
    root: int | None
    bindings: tuple[Binding, ...]
    faults: tuple[TableFault, ...] = ()


def parse_dmar_translation(text: str, *, segment: int = 0) -> tuple[UnitBindings, ...]:
    """Parse ``dmar_translation_struct``.

    :param segment: PCI segment of the units; the file does not say.
    :raises IommuFormatError: naming the line, for one that is cut off or of another form.
    """
    units: list[UnitBindings] = []
    name, root = "", 0
    bindings: list[Binding] = []
    faults: list[TableFault] = []

    def close() -> None:
        if name:
            units.append(
                UnitBindings(name=name, root=root, bindings=tuple(bindings), faults=tuple(faults))
            )
            bindings.clear()
            faults.clear()

    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("B.D.F"):
            continue
        if match := _UNIT.fullmatch(line):
            close()
            name, root = match[1], int(match[2], 16)
        elif match := _DISABLED.fullmatch(line):
            close()
            name = ""
            units.append(UnitBindings(name=match[1], root=None, bindings=()))
        elif name and (match := _ENTRY.fullmatch(line.rstrip())):
            binding, fault = _parse_entry(match, segment)
            bindings.append(binding)
            if fault:
                faults.append(fault)
        else:
            raise IommuFormatError(
                f"'{line[:100]}' is not a line of dmar_translation_struct", where=f"line {number}"
            )
    close()
    return tuple(units)


def _parse_entry(match: re.Match[str], segment: int) -> tuple[Binding, TableFault | None]:
    _root_high, _root_low, context_high, context_low = (int(match[at], 16) for at in range(2, 6))
    pasid = int(match[6])
    bare = parse_bdf(f"{segment:04x}:{match[1]}")
    requester = Requester(
        segment=segment, bus=bare.bus, devfn=bare.devfn, pasid=None if pasid < 0 else pasid
    )
    if pasid < 0:
        attachment = decode_context(requester, context_low, context_high)
    else:
        word2, word1, word0 = (int(match[at], 16) for at in range(7, 10))
        attachment = decode_pasid_entry(requester, (word0, word1, word2, 0, 0, 0, 0, 0))
    if attachment.error is None:
        return attachment.binding, None
    kind, detail = attachment.error
    return attachment.binding, TableFault(
        kind=kind, address=0, level=0, detail=f"{requester}: {detail}"
    )


def parse_domain_translation(text: str, binding: Binding) -> MappingSet:
    """Parse ``domain_translation_struct`` of the requester of ``binding``.

    :param binding: as ``dmar_translation_struct`` or a decode from outside gave it; says which
        entry format is meant, which this file does not.
    :raises IommuFormatError: naming the line, for one that is cut off, out of order or of another
        requester or table; also if the binding has page tables and the file none.
    """
    if binding.translation not in (
        Translation.FIRST_STAGE,
        Translation.SECOND_STAGE,
        Translation.NESTED,
    ):
        if text.strip():
            detail = f"page tables listed for {binding.requester}, {binding.translation}"
            raise IommuFormatError(detail, where="line 1")
        return MappingSet(binding=binding)
    paging = FIRST_STAGE if binding.translation is Translation.FIRST_STAGE else SECOND_STAGE
    lines = text.splitlines()
    if len(lines) < 2:
        raise IommuFormatError(
            f"no page tables listed for {binding.requester}, {binding.translation}", where="line 1"
        )
    _check_header(lines, binding)
    return MappingSet(binding=binding, runs=_Leaves(paging, binding.levels).parse(lines).finish())


def _check_header(lines: Sequence[str], binding: Binding) -> None:
    match = _DEVICE.fullmatch(lines[0].strip())
    if not match:
        raise IommuFormatError(f"'{lines[0][:100]}' names no device", where="line 1")
    pasid = None if match[2] is None else int(match[2], 16)
    requester = parse_bdf(match[1], pasid=pasid)
    if requester != binding.requester:
        raise IommuFormatError(f"{requester} instead of {binding.requester}", where="line 1")
    top = int(match[3], 16)
    if top != binding.top:
        raise IommuFormatError(f"tables at {top:#x} instead of {binding.top:#x}", where="line 1")
    if not lines[1].startswith(_COLUMNS):
        raise IommuFormatError(f"'{lines[1][:100]}' are not the columns", where="line 2")


class _Leaves:
    """Turn leaf lines into runs; consecutive lines mostly share the entries above."""

    def __init__(self, paging: PagingFormat, levels: int) -> None:
        self._paging = paging
        self._builder = RunBuilder()
        self._sign = 1 << 11 + 9 * levels if paging.is_signed else 0
        self._above: list[str] = []
        self._rights = 0

    def parse(self, lines: Sequence[str]) -> RunBuilder:
        paging, builder = self._paging, self._builder
        low_bits = len(paging.access) - 1
        end = 0
        for number, line in enumerate(lines[2:], 3):
            fields = line.split()
            if not fields:
                continue
            try:
                if fields[1] != "|" or not _MIN_ENTRIES <= len(fields) - 2 <= _MAX_ENTRIES:
                    raise ValueError
                iova = int(fields[0], 16) << 12
                above, last = fields[2:-1], fields[-1]
                # a line cut in the last number would still be a number
                if len(last) != 18:
                    raise ValueError
                entry = int(last, 16)
                if above != self._above:
                    self._enter(above)
            except (ValueError, IndexError):
                raise IommuFormatError(
                    f"'{line[:120]}' is not a line of domain_translation_struct",
                    where=f"line {number}",
                ) from None
            # 5 columns end in a PTE, 4 in a 2 MiB PDE, 3 in a 1 GiB PDPE
            size = 1 << 12 + 9 * (4 - len(above))
            if len(above) < 4 and not entry & PAGE_SIZE_BIT:
                detail = f"{entry:#x} is not a large page: the line is cut off"
                raise IommuFormatError(detail, where=f"line {number}")
            if self._sign and iova & self._sign:
                iova += (1 << 64) - (self._sign << 1)
            if iova < end:
                raise IommuFormatError(f"IOVA {iova:#x} is out of order", where=f"line {number}")
            end = iova + size
            access = paging.access[self._rights & entry & low_bits]
            if access:
                builder.add(iova, entry & ADDRESS_MASK & -size, size, access, size)
        return builder

    def _enter(self, above: list[str]) -> None:
        """Note the rights granted by the entries above; zero is a level that is not there."""
        rights = len(self._paging.access) - 1
        for text in above:
            entry = int(text, 16)
            if entry:
                rights &= entry
        self._above, self._rights = above, rights
