# SPDX-License-Identifier: Apache-2.0
"""What will be done, fully resolved: nothing after it reads a default or the environment."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from liveupdate.model.base import Value
from liveupdate.model.scenario import Budget, DeviceSpec, GuestSpec, Observation, Timeouts
from liveupdate.model.targets import TARGETS, Capability

TSC_KHZ = "{tsc_khz}"
"""Stands in :attr:`Hop.append` for the outgoing kernel's calibration, known only at run time."""
TSC_KHZ_SKEWED = "{tsc_khz_skewed}"
"""The same, 3 % too fast."""


class KernelImage(Value, frozen=True, kw_only=True):
    """A bootable kernel, as read from its bytes by :mod:`liveupdate.formats.kernelimage`."""

    path: str
    sha256: str
    release: str
    #: hex of the GNU build id note, or "" when the image has none
    build_id: str
    #: compatible strings found in it, such as ("kho-v4", "luo-v5", "memfd-v2")
    abi: tuple[str, ...] = ()
    #: what the testbed needs and its configuration lacks, such as "VIRTIO_BLK=m"
    lacks: tuple[str, ...] | UnsetType = UNSET
    #: keys of :data:`liveupdate.formats.kernelimage.FEATURES`
    features: tuple[str, ...] | UnsetType = UNSET
    #: directory with our modules for it; "": there are none, as for a kernel of the user's
    modules: str = ""

    def has_feature(self, name: str) -> bool:
        """Return whether the image is known to have a feature."""
        return self.features is not UNSET and name in self.features


class ImageSet(Value, frozen=True, kw_only=True):
    """The built images a run stands on; paths into the image cache."""

    outgoing: KernelImage
    incoming: KernelImage
    #: the guests' kernel (may be the outgoing one)
    guest_kernel: str
    guest_initrd: str
    rootfs: str
    rootfs_sha256: str
    ssh_client_key: str
    ssh_host_key_pub: str
    #: the kernels in whose place a fault has put others, by "outgoing" and "incoming"
    replaced: Mapping[str, KernelImage] | UnsetType = UNSET


class MachineSpec(Value, frozen=True, kw_only=True):
    """The host under update as a QEMU machine; input of the pure argv builder."""

    accel: str
    memory_bytes: int
    vcpus: int
    #: the guests' journal disks, one (serial, bytes) per guest
    disks: tuple[tuple[str, int], ...]
    iommu: str = "intel"
    #: scalable mode of an Intel IOMMU
    scalable: bool = False
    #: passed-through devices, one (name, kind) per device, in the order of their bus numbers
    devices: tuple[tuple[str, str], ...] = ()
    qemu: str = "qemu-system-x86_64"


class Region(Value, frozen=True, kw_only=True):
    """Physical memory of the host under update that is set aside at boot."""

    #: None: the outgoing kernel chooses
    start: int | None
    size_bytes: int


class Hop(Value, frozen=True, kw_only=True):
    """One kexec: the kernel that comes in and the command line it gets."""

    number: int
    incoming: KernelImage
    append: str
    #: "file" is kexec -s; "legacy" is kexec -c, which carries no KHO
    loader: str = "file"


class Expected(Value, frozen=True, kw_only=True):
    """The result that a run with an injected fault must have; for its test, the judge does not
    read it.
    """

    check: str
    status: str
    exit_code: int


class FaultPlan(Value, frozen=True, kw_only=True):
    """The fault to inject; ``name`` is a key of :data:`liveupdate.faults.table.FAULTS`."""

    name: str
    expected: Expected
    #: a run without a record of its strike is an ERROR; an earlier version did not say so
    proves: bool | UnsetType = UNSET
    #: chooses the place that it strikes; UNSET: a new one for each run
    seed: int | UnsetType = UNSET


class Plan(Value, frozen=True, kw_only=True):
    """The whole of what will be done."""

    scenario: str
    target: str
    mechanism: str
    images: ImageSet
    machine: MachineSpec
    boot_append: str
    hops: tuple[Hop, ...]
    guests: tuple[GuestSpec, ...]
    calibration: bool
    timeouts: Timeouts
    observe: Observation
    budget: Budget
    devices: tuple[DeviceSpec, ...] = ()
    fault: FaultPlan | None = None
    #: where the target is: libvirt's URI, a lab machine's description; "": its kind says it all
    place: str = ""
    #: serials or /dev paths of the guests' disks on a machine of a lab; empty: named as the guests
    guest_disks: tuple[str, ...] = ()
    cold: bool = False
    #: share of the host's free blocks of 2 MiB to be spoilt before guests are started
    fragment: float = 0.0
    #: check id to the reason why it is skipped; every other id is expected
    skips: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    #: which parts of the kernel have to bear witness to the handover ("kho", "luo")
    witnesses: tuple[str, ...] = ("kho", "luo")
    #: None: the mechanism takes its memory from anywhere
    region: Region | None = None
    #: whether the VM state is digested; an earlier version did not, and did not say so
    state_digests: bool | UnsetType = UNSET
    #: whether the registers of vCPUs are read; an earlier version did not, and did not say so
    vcpu_state: bool | UnsetType = UNSET
    #: ``continuous``: guests' clocks go on while the guests do not run; anything else: they do not
    clock: str | UnsetType = UNSET

    def target_has(self, capability: Capability) -> bool:
        """Return whether the kind of target has a capability; an unknown kind has none."""
        kind = TARGETS.get(self.target)
        return kind is not None and capability in kind.capabilities
