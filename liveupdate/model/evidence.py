# SPDX-License-Identifier: Apache-2.0
"""Facts as observed. Nothing in here says pass or fail, and absent means None, never a default.

Host-side times are CLOCK_MONOTONIC of the control host in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, field

from liveupdate.model.base import Row, Value
from liveupdate.model.costs import HopCosts, KeptTables
from liveupdate.model.guest_device_use import GuestUse, JournalFacts
from liveupdate.model.iommu_samples import (
    BindingSample,
    ConfigFacts,
    DeviceEvent,
    IommuWatch,
    TableSample,
    UnitSample,
    WatchedDevice,
)
from liveupdate.model.vcpu_state import VcpuState
from liveupdate.model.vm_state import StateFacts


class Artifact(Value, frozen=True, kw_only=True):
    """A raw file of the run directory that parsed evidence was made from."""

    path: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Meta(ge=0)]


#: stands for the file of bytes that were not stored yet
UNSTORED = Artifact(path="", sha256="", size_bytes=0)


class KernelFacts(Value, frozen=True, kw_only=True):
    """What a running kernel of the host under update reports of itself (inside view)."""

    boot_id: str
    release: str
    build_id: str
    cmdline: str
    #: KVM_GET_TSC_KHZ; None when /dev/kvm could not be asked
    tsc_khz: int | None
    #: "KHO: found kexec handover data" in the log
    kho_found: bool
    #: N of "KHO: exec from: RELEASE (count N)"; 0 on a cold boot
    generation: int
    #: N of "Retrieved live update data, liveupdate number: N"
    luo_number: int | None
    #: /dev/liveupdate exists
    liveupdate: bool
    mem_free_bytes: int
    preserved_bytes: int | None
    scratch_bytes: int | None
    #: MemAvailable of /proc/meminfo
    mem_available_bytes: int | None = None


class SessionFacts(Value, frozen=True, kw_only=True):
    """One LUO session as the incoming agent found it; ``error`` None: it was retrieved whole."""

    name: str
    error: str | None
    tokens: int
    retrieve_ns: int


class PageDigests(Value, frozen=True, kw_only=True):
    """XXH3-64 of every page of a guest, little-endian u64 each, in guest-physical order."""

    pages: int
    artifact: Artifact
    began_ns: int
    ended_ns: int
    digests: bytes = b""

    @classmethod
    def of(cls, digests: bytes, began_ns: int, ended_ns: int) -> PageDigests:
        """Make one of what was taken between two times."""
        pages = len(digests) // 8
        return cls(
            pages=pages, artifact=UNSTORED, began_ns=began_ns, ended_ns=ended_ns, digests=digests
        )


class PageFrames(Value, frozen=True, kw_only=True):
    """Page frame numbers of a guest's pages as a kernel's pagemap gave them, u64 LE each."""

    pages: int
    artifact: Artifact
    pfns: bytes = b""

    @classmethod
    def of(cls, pfns: bytes) -> PageFrames:
        """Make one of what pagemap gave."""
        return cls(pages=len(pfns) // 8, artifact=UNSTORED, pfns=pfns)


class GuestMemory(Value, frozen=True, kw_only=True):
    """Digests from outside and placement from inside of one guest over one hop."""

    guest: str
    #: right after the vCPUs stopped
    freeze: PageDigests | None = None
    #: while the incoming kernel booted, before the guest ran again
    boot: PageDigests | None = None
    #: by the outgoing and by the incoming kernel
    pfns_before: PageFrames | None = None
    pfns_after: PageFrames | None = None
    state: StateFacts | None = None


class Tick(Row, frozen=True):
    """One reading of a guest's tick page, taken from outside."""

    host_ns: int
    boot: int
    seq: int
    tsc: int
    monotonic_ns: int
    boottime_ns: int
    realtime_ns: int


class Echo(Row, frozen=True):
    """One network echo request; ``received_ns`` None: never answered."""

    seq: int
    sent_ns: int
    received_ns: int | None
    boot: int | None


class JournalSample(Row, frozen=True):
    """Newest valid journal record on the guest's disk, read from outside."""

    host_ns: int
    seq: int


class PatternFacts(Value, frozen=True, kw_only=True):
    """What the payload found when it verified its own pattern after the update (inside view)."""

    pages: int
    bad: int


class AgentPing(Row, frozen=True, kw_only=True):
    """A QEMU guest agent answer of a user's own image: guest's realtime clock, host time."""

    host_ns: int
    realtime_ns: int | None
    #: when it was asked; None: a run directory of a version that did not say
    asked_ns: int | None = None


class Watched(Value, frozen=True, kw_only=True):
    """When a guest was watched. Silence outside of this time proves nothing."""

    began_ns: int
    ended_ns: int
    #: longest time between two looks at the tick page (a control host that was too busy to look)
    longest_hole_ns: int


class GuestTrace(Value, frozen=True, kw_only=True):
    """Liveness of one guest over one hop."""

    guest: str
    #: what the VMM says ("running"); proves nothing by itself
    vmm_status: str | None = None
    ticks: tuple[Tick, ...] = ()
    echoes: tuple[Echo, ...] = ()
    journal: tuple[JournalSample, ...] = ()
    #: scan before the hop: what was durable then must still be there afterwards
    journal_before: JournalFacts | None = None
    journal_after: JournalFacts | None = None
    pattern: PatternFacts | None = None
    agent_pings: tuple[AgentPing, ...] = ()
    #: None: not known when it was looked at, so that nothing follows from silence
    watched: Watched | None = None
    vcpus: tuple[VcpuState, ...] = ()
    artifacts: tuple[Artifact, ...] = ()


class FrameSent(Row, frozen=True):
    """One frame sent to a device.

    ``sent_ns`` None: its wire did not take it, so it was never sent.
    """

    number: int
    due_ns: int
    sent_ns: int | None


class FrameAccount(Value, frozen=True, kw_only=True):
    """What a device's driver counted since it was started (inside view); all frames are numbered.

    ``received`` counts each good frame once; ``expected`` is the next number in order.
    """

    received: int
    missing: int
    duplicate: int
    reordered: int
    damaged: int
    foreign: int
    first: int
    expected: int
    #: first and last number of each run that is missing, the first few of them
    gaps: tuple[tuple[int, int], ...] = ()


class Landed(Value, frozen=True, kw_only=True):
    """What the incoming agent found in a ring before its kernel had touched the device."""

    host_ns: int
    found: int
    #: numbers of the first and the last frame found
    first: int | None
    last: int | None
    #: there was no descriptor left
    is_full: bool
    #: ``liveupdate_keep_dma``; None: the incoming kernel has no such thing
    keep: str | None
    #: PCI command register
    command: int | None


class DeviceFacts(Value, frozen=True, kw_only=True):
    """One passed-through device over one hop."""

    device: str
    bdf: str
    #: at the beginning of the hop, when nothing is on its way
    before: FrameAccount | None
    #: when the outgoing agent looked for the last time
    frozen: FrameAccount | None
    frozen_ns: int | None
    landed: Landed | None
    #: when the incoming kernel had taken the device over, and its state then
    adopted_ns: int | None
    keep: str | None
    #: at the end of the hop, when nothing is on its way
    after: FrameAccount | None
    #: why its DMA was not kept, as the outgoing agent was told
    not_kept: str | None = None
    #: why the incoming agent could not go on with it
    error: str | None = None
    #: a guest has it, and the agent's driver counts nothing; None: the agent drives it
    use: GuestUse | None = None


class DeviceTrace(Value, frozen=True, kw_only=True):
    """One device over one hop, as its driver and the control host saw it."""

    facts: DeviceFacts | None = None
    frames: tuple[FrameSent, ...] = ()
    artifacts: tuple[Artifact, ...] = ()


class VmmStatus(Value, frozen=True, kw_only=True):
    """What a guest's VMM reports of it; None: it did not say."""

    status: str | None


class SshFacts(Value, frozen=True, kw_only=True):
    """What the incoming kernel reports over SSH; None: it could not be read."""

    boot_id: str | None
    nonce_ok: bool | None


class Mark(Value, frozen=True, kw_only=True):
    """When a guest was paused or resumed."""

    #: "paused" or "resumed"
    what: str
    guest: str
    at_ns: int


class Phase(Value, frozen=True, kw_only=True):
    """One timed phase of a hop; ``guest`` is "" for those of the host."""

    hop: int
    name: str
    began_ns: int
    ended_ns: int
    guest: str = ""


class MappingFacts(Value, frozen=True, kw_only=True):
    """One requester's translation at one moment.

    :ivar moment: "before" the freeze or "after" the resume.
    :ivar view: "outside" (walked in RAM) or "inside" (what the host says).
    :ivar faults: what could not be followed, as text.
    :ivar runs: :func:`liveupdate.formats.iommu.pack_runs`, 32 bytes each.
    """

    requester: str
    moment: str
    view: str
    taken_ns: int
    took_ns: int
    translation: str
    domain_id: int | None
    top: int
    levels: int
    access: int
    faults: tuple[str, ...]
    artifact: Artifact
    runs: bytes = b""


class IommuEvidence(Value, frozen=True, kw_only=True):
    """Everything seen of the watched devices and their translation over one hop."""

    devices: tuple[WatchedDevice, ...] = ()
    watch: IommuWatch | None = None
    samples: tuple[UnitSample, ...] = ()
    bindings: tuple[BindingSample, ...] = ()
    tables: tuple[TableSample, ...] = ()
    events: tuple[DeviceEvent, ...] = ()
    mappings: tuple[MappingFacts, ...] = ()
    configs: tuple[ConfigFacts, ...] = ()
    #: None: the outgoing kernel kept no tables, or did not say so
    kept: KeptTables | None = None


class Struck(Value, frozen=True, kw_only=True):
    """What a fault changed, as it was read after the strike.

    :ivar where: an address, a process id, a path, a register.
    :ivar before: as it was read before the strike; memory in hexadecimal.
    :ivar after: as it was read back.
    :ivar at_ns: when ``after`` was read, or when the host's report of it arrived.
    :ivar view: "outside" (read by the control host) or "inside" (what the host says).
    """

    what: str
    where: str
    before: str
    after: str
    at_ns: int
    view: str
    #: the fault's name
    fault: str = ""


class HopEvidence(Value, frozen=True, kw_only=True):
    """Everything observed over one kexec."""

    number: int
    before: KernelFacts | None = None
    after: KernelFacts | None = None
    sessions: tuple[SessionFacts, ...] = ()
    memory: tuple[GuestMemory, ...] = ()
    guests: tuple[GuestTrace, ...] = ()
    phases: tuple[Phase, ...] = ()
    #: host time at which each guest's vCPUs were stopped and went on
    paused_ns: Mapping[str, int] = field(default_factory=dict)
    resumed_ns: Mapping[str, int] = field(default_factory=dict)
    #: by name
    devices: Mapping[str, DeviceTrace] = field(default_factory=dict)
    #: boot_id and nonce as read over SSH, the second way in; None: could not be read
    ssh_boot_id: str | None = None
    ssh_nonce_ok: bool | None = None
    costs: HopCosts = field(default_factory=HopCosts)
    #: what faults changed
    struck: tuple[Struck, ...] = ()
    #: None: nothing of a device or an IOMMU was looked at
    iommu: IommuEvidence | None = None
    #: what slots without a field of their own have, by path
    more: Mapping[str, object] = field(default_factory=dict)


class Incident(Value, frozen=True, kw_only=True):
    """Something that went wrong while the plan was carried out, as it was seen.

    ``kind``: panic, reset (the machine was reset, not kexec'ed), exited, lost-agent, lost-ssh,
    lost-qmp, vmm-lost, freeze-refused, restore-failed, deadline, harness, and fault (a fault was
    injected as planned: a note). ``hop`` 0 is before the first.
    """

    kind: str
    hop: int
    text: str
    guest: str = ""


class Provenance(Value, frozen=True, kw_only=True):
    """What the run was made with: tool, host, images and command lines."""

    tool_version: str
    run_id: str
    started_utc: str
    #: the command line, the program's name first
    argv: tuple[str, ...]
    accel: str
    #: why that accelerator was chosen
    accel_reason: str
    #: what query-kvm said of the machine in use; None: not asked
    kvm_enabled: bool | None
    start: str
    qemu_version: str
    qemu_argv: tuple[str, ...]
    guest_qemu_version: str | None
    control_host: Mapping[str, str]
    images: Mapping[str, str]
    source: Mapping[str, str] = field(default_factory=dict)


class Evidence(Value, frozen=True, kw_only=True):
    """The whole of a run's facts."""

    provenance: Provenance | None
    hops: tuple[HopEvidence, ...]
    incidents: tuple[Incident, ...] = ()
    #: files of the run directory that could not be read back, with the reason
    unreadable: Mapping[str, str] = field(default_factory=dict)
    #: the update was given up, and the guests were seen alive on the outgoing kernel
    rolled_back: bool = False
    #: head of the chain of the run directory's index; None: an earlier version wrote it, without
    #: one; "": it was not read from a run directory
    seal: str | None = ""
