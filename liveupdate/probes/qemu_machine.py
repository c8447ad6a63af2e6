# SPDX-License-Identifier: Apache-2.0
"""A QEMU machine as its monitor shows it: registers, configuration space, and QEMU's own trace.

Reading has no side effects. Must not know which devices are of interest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core.errors import EvidenceError, LiveUpdateError
from liveupdate.formats import pci_config, qemu_trace
from liveupdate.formats.iommu import Requester
from liveupdate.model.iommu_samples import DeviceEvent
from liveupdate.probes.iommu_units import AmdUnit, Unit, VtdUnit, read_physical, soon
from liveupdate.transport.monitor import Commands
from liveupdate.transport.physmem import MtreeError, find_region

#: the regions of registers and the configuration window, as ``info mtree`` names them
VTD_REGION = "intel_iommu"
AMD_REGION = "amdvi-mmio"
CONFIG_REGION = "pcie-mmcfg-mmio"
_TRACE_CHUNK = 1 << 20


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
        for name in qemu_trace.EVENTS:
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
            for line in lines:
                event = qemu_trace.decode_line(line.decode(errors="replace"), now)
                if event is not None:
                    yield event
