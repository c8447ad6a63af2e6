# SPDX-License-Identifier: Apache-2.0
"""Decode the VT-d interrupt remapping table.

Intel Virtualization Technology for Directed I/O, rev. 4.x: the table 5.1.2, remapped format 9.10,
posted format 9.11. An entry has 128 bits; the table 2^(S+1) of them, 1 MiB at most.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats.iommu import ByteReader, FaultKind, TableFault, format_source_id
from liveupdate.formats.iommu_walk import Walk, WalkLimits
from liveupdate.formats.vtd.regs import InterruptTable

ENTRY_BYTES = 16
_ENTRY = struct.Struct("<QQ")
_ZERO_PAGE = bytes(PAGE_BYTES)
#: 9.10: reserved bits of the low and high word, remapped; 9.11: posted
_RESERVED_REMAPPED = (0x0000_0000_FF00_7000, ~0xF_FFFF & (1 << 64) - 1)
_RESERVED_POSTED = (0x0000_003F_FF00_30FC, 0x0000_0000_FFF0_0000)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptEntry:
    """A present entry.

    :ivar destination: APIC id (32 bits if the table is extended, else 8); None if posted.
    :ivar descriptor: physical address of the posted-interrupt descriptor; None if remapped.
    :ivar delivery_mode: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT; 0 if posted.
    :ivar source_check: SVT: 0 none, 1 source id with ``source_qualifier``, 2 bus range.
    """

    index: int
    vector: int
    source_id: int
    source_check: int
    source_qualifier: int
    destination: int | None
    descriptor: int | None
    delivery_mode: int
    is_level: bool
    is_logical: bool
    is_urgent: bool

    def __str__(self) -> str:
        if self.destination is None:
            target = f"descriptor {self.descriptor or 0:#x}"
        else:
            target = f"apic {self.destination:#x}"
        return f"{self.index}: {format_source_id(self.source_id)} {target} vector {self.vector:#x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptEntries:
    """All present entries, ascending; with ``faults`` it is incomplete."""

    entries: tuple[InterruptEntry, ...]
    faults: tuple[TableFault, ...]


def decode_interrupt_table(
    reader: ByteReader, irta: int, *, limits: WalkLimits | None = None
) -> InterruptEntries:
    """Decode the table that IRTA_REG names.

    :param irta: value of IRTA_REG. Whether interrupts are remapped at all is in GSTS_REG.
    """
    table = InterruptTable(irta)
    walk = Walk(reader, limits or WalkLimits())
    entries: list[InterruptEntry] = []
    remaining = table.entries * ENTRY_BYTES
    address = table.address
    while remaining and not walk.is_exhausted:
        size = min(PAGE_BYTES, remaining)
        page = walk.read(address, size, "interrupt remapping table")
        if page is not None and page != _ZERO_PAGE:
            for offset, (low, high) in enumerate(_ENTRY.iter_unpack(page)):
                if low & 1:
                    where = address + offset * ENTRY_BYTES
                    index = (where - table.address) // ENTRY_BYTES
                    _check_reserved(walk, where, low, high)
                    entries.append(decode_entry(index, low, high, is_extended=table.is_extended))
        address += size
        remaining -= size
    return InterruptEntries(entries=tuple(entries), faults=walk.take_faults())


def decode_entry(index: int, low: int, high: int, *, is_extended: bool) -> InterruptEntry:
    """Decode one present entry from its two words."""
    is_posted = bool(low >> 15 & 1)
    destination = low >> 32 if is_extended else low >> 40 & 0xFF
    descriptor = (high >> 32) << 32 | (low >> 38) << 6
    return InterruptEntry(
        index=index,
        vector=low >> 16 & 0xFF,
        source_id=high & 0xFFFF,
        source_check=high >> 18 & 3,
        source_qualifier=high >> 16 & 3,
        destination=None if is_posted else destination,
        descriptor=descriptor if is_posted else None,
        delivery_mode=0 if is_posted else low >> 5 & 7,
        is_level=not is_posted and bool(low >> 4 & 1),
        is_logical=not is_posted and bool(low >> 2 & 1),
        is_urgent=is_posted and bool(low >> 14 & 1),
    )


def _check_reserved(walk: Walk, address: int, low: int, high: int) -> None:
    reserved_low, reserved_high = _RESERVED_POSTED if low >> 15 & 1 else _RESERVED_REMAPPED
    if low & reserved_low or high & reserved_high:
        detail = f"interrupt entry {high:#018x}:{low:#018x}"
        walk.fault(FaultKind.RESERVED, address, detail)
