# SPDX-License-Identifier: Apache-2.0
"""Decode the registers of a VT-d unit from the bytes of its register page.

Intel Virtualization Technology for Directed I/O, rev. 4.x, chapter 11.4: VER 11.4.1, CAP 11.4.2,
GSTS 11.4.4, RTADDR 11.4.5, FSTS 11.4.7.1, FRCD 11.4.7.6. Reading them has no side effects.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from liveupdate.core.units import format_addr
from liveupdate.formats.iommu import ADDRESS_MASK, IommuFormatError, format_source_id

#: bytes from the start of the register page that :func:`decode_capabilities` needs
REGISTER_BYTES = 0x10
#: bytes of a fault recording register
FAULT_RECORD_BYTES = 16

GSTS, RTADDR, FSTS = 0x1C, 0x20, 0x34

#: RTADDR_REG.TTM, 11.4.5
MODE_LEGACY, MODE_SCALABLE, MODE_RESERVED, MODE_ABORT = range(4)

#: VER_REG at 0, CAP_REG at 8
_VER_CAP = struct.Struct("<IxxxxQ")
_FAULT = struct.Struct("<QQ")
_REQUESTS = ("write", "page-request", "read", "atomic")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """CAP_REG (11.4.2)."""

    cap: int

    @property
    def fault_offset(self) -> int:
        """FRO: offset of the fault recording registers."""
        return (self.cap >> 24 & 0x3FF) * 16

    @property
    def fault_count(self) -> int:
        """NFR: number of fault recording registers."""
        return (self.cap >> 40 & 0xFF) + 1


@dataclass(frozen=True, slots=True)
class GlobalStatus:
    """GSTS_REG (11.4.4)."""

    value: int

    @property
    def is_translating(self) -> bool:
        """TES."""
        return bool(self.value >> 31 & 1)

    @property
    def has_root_pointer(self) -> bool:
        """RTPS."""
        return bool(self.value >> 30 & 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RootPointer:
    """RTADDR_REG (11.4.5): where the root table is and how it is to be read."""

    address: int
    mode: int

    @classmethod
    def decode(cls, rtaddr: int) -> RootPointer:
        """Split the register's value."""
        return cls(address=rtaddr & ADDRESS_MASK, mode=rtaddr >> 10 & 3)

    @property
    def is_scalable(self) -> bool:
        """Whether contexts lead to PASID tables."""
        return self.mode == MODE_SCALABLE


def is_clear(fault_status: int) -> bool:
    """Whether FSTS_REG (11.4.7.1) shows no fault of any kind."""
    return not fault_status & 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRecord:
    """One fault recording register with F set (11.4.7.6).

    :ivar address: page of the request; 0 for interrupts.
    :ivar interrupt_index: entry of the interrupt table; None for DMA, and where it is undefined.
    :ivar request: write, page-request, read or atomic.
    :ivar pasid: None: the request carried none.
    """

    index: int
    reason: int
    source_id: int
    address: int
    interrupt_index: int | None
    request: str
    pasid: int | None

    def __str__(self) -> str:
        name = FAULT_REASONS.get(self.reason, "unknown reason")
        tail = "" if self.pasid is None else f" pasid {self.pasid:#x}"
        if self.interrupt_index is None:
            what = f"{self.request} {format_addr(self.address)}"
        else:
            what = f"interrupt {self.interrupt_index}"
        return f"{format_source_id(self.source_id)}{tail} {what}: {name} ({self.reason:#x})"


def decode_capabilities(data: bytes) -> Capabilities:
    """Decode CAP_REG from the first :data:`REGISTER_BYTES` bytes of a register page.

    :raises IommuFormatError: if there are fewer bytes, or if they are those of a hole (all ones).
    """
    if len(data) < REGISTER_BYTES:
        raise IommuFormatError(f"{len(data)} bytes of {REGISTER_BYTES}", where="VT-d registers")
    version, cap = _VER_CAP.unpack_from(data)
    if version == 0xFFFF_FFFF or not version & 0xFF:
        detail = f"VER_REG reads {version:#x}: there is no VT-d unit here"
        raise IommuFormatError(detail, where="VT-d registers")
    return Capabilities(cap)


def decode_fault_records(data: bytes) -> tuple[FaultRecord, ...]:
    """Decode fault recording registers (NFR of them, from FRO on): those with F set.

    :raises IommuFormatError: if the length is not a multiple of 16.
    """
    if len(data) % FAULT_RECORD_BYTES:
        raise IommuFormatError(f"{len(data)} bytes", where="fault recording registers")
    records = []
    for index, (low, high) in enumerate(_FAULT.iter_unpack(data)):
        if not high >> 63:
            continue
        reason = high >> 32 & 0xFF
        is_interrupt = reason >> 4 == 2
        records.append(
            FaultRecord(
                index=index,
                reason=reason,
                source_id=high & 0xFFFF,
                address=0 if is_interrupt else low & ~0xFFF,
                # a blocked compatibility-format interrupt has no index (5.1.4.1)
                interrupt_index=low >> 48 if is_interrupt and reason != 0x25 else None,
                # T1 is bit 126, T2 bit 92
                request=_REQUESTS[high >> 61 & 2 | high >> 28 & 1],
                pasid=high >> 40 & 0xFFFFF if high >> 31 & 1 else None,
            )
        )
    return tuple(records)


#: fault reasons a DMA or interrupt request of a device can meet, chapter 7 of the specification
FAULT_REASONS = {
    0x01: "root entry not present",
    0x02: "context entry not present",
    0x03: "context entry invalid",
    0x04: "address beyond the domain's width",
    0x05: "no write permission",
    0x06: "no read permission",
    0x07: "paging table cannot be accessed",
    0x08: "root table cannot be accessed",
    0x09: "context table cannot be accessed",
    0x0A: "reserved bits in root entry",
    0x0B: "reserved bits in context entry",
    0x0C: "reserved bits in paging entry",
    0x0D: "translation request blocked",
    0x20: "reserved bits in interrupt request",
    0x21: "interrupt index beyond the table",
    0x22: "interrupt entry not present",
    0x23: "interrupt table cannot be accessed",
    0x24: "reserved bits in interrupt entry",
    0x25: "compatibility-format interrupt blocked",
    0x26: "interrupt from another source",
    0x30: "scalable mode: root table address invalid",
    0x31: "scalable mode: PASID in abort or legacy mode",
    0x38: "scalable mode: root entry cannot be accessed",
    0x39: "scalable mode: root entry not present",
    0x3A: "scalable mode: reserved bits in root entry",
    0x40: "scalable mode: context entry cannot be accessed",
    0x41: "scalable mode: context entry not present",
    0x42: "scalable mode: reserved bits in context entry",
    0x43: "scalable mode: context entry invalid",
    0x50: "scalable mode: PASID directory entry cannot be accessed",
    0x51: "scalable mode: PASID directory entry not present",
    0x52: "scalable mode: reserved bits in PASID directory entry",
    0x58: "scalable mode: PASID entry cannot be accessed",
    0x59: "scalable mode: PASID entry not present",
    0x5A: "scalable mode: reserved bits in PASID entry",
    0x5B: "scalable mode: PASID entry invalid",
    0x70: "first stage: paging entry cannot be accessed",
    0x71: "first stage: paging entry not present",
    0x72: "first stage: reserved bits in paging entry",
    0x78: "second stage: paging entry cannot be accessed",
    0x79: "second stage: no permission",
    0x7A: "second stage: reserved bits in paging entry",
    0x80: "first stage: address not canonical",
    0x81: "first stage: user request to a supervisor page",
    0x84: "second stage: address beyond the domain's width",
    0x85: "no write permission",
    0x86: "no read permission",
    0x87: "access to the interrupt address range",
}
