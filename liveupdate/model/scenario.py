# SPDX-License-Identifier: Apache-2.0
"""The user's request: frozen, made from TOML by :mod:`liveupdate.scenario.load`."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import field

from liveupdate.core.units import GIB, MIB
from liveupdate.model.base import Value
from liveupdate.model.guest_kinds import GUEST_KINDS, UNKNOWN, GuestKind
from liveupdate.model.targets import DEFAULT

#: the value of :attr:`Scenario.clock` with which guests' clocks go on while the guests do not run
CONTINUOUS = "continuous"


class GuestSpec(Value, frozen=True, kw_only=True):
    """One guest of the host under update."""

    name: str
    memory_bytes: int = 256 * MIB
    vcpus: int = 1
    #: how much of the RAM the payload fills with its pattern; None: an eighth, at most 8 MiB
    pattern_bytes: int | None = None
    #: size of the journal disk
    disk_bytes: int = 16 * MIB
    #: a user's own disk image (raw or qcow2) instead of our payload
    image: str | None = None
    #: its kind, a key of :data:`liveupdate.model.guest_kinds.GUEST_KINDS`: how life is observed
    liveness: str = "payload"
    #: IPv4 address of a user's own image on the wire, for liveness "network"
    address: str | None = None

    @property
    def kind(self) -> GuestKind:
        """The row of its kind."""
        return GUEST_KINDS.get(self.liveness, UNKNOWN)


class DeviceSpec(Value, frozen=True, kw_only=True):
    """One device that is passed through: to a driver in user space on the host, or to a guest."""

    name: str
    kind: str = "igb"
    #: the guest whose own drivers use it; None: the agent's driver on the host does
    guest: str | None = None
    #: continuous: its DMA continues through the kexec; quiesce: its driver releases it before
    tier: str = "continuous"
    #: its address in the host under update; None: the first of its kind that no other entry took
    bdf: str | None = None
    #: how it is opened: "container" (VFIO group and type1 IOMMU) or "cdev" (iommufd)
    access: str = "container"
    #: receive descriptors, or commands in flight
    ring: int = 4096
    #: frames per second that the control host sends it, at most, or lets it read
    rate: int = 200
    #: memory that is mapped for it in scattered pages beside what it works on
    mapped_bytes: int | None = None


class IommuSpec(Value, frozen=True, kw_only=True):
    """The IOMMU of the host under update."""

    kind: str = "intel"
    scalable: bool = False


class HostSpec(Value, frozen=True, kw_only=True):
    """The host under update."""

    #: None: what the guests need plus what the host needs itself (the planner says how much)
    memory_bytes: int | None = None
    vcpus: int = 2
    #: appended to both kernels' command lines
    append: str = ""
    #: appended to the incoming kernel's only
    next_append: str = ""
    #: how much of the free memory is made unusable for pages of 2 MiB before guests are started
    fragment: float = 0.0


class Timeouts(Value, frozen=True, kw_only=True):
    """Deadlines in seconds. Each wait names itself when it runs out."""

    boot_s: float = 120.0
    guest_boot_s: float = 120.0
    prepare_s: float = 120.0
    jump_s: float = 30.0
    incoming_s: float = 60.0
    restore_s: float = 60.0
    total_s: float = 900.0


class Observation(Value, frozen=True, kw_only=True):
    """For how long and how often liveness is watched."""

    before_s: float = 1.0
    after_s: float = 3.0
    tick_sample_s: float = 0.005
    echo_interval_s: float = 0.02
    #: memory digests can be left out to measure what they cost
    memory: bool = True
    #: hugetlbfs is timed, too, for the same amount of memory as the guests'
    hugetlb: bool = False


class Budget(Value, frozen=True, kw_only=True):
    """Limits that the user sets; None means no limit."""

    blackout_s: float | None = None
    #: rate error of the guest's clock after the update, parts per million
    clock_ppm: float = 2000.0
    #: longest silence of a live guest outside the blackout
    stall_s: float = 1.0


class Scenario(Value, frozen=True, kw_only=True):
    """The whole of what the user asked for."""

    name: str = "default"
    target: str = DEFAULT
    accel: str = "auto"
    mechanism: str = "luo-memfd"
    hops: int = 1
    guests: tuple[GuestSpec, ...] = (GuestSpec(name="vm0"),)
    devices: tuple[DeviceSpec, ...] = ()
    host: HostSpec = HostSpec()
    iommu: IommuSpec = IommuSpec()
    kernel: str | None = None
    next_kernel: str | None = None
    #: source trees, builds or packages that the kernels are made from, and a fragment for them
    kernel_tree: str | None = None
    next_kernel_tree: str | None = None
    kernel_config: str | None = None
    #: hand the TSC calibration of the outgoing kernel to the incoming one
    calibration: bool = True
    #: what guests' clocks do while the guests do not run: stopped, continuous
    clock: str = "stopped"
    #: compare the vCPUs' registers; can be left out to measure what it costs
    vcpu_state: bool = True
    fault: str | None = None
    #: None: a new one for each run
    fault_seed: int | None = None
    cold: bool = False
    #: run it even if the guests would be lost between these kernels
    jump_anyway: bool = False
    timeouts: Timeouts = Timeouts()
    observe: Observation = Observation()
    budget: Budget = Budget()
    #: where each key came from: key path to "file:line" or the option's name
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_own_incoming(self) -> bool:
        """Whether the user brought the incoming kernel, which may not know the testbed's disks."""
        return self.next_kernel is not None or self.next_kernel_tree is not None


MIN_GUEST_BYTES = 96 * MIB
MAX_GUEST_BYTES = 64 * GIB
