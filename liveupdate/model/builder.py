# SPDX-License-Identifier: Apache-2.0
"""Evidence as it comes together, part by part; frozen by :meth:`EvidenceBuilder.build`.

Filled by the recorder while a run goes on and by the store when it is read back: one shape, so that
a verdict is the same from either.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from liveupdate.model.costs import CostFacts, HandedOver, HopCosts, KeptTables
from liveupdate.model.evidence import (
    AgentPing,
    Artifact,
    BindingSample,
    ConfigFacts,
    DeviceEvent,
    DeviceTrace,
    Echo,
    Evidence,
    GuestMemory,
    GuestTrace,
    HopEvidence,
    Incident,
    IommuEvidence,
    IommuWatch,
    JournalSample,
    KernelFacts,
    MappingFacts,
    Mark,
    PageDigests,
    PageFrames,
    PatternFacts,
    Phase,
    Provenance,
    SessionFacts,
    SshFacts,
    TableSample,
    Tick,
    UnitSample,
    Watched,
    WatchedDevice,
)
from liveupdate.model.guest_device_use import JournalFacts


@dataclass(slots=True)
class GuestParts:
    """One guest in one hop."""

    has_trace: bool = False
    digests: dict[str, PageDigests] = field(default_factory=dict)
    pfns: dict[str, PageFrames] = field(default_factory=dict)
    ticks: list[Tick] = field(default_factory=list)
    echoes: list[Echo] = field(default_factory=list)
    journal: list[JournalSample] = field(default_factory=list)
    pings: list[AgentPing] = field(default_factory=list)
    vmm_status: str | None = None
    watched: Watched | None = None
    scans: dict[str, JournalFacts] = field(default_factory=dict)
    pattern: PatternFacts | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def memory(self, guest: str) -> GuestMemory | None:
        if not self.digests and not self.pfns:
            return None
        return GuestMemory(
            guest=guest,
            freeze=self.digests.get("freeze"),
            boot=self.digests.get("boot"),
            pfns_before=self.pfns.get("before"),
            pfns_after=self.pfns.get("after"),
        )

    def trace(self, guest: str) -> GuestTrace | None:
        if not self.has_trace:
            return None
        return GuestTrace(
            guest=guest,
            vmm_status=self.vmm_status,
            ticks=tuple(self.ticks),
            echoes=tuple(self.echoes),
            journal=tuple(self.journal),
            journal_before=self.scans.get("before"),
            journal_after=self.scans.get("after"),
            pattern=self.pattern,
            agent_pings=tuple(self.pings),
            watched=self.watched,
            artifacts=tuple(self.artifacts[path] for path in sorted(self.artifacts)),
        )


@dataclass(slots=True)
class IommuParts:
    """Devices and their translation in one hop."""

    devices: tuple[WatchedDevice, ...] = ()
    watch: IommuWatch | None = None
    samples: list[UnitSample] = field(default_factory=list)
    bindings: list[BindingSample] = field(default_factory=list)
    tables: list[TableSample] = field(default_factory=list)
    events: list[DeviceEvent] = field(default_factory=list)
    mappings: list[MappingFacts] = field(default_factory=list)
    configs: list[ConfigFacts] = field(default_factory=list)
    kept: KeptTables | None = None

    def build(self) -> IommuEvidence | None:
        """Give None when there is nothing at all."""
        built = IommuEvidence(
            devices=self.devices,
            watch=self.watch,
            samples=tuple(self.samples),
            bindings=tuple(self.bindings),
            tables=tuple(self.tables),
            events=tuple(self.events),
            mappings=tuple(self.mappings),
            configs=tuple(self.configs),
            kept=self.kept,
        )
        return None if built == IommuEvidence() else built


@dataclass(slots=True)
class HopParts:
    """One hop."""

    kernels: dict[str, KernelFacts] = field(default_factory=dict)
    costs: dict[str, CostFacts] = field(default_factory=dict)
    handed_over: HandedOver | None = None
    ssh: SshFacts | None = None
    sessions: list[SessionFacts] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    guests: defaultdict[str, GuestParts] = field(default_factory=lambda: defaultdict(GuestParts))
    devices: dict[str, DeviceTrace] = field(default_factory=dict)
    iommu: IommuParts = field(default_factory=IommuParts)

    def build(self, number: int) -> HopEvidence:
        guests = sorted(self.guests.items())
        memory = [parts.memory(guest) for guest, parts in guests]
        traces = [parts.trace(guest) for guest, parts in guests]
        return HopEvidence(
            number=number,
            before=self.kernels.get("before"),
            after=self.kernels.get("after"),
            sessions=tuple(self.sessions),
            memory=tuple(each for each in memory if each is not None),
            guests=tuple(each for each in traces if each is not None),
            phases=tuple(self.phases),
            paused_ns={mark.guest: mark.at_ns for mark in self.marks if mark.what == "paused"},
            resumed_ns={mark.guest: mark.at_ns for mark in self.marks if mark.what == "resumed"},
            devices=dict(sorted(self.devices.items())),
            ssh_boot_id=self.ssh.boot_id if self.ssh else None,
            ssh_nonce_ok=self.ssh.nonce_ok if self.ssh else None,
            costs=HopCosts(
                before=self.costs.get("before"),
                after=self.costs.get("after"),
                handed_over=self.handed_over,
            ),
            iommu=self.iommu.build(),
        )


@dataclass(slots=True)
class EvidenceBuilder:
    """The whole of a run."""

    provenance: Provenance | None = None
    hops: defaultdict[int, HopParts] = field(default_factory=lambda: defaultdict(HopParts))
    incidents: list[Incident] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    rolled_back: bool = False

    def guest(self, hop: int, guest: str) -> GuestParts:
        return self.hops[hop].guests[guest]

    def build(self) -> Evidence:
        """Freeze what is there now."""
        return Evidence(
            provenance=self.provenance,
            hops=tuple(parts.build(number) for number, parts in sorted(self.hops.items())),
            incidents=tuple(self.incidents),
            unreadable=dict(sorted(self.unreadable.items())),
            rolled_back=self.rolled_back,
        )
