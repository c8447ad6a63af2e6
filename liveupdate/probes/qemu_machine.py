# SPDX-License-Identifier: Apache-2.0
"""A QEMU machine as its monitor and its RAM show it.

That is its DMA remapping unit (VT-d or AMD-Vi), its configuration space, and QEMU's own trace.
Reading has no side effects. Must not know which devices are of interest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import EvidenceError, LiveUpdateError
from liveupdate.formats import amdvi_regs, pci_config, qemu_trace
from liveupdate.formats.amdvi import decode_device_table
from liveupdate.formats.hmp_xp import MemoryDumpError, parse_xp
from liveupdate.formats.iommu import ByteReader, Requester
from liveupdate.formats.iommu_walk import DecodedTables
from liveupdate.formats.malformed import MalformedError
from liveupdate.formats.vtd import regs
from liveupdate.formats.vtd.tables import decode_unit
from liveupdate.model.iommu_samples import DeviceEvent, UnitSample
from liveupdate.transport.monitor import Commands
from liveupdate.transport.physmem import MtreeError, find_region

#: the regions of registers and the configuration window, as ``info mtree`` names them
VTD_REGION = "intel_iommu"
AMD_REGION = "amdvi-mmio"
CONFIG_REGION = "pcie-mmcfg-mmio"
_TRACE_CHUNK = 1 << 20
_HEARTBEAT = qemu_trace.HEARTBEAT.encode()
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the machine under update has its DMA remapping unit and configuration space."""

    unit: Unit
    config: int

    @classmethod
    def find(cls, monitor: Commands) -> Machine:
        """Find unit and configuration space through the monitor.

        :raises EvidenceError: there is no such unit, or no memory-mapped configuration space.
        """
        text = monitor.hmp("info mtree -f", soon("the monitor's memory map"))
        try:
            intel, amd = find_region(text, VTD_REGION), find_region(text, AMD_REGION)
            config = find_region(text, CONFIG_REGION)
        except MtreeError as error:
            raise EvidenceError(str(error)) from error
        if config is None or (intel is None and amd is None):
            lacking = "configuration window" if config is None else "DMA remapping unit"
            raise EvidenceError(f"the machine has no {lacking}")
        unit: Unit
        if intel is not None:
            unit = VtdUnit.find(monitor, intel[0])
        else:
            assert amd is not None
            unit = AmdUnit(base=amd[0])
        return cls(unit=unit, config=config[0])

    def read_config(self, monitor: Commands, function: Requester) -> bytes:
        """Read a function's configuration space."""
        # ECAM: 4 KiB per function (PCI Express base specification, 7.2.2)
        address = self.config + (function.source_id << 12)
        return read_physical(monitor, address, pci_config.CONFIG_BYTES)


class TraceFile:
    """QEMU's own log of what its device models do, read while it grows."""

    def __init__(self, monitor: Commands, path: Path) -> None:
        self._monitor = monitor
        self._path = path
        self._fd = -1
        self._rest = b""
        self.lines = 0
        #: when lines were read that our own commands left: first, last, longest time between two
        self.beats_ns = (0, 0, 0)

    def __enter__(self) -> TraceFile:
        quoted = str(self._path).replace("\\", "\\\\").replace('"', '\\"')
        what = "QEMU's trace to be set up"
        answer = self._monitor.hmp(f'logfile "{quoted}"', soon(what)).strip()
        if answer:
            raise EvidenceError(f"QEMU's trace cannot be set up: {answer}")
        self._switch(is_on=True)
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EvidenceError(f"QEMU's trace '{self._path}': {error.strerror}") from error
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        # A machine that has ended has no trace to switch off.
        with contextlib.suppress(LiveUpdateError):
            self._switch(is_on=False)

    def _switch(self, *, is_on: bool) -> None:
        """Switch single events: the monitor's ``log none`` leaves all that once were on."""
        for name in (*qemu_trace.EVENTS, qemu_trace.HEARTBEAT):
            self._monitor.execute(
                "trace-event-set-state",
                {"name": name, "enable": is_on},
                soon("QEMU's trace to be switched"),
            )

    def read(self) -> Iterator[DeviceEvent]:
        """Return what was logged since the last call.

        :raises QemuTraceError: a line of a known event is not valid.
        """
        now = time.monotonic_ns()
        while chunk := os.read(self._fd, _TRACE_CHUNK):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self.lines += len(lines)
            if any(_HEARTBEAT in line for line in lines):
                first, last, hole = self.beats_ns
                self.beats_ns = (first or now, now, max(hole, now - (last or now)))
            for line in lines:
                event = qemu_trace.decode_line(line.decode(errors="replace"), now)
                if event is not None:
                    yield event
