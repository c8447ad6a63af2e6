# SPDX-License-Identifier: Apache-2.0
"""The IOMMU and the devices behind it, from outside: registers, tables, configuration, trace.

Registers and configuration space are read through QEMU's monitor, tables through the mapped RAM. A
:class:`IommuWatcher` walks everything before the freeze and after the resume. Between the two it
samples what is cheap: registers, the entries of the watched devices, and whether any byte of their
page tables changed. This module says nothing about what ought to be.
:mod:`liveupdate.probes.qemu_machine` has the differences between VT-d and AMD-Vi.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from liveupdate.core.errors import EvidenceError
from liveupdate.formats import qemu_trace
from liveupdate.formats.iommu import (
    Binding,
    ByteReader,
    MappingSet,
    Requester,
    Translation,
    pack_runs,
    parse_bdf,
)
from liveupdate.formats.iommu_watch import TableFingerprint
from liveupdate.formats.qemu_pci import find_function
from liveupdate.model.evidence import UNSTORED, MappingFacts
from liveupdate.model.iommu_samples import (
    BindingSample,
    ConfigFacts,
    DeviceEvent,
    IommuWatch,
    TableSample,
    UnitSample,
    WatchedDevice,
)
from liveupdate.probes.base import Sampler
from liveupdate.probes.qemu_machine import Machine, TraceFile, soon
from liveupdate.transport.monitor import Commands

#: 80 Hz, for 50 to be left on a busy machine: a sample that comes late is not made up for
INTERVAL_S = 0.0125


@dataclass(slots=True)
class _Target:
    """A watched device and what is known of its tables."""

    device: WatchedDevice
    requester: Requester
    bindings: tuple[BindingSample, ...] = ()
    #: root pointer and entries behind ``bindings``: unchanged, there is nothing to decode
    rtaddr: int = -1
    entries: TableFingerprint | None = None
    #: tops of the tables that ``tables`` remembers
    tops: tuple[int, ...] = ()
    tables: TableFingerprint | None = None
    changes: tuple[str, ...] = ()
    #: how often ``tables`` were compared
    compared: int = 0


@dataclass(slots=True)
class Harvest:
    """What was observed from :meth:`IommuWatcher.begin` to :meth:`IommuWatcher.end`."""

    samples: list[UnitSample] = field(default_factory=list)
    bindings: list[BindingSample] = field(default_factory=list)
    tables: list[TableSample] = field(default_factory=list)
    events: list[DeviceEvent] = field(default_factory=list)


class IommuWatcher:
    """Watch some devices of one machine over one hop; used once."""

    def __init__(
        self,
        monitor: Commands,
        ram: ByteReader,
        wanted: Sequence[tuple[str, str, str]],
        trace: Path,
    ) -> None:
        """
        :param wanted: (name, QEMU's device model, QEMU's device id) of each device.
        :param trace: file that QEMU writes its trace to.
        """
        self._monitor = monitor
        self._ram = ram
        self._wanted = tuple(wanted)
        self._trace = TraceFile(monitor, trace)
        self._machine: Machine | None = None
        self._targets: list[_Target] = []
        #: as they were found
        self.devices: tuple[WatchedDevice, ...] = ()
        self._functions: frozenset[str] = frozenset()
        #: what was sampled; complete after :meth:`close`
        self.seen = Harvest()
        self._stack = ExitStack()
        self.sampler = Sampler("iommu", INTERVAL_S, self._sample)
        #: when sampling started; 0: it has not
        self.began_ns = 0
        self._cpu_ns = 0
        self._looked_ns = self._hole_ns = 0

    # --- moments

    def begin(self) -> tuple[tuple[MappingFacts, ...], tuple[ConfigFacts, ...]]:
        """Walk everything, then sample until :meth:`end`.

        :raises EvidenceError: the machine has no such unit or device.
        """
        self._machine = Machine.find(self._monitor)
        answer = self._monitor.execute("query-pci", {}, soon("QEMU's list of PCI devices"))
        for name, kind, qdev_id in self._wanted:
            found = find_function(answer, qdev_id)
            if found is None:
                raise EvidenceError(f"QEMU knows no PCI device '{qdev_id}'")
            device = WatchedDevice(
                name=name,
                kind=kind,
                function=found.address.bdf,
                bridges=tuple(each.bdf for each in found.bridges),
            )
            self._targets.append(_Target(device, found.address))
        self.devices = tuple(target.device for target in self._targets)
        self._functions = frozenset(
            address for device in self.devices for address in (device.function, *device.bridges)
        )
        # The trace first: it must cover the time in which tables are walked.
        self._stack.enter_context(self._trace)
        self._stack.callback(self._read_trace)
        seen = self._walk("before")
        self.began_ns = self._looked_ns = time.monotonic_ns()
        self._stack.enter_context(self.sampler)
        return seen

    def end(self) -> tuple[tuple[MappingFacts, ...], tuple[ConfigFacts, ...]]:
        """Stop sampling and walk everything again."""
        self.close()
        return self._walk("after")

    def close(self) -> None:
        """Stop sampling. Idempotent; called however a hop ends."""
        self._stack.close()

    @property
    def unit(self) -> str:
        """The kind of the DMA remapping unit, as scenarios name it."""
        return self._machine.unit.kind if self._machine is not None else "intel"

    def sum_up(self) -> IommuWatch:
        """Say when and how often samples were taken; call it after :meth:`close`."""
        return IommuWatch(
            samples=len(self.seen.samples),
            began_ns=self.began_ns,
            ended_ns=self._looked_ns,
            longest_hole_ns=self._hole_ns,
            interval_ns=round(INTERVAL_S * 1e9),
            cpu_ns=self._cpu_ns,
            trace_lines=self._trace.lines,
            unit=self.unit,
            beats_ns=self._trace.beats_ns,
            compared={str(each.requester): each.compared for each in self._targets},
        )

    # --- walking

    def _walk(self, moment: str) -> tuple[tuple[MappingFacts, ...], tuple[ConfigFacts, ...]]:
        assert self._machine is not None
        status = self._machine.unit.read_status(self._monitor)
        mappings: list[MappingFacts] = []
        for target in self._targets:
            began = time.monotonic_ns()
            if not self._machine.unit.is_translating(status):
                # The root pointer has no meaning now: addresses are not translated.
                bare = Binding(requester=target.requester, translation=Translation.PASS_THROUGH)
                mappings.append(to_facts(MappingSet(binding=bare), moment, "outside", began, 0))
                continue
            decoded = self._machine.unit.decode(self._ram, status.rtaddr, [target.requester])
            took = time.monotonic_ns() - began
            faults = tuple(str(fault) for fault in decoded.faults)
            mappings += [
                to_facts(each, moment, "outside", began, took, faults) for each in decoded.sets
            ]
            target.tops = tuple(each.binding.top for each in decoded.sets)
            target.tables = decoded.paging_fingerprint()
        configs = [
            ConfigFacts(
                function=function,
                moment=moment,
                taken_ns=time.monotonic_ns(),
                data=self._machine.read_config(self._monitor, parse_bdf(function)).hex(),
            )
            for function in sorted(self._functions)
        ]
        return tuple(mappings), tuple(configs)

    # --- sampling

    def _sample(self) -> None:
        assert self._machine is not None
        began = time.thread_time_ns()
        sample = self._machine.unit.read_status(self._monitor)
        self.seen.samples.append(sample)
        self._hole_ns = max(self._hole_ns, sample.host_ns - self._looked_ns)
        self._looked_ns = sample.host_ns
        # With translation off the root pointer may lead to any memory.
        if self._machine.unit.is_translating(sample):
            for target in self._targets:
                self._look_at_entries(target, sample.rtaddr)
                self._look_at_tables(target, sample.rtaddr)
        self._read_trace()
        self._cpu_ns += time.thread_time_ns() - began

    def _read_trace(self) -> None:
        self.seen.events += [each for each in self._trace.read() if self._is_ours(each)]

    def _is_ours(self, event: DeviceEvent) -> bool:
        """Leave out events of other devices; a fault of any device counts."""
        if event.what == qemu_trace.RESET:
            return any(event.note == target.device.kind for target in self._targets)
        return not event.where or event.where in self._functions or event.what == qemu_trace.FAULT

    def _look_at_entries(self, target: _Target, rtaddr: int) -> None:
        assert self._machine is not None
        if (
            rtaddr == target.rtaddr
            and target.entries is not None
            and not target.entries.recheck(self._ram).changes
        ):
            return
        found, target.entries = self._read_bindings(rtaddr, target.requester)
        target.rtaddr = rtaddr
        if _is_same(found, target.bindings):
            return
        # The kernel may have switched to another root table since the register was read, and used
        # the memory of the old one for something else.
        again = self._machine.unit.read_status(self._monitor)
        if again.rtaddr != rtaddr:
            found, target.entries = self._read_bindings(again.rtaddr, target.requester)
            target.rtaddr = again.rtaddr
        if not _is_same(found, target.bindings):
            self.seen.bindings.extend(found)
            target.bindings = found

    def _read_bindings(
        self, rtaddr: int, requester: Requester
    ) -> tuple[tuple[BindingSample, ...], TableFingerprint]:
        """Read what a requester is attached to: one sample per PASID, at least one, and its
        tables.
        """
        assert self._machine is not None
        now = time.monotonic_ns()
        decoded = self._machine.unit.decode(self._ram, rtaddr, [requester], is_walking=False)
        unit_faults = [str(fault) for fault in decoded.faults]
        found = tuple(
            BindingSample(
                host_ns=now,
                requester=str(each.requester),
                translation=each.binding.translation.value,
                domain_id=each.binding.domain_id,
                top=each.binding.top,
                levels=each.binding.levels,
                fault="; ".join([*map(str, each.faults), *unit_faults]),
            )
            for each in decoded.sets
        )
        unknown = BindingSample(
            host_ns=now,
            requester=str(requester),
            translation="unknown",
            domain_id=None,
            top=0,
            levels=0,
            fault="; ".join(unit_faults) or "no entry",
        )
        return found or (unknown,), decoded.fingerprint()

    def _look_at_tables(self, target: _Target, rtaddr: int) -> None:
        """Compare page tables byte for byte, as long as they are the ones that were walked."""
        if target.tables is None or tuple(each.top for each in target.bindings) != target.tops:
            return
        recheck = target.tables.recheck(self._ram)
        target.tables = recheck.fingerprint
        target.compared += 1
        changes = recheck.changes
        if changes == target.changes:
            return
        # Tables that were replaced a moment ago are free memory.
        now, _ = self._read_bindings(rtaddr, target.requester)
        if tuple(each.top for each in now) != target.tops:
            return
        target.changes = changes
        self.seen.tables.append(
            TableSample(
                host_ns=time.monotonic_ns(),
                requester=str(target.requester),
                top=target.tops[0] if target.tops else 0,
                pages=len(changes),
                first=changes[0] if changes else "",
            )
        )


def _is_same(found: Sequence[BindingSample], before: Sequence[BindingSample]) -> bool:
    """Compare two samples without their times."""
    return [replace(each, host_ns=0) for each in found] == [
        replace(each, host_ns=0) for each in before
    ]


def to_facts(
    mappings: MappingSet,
    moment: str,
    view: str,
    taken_ns: int,
    took_ns: int,
    faults: Sequence[str] = (),
) -> MappingFacts:
    """Turn a mapping set into evidence; :param faults: those above the requester's own tables."""
    binding = mappings.binding
    return MappingFacts(
        requester=str(mappings.requester),
        moment=moment,
        view=view,
        taken_ns=taken_ns,
        took_ns=took_ns,
        translation=binding.translation.value,
        domain_id=binding.domain_id,
        top=binding.top,
        levels=binding.levels,
        access=binding.access,
        faults=(*faults, *(str(fault) for fault in mappings.faults)),
        runs=pack_runs(mappings.runs),
        artifact=UNSTORED,
    )
