# SPDX-License-Identifier: Apache-2.0
"""A QEMU machine as its monitor shows it: registers, configuration space, and QEMU's own trace.

Reading has no side effects. Must not know which devices are of interest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from liveupdate.deadline import Deadline
from liveupdate.errors import EvidenceError, LiveUpdateError
from liveupdate.formats import pci_config, qemu_trace, vtd_regs
from liveupdate.formats.hmp_xp import MemoryDumpError, parse_xp
from liveupdate.formats.iommu import Requester
from liveupdate.formats.malformed import MalformedError
from liveupdate.model.evidence import DeviceEvent, UnitSample
from liveupdate.physmem import MtreeError, find_region

#: the registers' region and the configuration window, as ``info mtree`` names them
UNIT_REGION = "intel_iommu"
CONFIG_REGION = "pcie-mmcfg-mmio"
_CALL_S = 10.0
#: GSTS, RTADDR and FSTS lie in one dump of seven words
_STATUS_FIRST, _STATUS_BYTES = vtd_regs.GSTS, 28
_TRACE_CHUNK = 1 << 20


class Monitor(Protocol):
    """Of :class:`liveupdate.transport.quick_qmp.QuickQmp`, what this probe needs."""

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        deadline: Deadline | None = None,
    ) -> object: ...

    def hmp(self, command_line: str, deadline: Deadline | None = None) -> str: ...


def soon(what: str) -> Deadline:
    """Give a monitor that is alive more time than it needs."""
    return Deadline.after(_CALL_S, what)


def read_physical(monitor: Monitor, address: int, size: int) -> bytes:
    """Read registers or memory through the monitor; ``size`` is a multiple of 4.

    :raises EvidenceError: nothing is there, or the answer is no dump.
    """
    text = monitor.hmp(f"xp /{size // 4}wx {address:#x}", soon("a memory dump of the monitor"))
    try:
        return parse_xp(text, size=size).data
    except MemoryDumpError as error:
        raise EvidenceError(f"the monitor does not show {address:#x}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the machine under update has its DMA remapping unit and configuration space."""

    unit: int
    config: int
    fault_offset: int
    fault_count: int

    @classmethod
    def find(cls, monitor: Monitor) -> Machine:
        """Ask the monitor.

        :raises EvidenceError: there is no VT-d unit, or no memory-mapped configuration space.
        """
        text = monitor.hmp("info mtree -f", soon("the monitor's memory map"))
        try:
            unit, config = find_region(text, UNIT_REGION), find_region(text, CONFIG_REGION)
        except MtreeError as error:
            raise EvidenceError(str(error)) from error
        if unit is None or config is None:
            lacking = "VT-d unit" if unit is None else "configuration window"
            raise EvidenceError(f"the machine has no {lacking}")
        page = read_physical(monitor, unit[0], vtd_regs.REGISTER_BYTES)
        try:
            capabilities = vtd_regs.decode_registers(page).capabilities
        except MalformedError as error:
            raise EvidenceError(f"VT-d unit at {unit[0]:#x}: {error}") from error
        return cls(
            unit=unit[0],
            config=config[0],
            fault_offset=capabilities.fault_offset,
            fault_count=capabilities.fault_count,
        )

    def read_status(self, monitor: Monitor) -> UnitSample:
        """Read the registers that are sampled, and the fault records if there are any."""
        data = read_physical(monitor, self.unit + _STATUS_FIRST, _STATUS_BYTES)
        now = time.monotonic_ns()

        def word(offset: int, size: int) -> int:
            at = offset - _STATUS_FIRST
            return int.from_bytes(data[at : at + size], "little")

        sample = UnitSample(
            host_ns=now,
            gsts=word(vtd_regs.GSTS, 4),
            rtaddr=word(vtd_regs.RTADDR, 8),
            fsts=word(vtd_regs.FSTS, 4),
        )
        if vtd_regs.FaultStatus(sample.fsts).is_clear:
            return sample
        size = self.fault_count * vtd_regs.FAULT_RECORD_BYTES
        records = read_physical(monitor, self.unit + self.fault_offset, size)
        return replace(sample, fault_records=records.hex())

    def read_config(self, monitor: Monitor, function: Requester) -> bytes:
        """Read a function's configuration space."""
        # ECAM: 4 KiB per function (PCI Express base specification, 7.2.2)
        address = self.config + (function.source_id << 12)
        return read_physical(monitor, address, pci_config.CONFIG_BYTES)


class TraceFile:
    """QEMU's own log of what its device models do, read as it grows."""

    def __init__(self, monitor: Monitor, path: Path) -> None:
        self._monitor = monitor
        self._path = path
        self._fd = -1
        self._rest = b""
        self.lines = 0

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
        # A machine that is gone has no trace to be switched off.
        with contextlib.suppress(LiveUpdateError):
            self._switch(is_on=False)

    def _switch(self, *, is_on: bool) -> None:
        """Switch single events: the monitor's ``log none`` leaves all that once were on."""
        for name in qemu_trace.EVENTS:
            self._monitor.execute(
                "trace-event-set-state",
                {"name": name, "enable": is_on},
                soon("QEMU's trace to be switched"),
            )

    def read(self) -> Iterator[DeviceEvent]:
        """Give what was logged since the last call.

        :raises QemuTraceError: a line of a known event does not make sense.
        """
        now = time.monotonic_ns()
        while chunk := os.read(self._fd, _TRACE_CHUNK):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self.lines += len(lines)
            for line in lines:
                event = qemu_trace.decode_line(line.decode(errors="replace"), now)
                if event is not None:
                    yield event
