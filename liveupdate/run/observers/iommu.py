# SPDX-License-Identifier: Apache-2.0
"""The devices of a plan and their translation, watched from outside over one hop.

It begins in the brownout, when the devices are set up and nothing is frozen yet, and ends after the
guests run again, so only the sampling itself is part of the blackout. Without devices in the plan
it does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LiveUpdateError
from liveupdate.core.steps import Steps
from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats.iommu import parse_bdf
from liveupdate.formats.keep_dma import parse_preserved
from liveupdate.formats.malformed import MalformedError
from liveupdate.model import slots
from liveupdate.model.evidence import Incident, MappingFacts
from liveupdate.model.iommu_samples import ConfigFacts
from liveupdate.probes.iommu import IommuWatcher
from liveupdate.probes.iommu_inside import from_driver, read_inside
from liveupdate.probes.memory import guest_ranges
from liveupdate.run.testbed import Testbed
from liveupdate.target.qemu.argv import device_id
from liveupdate.transport.quick_qmp import QuickQmp

#: 65,000 mappings as debugfs prints them take a while under TCG
_INSIDE_S = 60.0


class IommuObserver:
    """The watch of one hop. What cannot be observed is an incident and judged as missing."""

    def __init__(self, bed: Testbed, hop: int, steps: Steps) -> None:
        self._bed = bed
        self._hop = hop
        self._steps = steps
        self._watcher: IommuWatcher | None = None
        self._mark = 0
        self._stack = ExitStack()

    def begin(self) -> None:
        """Walk all tables, inside and outside, and start to sample."""
        bed = self._bed
        if not bed.plan.devices:
            return
        self._mark = bed.host.console.mark()
        monitor = QuickQmp(bed.own_machine.watch_path)
        self._watcher = IommuWatcher(
            monitor,
            bed.own_machine.ram,
            [(each.name, each.kind, device_id(each.name)) for each in bed.plan.devices],
            bed.record.path / f"qemu-trace-{self._hop}.log",
        )
        try:
            self._stack.enter_context(monitor)
            mappings, configs = self._watcher.begin()
        except (LiveUpdateError, MalformedError, OSError) as error:
            self._trouble("the devices cannot be watched", error)
            self._close()
            return
        self._put(mappings, configs)
        self._read_inside("before")

    def end(self) -> None:
        """Stop, and walk all tables again."""
        if self._watcher is None or not self._watcher.began_ns:
            return
        try:
            mappings, configs = self._watcher.end()
        except (LiveUpdateError, MalformedError, OSError) as error:
            self._trouble("the devices cannot be looked at any more", error)
            return
        self._put(mappings, configs)
        self._read_inside("after")

    def store(self) -> None:
        """Store the samples; may be called however the hop ended."""
        self._close()
        self._stack.close()
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        if watcher.sampler.error is not None:
            self._trouble("sampling ended", watcher.sampler.error)
        if not watcher.began_ns:
            return
        found, record = watcher.seen, self._bed.record
        record.put(slots.DEVICES, watcher.devices, self._hop)
        record.put(slots.WATCH, watcher.sum_up(), self._hop)
        record.add(slots.SAMPLES, found.samples, self._hop)
        record.add(slots.BINDINGS, found.bindings, self._hop)
        record.add(slots.TABLES, found.tables, self._hop)
        record.add(slots.DEVICE_EVENTS, found.events, self._hop)
        for line in self._bed.host.console.lines(self._mark):
            kept = parse_preserved(line.text)
            if kept is not None:
                record.put(slots.KEPT, kept, self._hop)
                break

    def _close(self) -> None:
        try:
            if self._watcher is not None:
                self._watcher.close()
        except (LiveUpdateError, MalformedError, OSError) as error:
            self._trouble("the rest of QEMU's trace", error)

    def _put(self, mappings: Iterable[MappingFacts], configs: Iterable[ConfigFacts]) -> None:
        for facts in mappings:
            self._bed.record.add(slots.MAPPINGS, [facts], self._hop)
        self._bed.record.add(slots.CONFIGS, configs, self._hop)

    def _read_inside(self, moment: str) -> None:
        assert self._watcher is not None
        deadline = Deadline.after(_INSIDE_S, "the kernel's own view of its translation tables")
        try:
            if self._watcher.unit == "amd":
                self._put(self._ask_driver(moment), ())
                return
            ssh = self._bed.ssh(deadline)
            for device in self._watcher.devices:
                self._put(read_inside(ssh, parse_bdf(device.function), moment, deadline), ())
        except LiveUpdateError as error:
            # The check that compares the two views says what is missing.
            self._steps.note("inside-view-missing", moment=moment, error=str(error))

    def _ask_driver(self, moment: str) -> Iterator[MappingFacts]:
        assert self._watcher is not None
        owners = {each.name: each.guest for each in self._bed.plan.devices}
        guests = {each.spec.name: each for each in self._bed.guests}
        for device in self._watcher.devices:
            began = time.monotonic_ns()
            owner = owners[device.name]
            if owner is None:
                iova, pfns = self._bed.device_frames(device.name)
                ranges: tuple[tuple[int, int], ...] = ((iova, len(pfns) // 8 * PAGE_BYTES),)
            else:
                # its IOVAs are the guest's physical addresses
                ranges = guest_ranges(guests[owner].spec.memory_bytes)
                pfns = self._bed.read_pfns(guests[owner])
            took = time.monotonic_ns() - began
            yield from_driver(parse_bdf(device.function), ranges, pfns, moment, began, took)

    def _trouble(self, what: str, error: BaseException) -> None:
        self._bed.record.add_incident(
            Incident(kind="harness", hop=self._hop, text=f"{what}: {error}")
        )
