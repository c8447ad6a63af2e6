# SPDX-License-Identifier: Apache-2.0
"""The faults a run can inject, and what each must come to.

A table and nothing else: how a fault is carried out is :mod:`liveupdate.faults.strikes`'s business,
and the judge never reads it. Each row is one test under ``tests/vm``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from liveupdate.model.plan import Expected

DEFAULT = "default"
"""The scenario of a run that names none: one guest, one kexec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. ``where``: "plan" changes what is planned, else the moment at which it strikes."""

    name: str
    what: str
    where: str
    expected: Expected
    #: the shipped scenario that has what it strikes; a run that names no scenario takes it
    scenario: str = DEFAULT


def _fault(name: str, where: str, what: str, check: str, status: str, exit_code: int) -> Fault:
    return Fault(
        name=name,
        what=what,
        where=where,
        expected=Expected(check=check, status=status, exit_code=exit_code),
    )


def _device_fault(
    name: str, where: str, what: str, check: str, status: str, exit_code: int
) -> Fault:
    return replace(_fault(name, where, what, check, status, exit_code), scenario="vfio-continuous")


def _region_fault(
    name: str, where: str, what: str, check: str, status: str, exit_code: int
) -> Fault:
    return replace(_fault(name, where, what, check, status, exit_code), scenario="reserved-region")


_TABLE = (
    # --- memory
    _fault(
        "flip-bit",
        "blackout",
        "one bit of one guest page is flipped from outside during the blackout",
        "memory.content",
        "FAIL",
        1,
    ),
    _fault(
        "move-page",
        "brownout",
        "one guest page comes back at another physical address, same content",
        "memory.placement",
        "FAIL",
        1,
    ),
    # --- handover
    _fault("kho-off", "plan", "the incoming kernel gets kho=off", "handover.session", "FAIL", 1),
    _fault(
        "liveupdate-off",
        "plan",
        "the incoming kernel gets liveupdate=off",
        "handover.session",
        "FAIL",
        1,
    ),
    _fault(
        "kexec-load",
        "plan",
        "the kernel is loaded by kexec_load (no -s), which carries no KHO",
        "handover.kho",
        "FAIL",
        1,
    ),
    _fault(
        "close-session",
        "brownout",
        "the guest's LUO session is closed before the jump",
        "handover.session",
        "FAIL",
        1,
    ),
    _fault(
        "freeze-refused",
        "brownout",
        "the kernel refuses to preserve the VM state",
        "handover.session",
        "FAIL",
        5,
    ),
    _fault(
        "kernel-without-kho",
        "plan",
        "the incoming kernel is built without KEXEC_HANDOVER",
        "handover.kho",
        "FAIL",
        1,
    ),
    _fault(
        "luo-abi-skew",
        "plan",
        "the incoming kernel has another LUO ABI string",
        "handover.kho",
        "FAIL",
        1,
    ),
    _fault(
        "panic-incoming",
        "plan",
        "the incoming kernel panics while it boots",
        "handover.kho",
        "FAIL",
        1,
    ),
    _fault(
        "hang-incoming",
        "plan",
        "the incoming kernel never gets to its agent",
        "handover.kho",
        "ERROR",
        124,
    ),
    _fault(
        "hang-outgoing",
        "brownout",
        "the outgoing kernel hangs after the freeze and never jumps",
        "handover.kho",
        "ERROR",
        124,
    ),
    _fault(
        "cold-reset", "jump", "the machine is reset instead of kexec'ed", "handover.kho", "FAIL", 1
    ),
    # --- memory that was set aside
    _region_fault(
        "region-missing",
        "plan",
        "the incoming kernel is not told of the reserved region",
        "handover.session",
        "FAIL",
        1,
    ),
    _region_fault(
        "region-size",
        "plan",
        "the incoming kernel is told a smaller region",
        "handover.session",
        "FAIL",
        1,
    ),
    _region_fault(
        "region-corrupt",
        "blackout",
        "one bit of what describes the region's content is flipped from outside",
        "handover.session",
        "FAIL",
        1,
    ),
    _region_fault(
        "region-version",
        "blackout",
        "what describes the region's content says another version, changed from outside",
        "handover.session",
        "FAIL",
        1,
    ),
    _region_fault(
        "region-full",
        "brownout",
        "the region is full when the VM state has to go in",
        "handover.session",
        "FAIL",
        5,
    ),
    _region_fault(
        "wrong-pointer",
        "brownout",
        "the incoming kernel is pointed a page beside what the outgoing one has left",
        "handover.session",
        "FAIL",
        1,
    ),
    # --- processes on the host under update
    _fault(
        "kill-agent",
        "brownout",
        "the agent is killed before the jump",
        "handover.session",
        "ERROR",
        3,
    ),
    _fault(
        "kill-vmm",
        "resumed",
        "the VMM is killed after the guest was resumed",
        "guest.liveness",
        "FAIL",
        1,
    ),
    # --- guests
    _fault(
        "guest-dead-timer",
        "resumed",
        "the guest's timers stop while its VMM says running",
        "guest.liveness",
        "FAIL",
        1,
    ),
    _fault(
        "guest-reboot",
        "resumed",
        "the guest is reset after it was resumed",
        "guest.liveness",
        "FAIL",
        1,
    ),
    _fault(
        "guest-disk-lost",
        "blackout",
        "the guest's disk is emptied during the blackout",
        "guest.storage",
        "FAIL",
        1,
    ),
    _fault(
        "clock-jump",
        "resumed",
        "the guest's wall clock is stepped by 30 s after the update",
        "guest.clock",
        "FAIL",
        1,
    ),
    _fault(
        "tsc-skew",
        "plan",
        "no calibration handover, and the incoming kernel believes in a TSC that is 3 % too fast",
        "guest.clock",
        "FAIL",
        1,
    ),
    # --- devices
    _device_fault(
        "tamper-pte",
        "incoming",
        "one page-table entry of a device is changed from outside during the blackout",
        "iommu.mappings",
        "FAIL",
        1,
    ),
    _device_fault(
        "tamper-context",
        "incoming",
        "the context entry of a device is made not present from outside during the blackout",
        "iommu.translation",
        "FAIL",
        1,
    ),
    _device_fault(
        "drop-translation",
        "plan",
        "the incoming kernel is told to leave the IOMMU alone (intel_iommu=off)",
        "iommu.translation",
        "FAIL",
        1,
    ),
    # --- passed-through devices
    _device_fault(
        "stock-kernel",
        "plan",
        "both kernels are built without the option that keeps DMA running",
        "device.dma-continuity",
        "FAIL",
        1,
    ),
    _device_fault(
        "drop-frames",
        "blackout",
        "five frames get lost on their way to the device during the blackout",
        "device.dma-continuity",
        "FAIL",
        1,
    ),
    _device_fault(
        "map-unpreserved",
        "brownout",
        "the device gets a mapping of memory that nobody preserves",
        "handover.session",
        "FAIL",
        5,
    ),
    _device_fault(
        "corrupt-record",
        "blackout",
        "one bit of the record of kept DMA is flipped from outside before it is read",
        "device.dma-continuity",
        "FAIL",
        1,
    ),
    _device_fault(
        "record-version",
        "blackout",
        "the record of kept DMA says another version, with a checksum that is right",
        "device.dma-continuity",
        "FAIL",
        1,
    ),
    _device_fault(
        "reset-device",
        "brownout",
        "the incoming kernel resets the device before it is taken over",
        "device.dma-continuity",
        "FAIL",
        1,
    ),
    _device_fault(
        "dma-after-free",
        "brownout",
        "a page of the ring's buffers is released while the device may still write to it",
        "handover.session",
        "FAIL",
        5,
    ),
    # --- a guest's own devices
    replace(
        _fault(
            "guest-link-cut",
            "blackout",
            "the cable of a guest's own network card is pulled out during the blackout",
            "device.dma-continuity",
            "FAIL",
            1,
        ),
        scenario="vfio-quiesce",
    ),
    # --- the lab
    _fault(
        "ssh-drop",
        "blackout",
        "the way in by SSH is cut during the blackout",
        "handover.kho",
        "ERROR",
        3,
    ),
    _fault(
        "qmp-drop",
        "blackout",
        "the monitor connection is cut during the blackout",
        "handover.kho",
        "ERROR",
        3,
    ),
    _fault(
        "qemu-killed",
        "blackout",
        "the host under update's QEMU is killed",
        "handover.kho",
        "ERROR",
        3,
    ),
    _fault(
        "disk-full",
        "brownout",
        "the run directory's file system is full",
        "memory.content",
        "ERROR",
        3,
    ),
)

FAULTS: Mapping[str, Fault] = MappingProxyType({fault.name: fault for fault in _TABLE})
"""Every fault by name, in the order in which ``liveupdate faults`` lists them."""

DEVICE_FAULTS = tuple(fault.name for fault in _TABLE if fault.scenario == "vfio-continuous")
"""Those that need a device whose DMA goes on."""

GUEST_DEVICE_FAULTS = tuple(fault.name for fault in _TABLE if fault.scenario == "vfio-quiesce")
"""Those that need a guest's own network card."""
