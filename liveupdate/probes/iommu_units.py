# SPDX-License-Identifier: Apache-2.0
"""The DMA remapping units of QEMU's machines as its monitor and RAM show them: VT-d and AMD-Vi.

Reading has no side effects. Must not know which devices are of interest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import EvidenceError
from liveupdate.formats import amdvi_regs
from liveupdate.formats.amdvi import decode_device_table
from liveupdate.formats.hmp_xp import MemoryDumpError, parse_xp
from liveupdate.formats.iommu import ByteReader, Requester
from liveupdate.formats.iommu_walk import DecodedTables
from liveupdate.formats.malformed import MalformedError
from liveupdate.formats.vtd import regs
from liveupdate.formats.vtd.tables import decode_unit
from liveupdate.model.iommu_samples import UnitSample
from liveupdate.transport.monitor import Commands

_CALL_S = 10.0
#: GSTS, RTADDR and FSTS lie in one dump of seven words
_STATUS_FIRST, _STATUS_BYTES = regs.GSTS, 28


def soon(what: str) -> Deadline:
    """Make a deadline that is generous for a monitor that is alive."""
    return Deadline.after(_CALL_S, what)


def read_physical(monitor: Commands, address: int, size: int) -> bytes:
    """Read registers or memory through the monitor; ``size`` is a multiple of 4.

    :raises EvidenceError: there is no memory at the address, or the answer is no dump.
    """
    text = monitor.hmp(f"xp /{size // 4}wx {address:#x}", soon("a memory dump of the monitor"))
    try:
        return parse_xp(text, size=size)
    except MemoryDumpError as error:
        raise EvidenceError(f"the monitor does not show {address:#x}: {error}") from error


def _word(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class VtdUnit:
    """VT-d's registers at ``base``."""

    base: int
    fault_offset: int
    fault_count: int
    kind: str = "intel"

    @classmethod
    def find(cls, monitor: Commands, base: int) -> VtdUnit:
        """Find the registers of a unit.

        :raises EvidenceError: the registers at ``base`` are not those of a VT-d unit.
        """
        page = read_physical(monitor, base, regs.REGISTER_BYTES)
        try:
            capabilities = regs.decode_capabilities(page)
        except MalformedError as error:
            raise EvidenceError(f"VT-d unit at {base:#x}: {error}") from error
        return cls(
            base=base,
            fault_offset=capabilities.fault_offset,
            fault_count=capabilities.fault_count,
        )

    def read_status(self, monitor: Commands) -> UnitSample:
        """Read the registers that are sampled, and the fault records if there are any."""
        data = read_physical(monitor, self.base + _STATUS_FIRST, _STATUS_BYTES)
        sample = UnitSample(
            host_ns=time.monotonic_ns(),
            gsts=_word(data, regs.GSTS - _STATUS_FIRST, 4),
            rtaddr=_word(data, regs.RTADDR - _STATUS_FIRST, 8),
            fsts=_word(data, regs.FSTS - _STATUS_FIRST, 4),
            fault_records="",
        )
        if regs.is_clear(sample.fsts):
            return sample
        size = self.fault_count * regs.FAULT_RECORD_BYTES
        records = read_physical(monitor, self.base + self.fault_offset, size)
        return replace(sample, fault_records=records.hex())

    def is_translating(self, sample: UnitSample) -> bool:
        """Whether TES of GSTS is set: requests go through the tables that the sample names."""
        return regs.GlobalStatus(sample.gsts).is_translating

    def decode(
        self, ram: ByteReader, root: int, only: Iterable[Requester], *, is_walking: bool = True
    ) -> DecodedTables:
        """Decode the root, context and PASID entries of some requesters."""
        return decode_unit(ram, root, only=only, is_walking=is_walking)


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdUnit:
    """AMD-Vi's registers at ``base``."""

    base: int
    kind: str = "amd"

    def read_status(self, monitor: Commands) -> UnitSample:
        """Read the registers that are sampled; they lie in two dumps."""
        first = read_physical(monitor, self.base, amdvi_regs.FIRST_BYTES)
        status = read_physical(monitor, self.base + amdvi_regs.STATUS, 8)
        return UnitSample(
            host_ns=time.monotonic_ns(),
            gsts=_word(first, amdvi_regs.CONTROL, 8),
            rtaddr=_word(first, amdvi_regs.DEVICE_TABLE_BASE, 8),
            fsts=_word(status, 0, 8),
            fault_records="",
        )

    def is_translating(self, sample: UnitSample) -> bool:
        """Whether IommuEn is set: requests go through the tables that the sample names."""
        return amdvi_regs.is_translating(sample.gsts)

    def decode(
        self, ram: ByteReader, root: int, only: Iterable[Requester], *, is_walking: bool = True
    ) -> DecodedTables:
        """Decode the device table entries of some requesters."""
        return decode_device_table(ram, root, only=only, is_walking=is_walking)


Unit = VtdUnit | AmdUnit
"""A unit; both kinds have the same methods. A sample's ``rtaddr`` is the ``root`` to decode."""
