# SPDX-License-Identifier: Apache-2.0
"""Every key that a scenario may have, as a table; the loader, the dumper and docs/scenario.md
follow it.

The defaults are in :mod:`liveupdate.model.scenario` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from liveupdate.core.units import GIB, KIB, MIB, PAGE_BYTES
from liveupdate.model.device_models import DEVICE_KINDS
from liveupdate.model.guest_kinds import GUEST_KINDS
from liveupdate.model.scenario import CONTINUOUS, MAX_GUEST_BYTES, MIN_GUEST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. ``low`` and ``high`` are inclusive, in bytes for sizes and seconds for durations."""

    name: str
    #: field of the dataclass it fills
    attribute: str
    #: text, words, name, address, bdf, path, target, choice, size, duration, integer, number or
    #: boolean
    kind: str
    doc: str
    low: float = 0
    high: float = 0
    #: a size must be a multiple of this
    step: int = 1
    choices: tuple[str, ...] = ()
    #: "none" removes the value
    nullable: bool = False


def _key(name: str, kind: str, doc: str, **rest: object) -> Key:
    suffix = {"size": "_bytes", "duration": "_s"}.get(kind, "")
    return Key(name=name, attribute=name + suffix, kind=kind, doc=doc, **rest)  # type: ignore[arg-type]


def _duration(name: str, low_s: float, high_s: float, doc: str) -> Key:
    return _key(name, "duration", doc, low=low_s, high=high_s)


TOP = (
    _key("name", "name", "shown in reports; the file's own name when absent"),
    _key("target", "target", "kind of host under update"),
    _key("accel", "choice", "accelerator of the host under update", choices=("auto", "kvm", "tcg")),
    _key("mechanism", "text", "mechanism that carries the guests' memory across the kexec"),
    _key("hops", "integer", "number of kexecs in a row (A to B to A …)", low=1, high=100),
    _key("kernel", "path", "bzImage of the outgoing kernel; the built one when absent"),
    _key("next_kernel", "path", "bzImage of the incoming kernel; the built one when absent"),
    _key("kernel_tree", "path", "in place of kernel: a source tree, a build of one, a package"),
    _key("next_kernel_tree", "path", "in place of next_kernel; kernel_tree when absent"),
    _key("kernel_config", "path", "Kconfig fragment on top of the configuration of these trees"),
    _key("calibration", "boolean", "hand the TSC calibration to the incoming kernel"),
    _key(
        "clock",
        "choice",
        "what guests' clocks do while the guests do not run",
        choices=("stopped", CONTINUOUS),
    ),
    _key(
        "vcpu_state",
        "boolean",
        "compare the vCPUs' registers; `false` measures a run without that cost",
    ),
    _key("fault", "text", "a fault to inject, see `liveupdate faults`", nullable=True),
    _key(
        "fault_seed",
        "integer",
        "chooses the place that the fault strikes; when absent, a new one for each run",
        high=(1 << 32) - 1,
        nullable=True,
    ),
    _key("cold", "boolean", "boot the host; do not load a saved one"),
    _key("jump_anyway", "boolean", "run it even if `liveupdate compat` says that guests are lost"),
)

GUEST = (
    _key("name", "name", "unique, at most 20 characters"),
    _key(
        "memory",
        "size",
        "RAM",
        low=MIN_GUEST_BYTES,
        high=MAX_GUEST_BYTES,
        step=2 * MIB,
    ),
    _key("vcpus", "integer", "virtual CPUs", low=1, high=16),
    _key(
        "pattern",
        "size",
        "RAM filled with the seeded pattern; an eighth of it, at most 8 MiB, when absent",
        low=PAGE_BYTES,
        high=MAX_GUEST_BYTES,
        step=PAGE_BYTES,
        nullable=True,
    ),
    _key("disk", "size", "journal disk", low=64 * KIB, high=16 * GIB, step=PAGE_BYTES),
    _key("image", "path", "a disk image of your own (raw or qcow2) instead of the payload"),
    _key(
        "liveness",
        "choice",
        "how the guest is seen to be alive",
        choices=tuple(GUEST_KINDS),
    ),
    _key("address", "address", "IPv4 address on the guests' network, for liveness = \"network\""),
)  # fmt: skip

DEVICE = (
    _key("name", "name", "unique, at most 20 characters"),
    _key("kind", "choice", "what it is", choices=DEVICE_KINDS),
    _key("guest", "name", "the guest that gets it; when absent, the agent on the host drives it"),
    _key(
        "tier",
        "choice",
        "whether its DMA continues or stops at the kexec",
        choices=("continuous", "quiesce"),
    ),
    _key("bdf", "bdf", "its PCI address on the host; the first free one of its kind when absent"),
    _key("access", "choice", "how VFIO is used", choices=("container", "cdev")),
    _key(
        "ring",
        "integer",
        "receive descriptors; reads in flight (nvme, at most 1023 of them)",
        low=64,
        high=4096,
    ),
    _key(
        "rate",
        "integer",
        "frames per second that are sent to it at most, or that it reads (nvme)",
        low=1,
        high=5000,
    ),
    _key(
        "mapped",
        "size",
        "more memory mapped for it, in scattered pages of 4 KiB",
        low=PAGE_BYTES,
        high=GIB,
        step=PAGE_BYTES,
        nullable=True,
    ),
)

IOMMU = (
    _key("kind", "choice", "kind of IOMMU", choices=("intel", "amd", "none")),
    _key("scalable", "boolean", "scalable mode (PASID tables) of an Intel IOMMU"),
)

HOST = (
    _key(
        "memory",
        "size",
        "RAM; when absent, what the guests need plus 1.25 GiB, at least 2 GiB",
        low=GIB,
        high=1024 * GIB,
        step=2 * MIB,
        nullable=True,
    ),
    _key("vcpus", "integer", "virtual CPUs", low=1, high=64),
    _key("append", "words", "added to both kernels' command lines"),
    _key("next_append", "words", "added to the incoming kernel's command line only"),
    _key(
        "fragment",
        "number",
        "share of free 2 MiB blocks to break up before guests start; needs a cold start",
        low=0,
        high=1,
    ),
)

TIMEOUTS = (
    _duration("boot", 1, 86400, "from the start of the host to its agent's first message"),
    _duration("guest_boot", 1, 86400, "from the start of a guest to its being ready"),
    _duration("prepare", 1, 86400, "the brownout"),
    _duration("jump", 1, 86400, "from the order to jump to the incoming kernel's first line"),
    _duration("incoming", 1, 86400, "from that line to the agent's first message"),
    _duration("restore", 1, 86400, "from that message until all guests run or are lost"),
    _duration("total", 1, 86400 * 7, "the whole run"),
)

OBSERVE = (
    _duration("before", 0.1, 3600, "how long guests are watched before the update"),
    _duration("after", 0.5, 86400, "how long guests are watched after it"),
    _duration("tick_sample", 0.001, 1, "interval between two readings of a tick page"),
    _duration("echo_interval", 0.001, 1, "interval between two network echoes"),
    _key(
        "memory", "boolean", "digest the guests' memory; `false` measures a run without that cost"
    ),
    _key(
        "hugetlb",
        "boolean",
        "measure how long hugetlbfs takes to allocate the guests' RAM, before they start",
    ),
)

BUDGET = (
    _key(
        "blackout",
        "duration",
        "longest blackout of any guest; no bound when absent",
        low=0.001,
        high=86400,
        nullable=True,
    ),
    _key(
        "clock_ppm", "number", "rate error of a guest's clock, parts per million", low=1, high=1e6
    ),
    _duration("stall", 0.01, 3600, "longest silence of a guest outside the blackout"),
)

SECTIONS: Mapping[str, tuple[Key, ...]] = MappingProxyType(
    {
        "": TOP,
        "host": HOST,
        "iommu": IOMMU,
        "timeouts": TIMEOUTS,
        "observe": OBSERVE,
        "budget": BUDGET,
    }
)
"""Keys by table."""

ARRAYS: Mapping[str, tuple[Key, ...]] = MappingProxyType({"guest": GUEST, "device": DEVICE})
"""Keys by array of tables."""
