# SPDX-License-Identifier: Apache-2.0
"""Scenario, images and facts about the control host to a :class:`Plan`.

Pure: no I/O, no environment. Whatever can be refused before anything is started is refused here, in
one line that names where the wish came from. A wish that is wrong by itself is a
:class:`ScenarioError`; one that this machine or these kernels cannot fulfil a :class:`PlanError`,
so that ``--bisect`` skips such a kernel and does not call it bad.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from liveupdate.core.errors import PlanError, ScenarioError
from liveupdate.core.suggest import suggest_or_list
from liveupdate.core.units import GIB, MIB, PAGE_BYTES, format_size
from liveupdate.faults.table import DEVICE_FAULTS, FAULTS, GUEST_DEVICE_FAULTS, Fault
from liveupdate.model.device_models import FED_KINDS
from liveupdate.model.plan import (
    FaultPlan,
    Hop,
    ImageSet,
    MachineSpec,
    Plan,
    Region,
)
from liveupdate.model.scenario import Scenario
from liveupdate.model.targets import CHECK_NEEDS, FAULT_NEEDS, split_target
from liveupdate.planning.devices import IOMMU_APPEND, can_be_saved, check_devices, mapped_bytes
from liveupdate.planning.kernels import check_kernels
from liveupdate.planning.reserved_region import fill_region, find_region, piece_bytes
from liveupdate.preserve import region as regions
from liveupdate.preserve.base import KHO, Requirements
from liveupdate.preserve.registry import MECHANISMS
from liveupdate.scenario.load import where

#: what the host under update needs beside its guests: kernel, tmpfs, agent, room for the incoming
#: kernel's image and KHO's scratch areas while the guests' memory stays where it is
HOST_OVERHEAD_BYTES = 1280 * MIB
#: with less than this an explicit host.memory cannot work
HOST_LEAST_BYTES = 512 * MIB
MIN_HOST_BYTES = 2 * GIB
#: a VMM's own memory beside the RAM of its guest
VMM_BYTES = 64 * MIB
#: what the control host must keep for itself: QEMU's own memory and ours
CONTROL_BYTES = 256 * MIB
#: logs, reports and traces of a run
RUN_BYTES = 64 * MIB
#: digests (freeze, boot) and page frame numbers (before, after), 8 bytes each for every page
EVIDENCE_PER_PAGE = 4 * 8
#: one line for each frame sent, for as long as a hop may take under TCG
EVIDENCE_PER_FRAME = 48
FRAMES_S = 60
#: arch/x86/include/asm/setup.h, COMMAND_LINE_SIZE without the final NUL
MAX_COMMAND_LINE = 2047

TSC_KHZ = "{tsc_khz}"
"""Stands in an append for the outgoing kernel's calibration, known only at run time."""
TSC_KHZ_SKEWED = "{tsc_khz_skewed}"
"""The same, 3 % too fast."""

BASE_APPEND = (
    "console=ttyS0 root=/dev/vda ro init=/liveupdate-init net.ifnames=0 panic=-1 loglevel=6"
)
#: An emulated timer that comes late makes the check of the IO-APIC's timer (check_timer() in
#: arch/x86/kernel/apic/io_apic.c) panic; seen in 3 boots under a loaded TCG. The emulated TSC is
#: constant, but TCG has no CPUID bit to say so, and a KVM that does not know it keeps the first,
#: rough calibration for its guests, whose timers die. And TCG may deliver an interrupt of a guest
#: twice, against which our kernels have a parameter that others ignore (both: docs/adr/0006).
TCG_APPEND = (
    "no_timer_check tsc=reliable setcpuid=constant_tsc,nonstop_tsc kvm_amd.exit_on_inject=1"
)
#: stock parameters of x86: arch/x86/kernel/tsc.c and arch/x86/kernel/cpu/common.c (docs/adr/0004)
CALIBRATION_APPEND = f"tsc_early_khz={TSC_KHZ} setcpuid=tsc_known_freq"

NO_DEVICE = "the scenario has no device whose DMA is to go on"
NO_IOMMU = "the scenario has no device whose translation is to be preserved"
IOMMU_CHECKS = ("iommu.translation", "iommu.mappings", "iommu.faults")
DEVICE_CHECKS = ("device.dma-continuity", "device.no-reset", "device.config-space")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What the planner must know of the control host; gathered by the CLI."""

    #: really working accelerator, as chosen by the probe guest
    accel: str
    ram_available_bytes: int
    #: free space where the run directory goes
    run_free_bytes: int
    qemu: str = "qemu-system-x86_64"
    #: where the target is when the scenario does not say, see :attr:`Plan.place`
    place: str = ""
    #: a lab machine's own command line, instead of our machine's
    append: str | None = None
    #: see :attr:`Plan.guest_disks`
    guest_disks: tuple[str, ...] = ()
    #: virtual sizes of users' own disk images, by path
    image_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HopChange:
    """What a fault that strikes in the plan does to the first hop."""

    #: words of the incoming command line to leave out, by their part before "="
    drop: tuple[str, ...] = ()
    add: str = ""
    loader: str = "file"
    #: the incoming kernel is told a region that is smaller by a section
    shrink: bool = False


PLAN_FAULTS: Mapping[str, HopChange] = MappingProxyType(
    {
        "kho-off": HopChange(drop=("kho",), add="kho=off"),
        "liveupdate-off": HopChange(drop=("liveupdate",), add="liveupdate=off"),
        "kexec-load": HopChange(loader="legacy"),
        "kernel-without-kho": HopChange(),
        "luo-abi-skew": HopChange(),
        "stock-kernel": HopChange(),
        # a missing init that was asked for by name is a panic, after everything else has come up
        "panic-incoming": HopChange(drop=("init",), add="init=/liveupdate-no-such-init"),
        # and a missing root disk with rootwait is waited for without end
        "hang-incoming": HopChange(drop=("root",), add="root=/dev/liveupdate-never rootwait"),
        "drop-translation": HopChange(drop=("intel_iommu",), add="intel_iommu=off"),
        "tsc-skew": HopChange(
            drop=("tsc_early_khz", "tsc"),
            # without nowatchdog the kernel finds out by the HPET and gives its TSC up
            add=f"tsc_early_khz={TSC_KHZ_SKEWED} setcpuid=tsc_known_freq tsc=nowatchdog",
        ),
        "region-missing": HopChange(drop=("memmap", "reserve_mem")),
        "region-size": HopChange(shrink=True),
    }
)

#: faults that need our payload in the first guest
PAYLOAD_FAULTS = ("guest-dead-timer", "guest-disk-lost", "clock-jump")
#: faults that only the memory digests can show
MEMORY_FAULTS = ("flip-bit", "disk-full")


def make_plan(scenario: Scenario, images: ImageSet, machine: MachineFacts) -> Plan:
    """Resolve everything; nothing after this reads a default or the environment.

    :raises ScenarioError: an unknown mechanism or fault, or wishes that contradict each other.
    :raises PlanError: the kernels or the control host cannot do it.
    """
    mechanism, fault = check_scenario(scenario)
    check_kernels(scenario, images, mechanism, fault)
    memory_bytes = host_memory(scenario, mechanism)
    target, place = split_target(scenario.target)
    if scenario.devices and "devices" not in target.capabilities:
        raise ScenarioError(
            f"target '{target.name}' cannot run a scenario with devices: {target.lacks['devices']}",
            where=where(scenario, "target"),
        )
    if scenario.iommu.kind != "intel" and target.name == "ssh":
        raise ScenarioError(
            "target 'ssh' has the IOMMU it has", where=where(scenario, "iommu.kind")
        )
    region = find_region(scenario, mechanism, memory_bytes)
    if region is not None and target.name == "ssh":
        raise ScenarioError(
            f"mechanism '{mechanism.name}' sets memory aside, and where there is room for it on a"
            " machine of a lab is not known",
            where=where(scenario, "mechanism"),
        )
    if "physical_memory" in target.capabilities:
        _check_room(scenario, machine, memory_bytes)
    elif machine.place:
        _check_lab(scenario, machine)
    spec = MachineSpec(
        accel=machine.accel,
        memory_bytes=memory_bytes,
        vcpus=scenario.host.vcpus,
        disks=tuple(
            (guest.name, machine.image_bytes.get(guest.image or "", guest.disk_bytes))
            for guest in scenario.guests
        ),
        iommu=scenario.iommu.kind,
        scalable=scenario.iommu.scalable,
        devices=tuple((device.name, device.kind) for device in scenario.devices),
        qemu=machine.qemu,
    )
    own = _words(BASE_APPEND, TCG_APPEND if machine.accel == "tcg" else "")
    boot_append = _words(
        own if machine.append is None else machine.append,
        fill_region(mechanism.append, region),
        IOMMU_APPEND.get((spec.iommu, spec.scalable), "") if machine.append is None else "",
        scenario.host.append,
    )
    calibration = scenario.calibration and scenario.fault != "tsc-skew"
    hops = tuple(
        _hop(number, scenario, images, boot_append, calibration, mechanism, region)
        for number in range(1, scenario.hops + 1)
    )
    _check_append(scenario, boot_append, hops)
    return Plan(
        scenario=scenario.name,
        target=target.name,
        place=machine.place or place,
        guest_disks=machine.guest_disks,
        mechanism=mechanism.name,
        images=images,
        machine=spec,
        boot_append=_join_flags(boot_append),
        hops=hops,
        guests=scenario.guests,
        devices=scenario.devices,
        calibration=calibration,
        timeouts=scenario.timeouts,
        observe=scenario.observe,
        budget=scenario.budget,
        fault=None if fault is None else FaultPlan(name=fault.name, expected=fault.expected),
        # a saved host is loaded into the very same QEMU command line, and ours only; fragmented
        # memory is made anew for each run; and QEMU has no way to save every device
        cold=scenario.cold
        or target.name != "qemu"
        or scenario.host.fragment > 0
        or not can_be_saved(scenario),
        fragment=scenario.host.fragment,
        skips=_skips(scenario, mechanism),
        seed=_seed(scenario),
        witnesses=mechanism.witnesses,
        region=region,
    )


def check_scenario(scenario: Scenario) -> tuple[Requirements, Fault | None]:
    """Return mechanism and fault, after the checks that need neither image nor machine.

    :raises ScenarioError: as :func:`make_plan`.
    """
    mechanism = _mechanism(scenario)
    fault = _fault(scenario, mechanism)
    check_devices(scenario, mechanism)
    return mechanism, fault


def fill_append(append: str, tsc_khz: int | None) -> str:
    """Put the calibration into a :class:`Hop`'s append.

    :param tsc_khz: as the outgoing kernel has it; ``None`` when it could not be asked: then the
        words that depend on it are left out, and the incoming kernel calibrates for itself.
    """
    if tsc_khz is not None:
        skewed = tsc_khz * 103 // 100
        return append.replace(TSC_KHZ, str(tsc_khz)).replace(TSC_KHZ_SKEWED, str(skewed))
    if TSC_KHZ not in append and TSC_KHZ_SKEWED not in append:
        return append
    words = _drop(append, ("tsc_early_khz",)).split()
    flags = [_drop_flag(word, "tsc_known_freq") for word in words]
    return _words(*flags)


def host_memory(scenario: Scenario, mechanism: Requirements) -> int:
    """RAM of the host under update in bytes, a multiple of 128 MiB unless the user says it.

    :raises ScenarioError: the user's own value does not hold the guests.
    """
    guests = sum(guest.memory_bytes + VMM_BYTES for guest in scenario.guests)
    guests += mapped_bytes(scenario)
    given = scenario.host.memory_bytes
    if given is not None:
        if given < guests + HOST_LEAST_BYTES:
            raise ScenarioError(
                f"host.memory {format_size(given)} does not hold {_count(scenario)}",
                where=where(scenario, "host.memory"),
                hint=f"at least {format_size(guests + HOST_LEAST_BYTES)}, or leave it out",
            )
        return given
    piece = piece_bytes(scenario, mechanism)
    if piece is not None:
        vmms = VMM_BYTES * len(scenario.guests)
        return max(MIN_HOST_BYTES, regions.least_memory(piece, vmms + HOST_OVERHEAD_BYTES))
    step = 128 * MIB
    return max(MIN_HOST_BYTES, -(-(guests + HOST_OVERHEAD_BYTES) // step) * step)


def _count(scenario: Scenario) -> str:
    total = format_size(sum(guest.memory_bytes for guest in scenario.guests))
    number = len(scenario.guests)
    return f"{number} guest{'s' if number > 1 else ''} with {total} in all"


def _mechanism(scenario: Scenario) -> Requirements:
    found = MECHANISMS.get(scenario.mechanism)
    if found is None:
        raise ScenarioError(
            f"unknown mechanism '{scenario.mechanism}'",
            where=where(scenario, "mechanism"),
            hint=suggest_or_list(scenario.mechanism, MECHANISMS),
        )
    return found


def _fault(scenario: Scenario, mechanism: Requirements) -> Fault | None:
    name = scenario.fault
    if name is None:
        return None
    place = where(scenario, "fault")
    found = FAULTS.get(name)
    if found is None:
        raise ScenarioError(
            f"unknown fault '{name}'", where=place, hint=suggest_or_list(name, FAULTS)
        )
    if name in mechanism.immune:
        raise ScenarioError(
            f"fault '{name}' says nothing about mechanism '{mechanism.name}'",
            where=place,
            hint=mechanism.immune[name],
        )
    if name in PAYLOAD_FAULTS and scenario.guests[0].image is not None:
        raise ScenarioError(f"fault '{name}' needs our payload in the first guest", where=place)
    if name in (*DEVICE_FAULTS, *GUEST_DEVICE_FAULTS) and not scenario.devices:
        raise ScenarioError(
            f"fault '{name}' strikes a device, and the scenario has none",
            where=place,
            hint=f"run it with scenario '{found.scenario}'",
        )
    target, _ = split_target(scenario.target)
    need = FAULT_NEEDS.get(name)
    if need is not None and need not in target.capabilities:
        raise ScenarioError(
            f"target '{target.name}' cannot inject '{name}': {target.lacks[need]}", where=place
        )
    if name in MEMORY_FAULTS and not scenario.observe.memory:
        raise ScenarioError(
            f"fault '{name}' is seen by memory digests only, and observe.memory is false",
            where=place,
        )
    return found


def _check_room(scenario: Scenario, machine: MachineFacts, memory_bytes: int) -> None:
    needed = memory_bytes + CONTROL_BYTES
    if machine.ram_available_bytes < needed:
        key = "host.memory" if scenario.host.memory_bytes is not None else "guests"
        place = scenario.origins.get(key)
        raise PlanError(
            f"{f'{place}: ' if place else ''}{_count(scenario)} needs {format_size(needed)} of"
            f" RAM on this machine, {format_size(machine.ram_available_bytes)} is free",
            hint="use fewer or smaller guests",
        )
    pages = sum(guest.memory_bytes for guest in scenario.guests) // PAGE_BYTES
    fed = [each for each in scenario.devices if each.kind in FED_KINDS and each.guest is None]
    frames = sum(each.rate for each in fed) * FRAMES_S
    disk = RUN_BYTES + scenario.hops * frames * EVIDENCE_PER_FRAME
    disk += sum(guest.disk_bytes for guest in scenario.guests if guest.image is None)
    if scenario.observe.memory:
        disk += scenario.hops * pages * EVIDENCE_PER_PAGE
    if machine.run_free_bytes < disk:
        raise PlanError(
            f"--results: {format_size(disk)} needed, {format_size(machine.run_free_bytes)} is free",
            hint="make room, or choose another directory with --results",
        )


def _check_lab(scenario: Scenario, machine: MachineFacts) -> None:
    """A machine of a lab has the disks it has, and our payload needs one."""
    needed = len(scenario.guests)
    if len(machine.guest_disks) < needed:
        raise PlanError(
            f"{machine.place}: {needed} guests need {needed} disks, 'disks' names"
            f" {len(machine.guest_disks)}",
            hint="use fewer guests",
        )
    if any(guest.image is not None for guest in scenario.guests):
        raise PlanError(f"{machine.place}: a guest's own image is not copied to a machine of a lab")


def _hop(
    number: int,
    scenario: Scenario,
    images: ImageSet,
    boot_append: str,
    calibration: bool,
    mechanism: Requirements,
    region: Region | None,
) -> Hop:
    append = _words(
        boot_append,
        CALIBRATION_APPEND if calibration else "",
        scenario.host.next_append,
    )
    change = PLAN_FAULTS.get(scenario.fault or "") if number == 1 else None
    loader = "file"
    if change is not None:
        append = _words(_drop(append, change.drop), change.add)
        if change.shrink and region is not None:
            less = Region(start=region.start, size_bytes=region.size_bytes - regions.SECTION_BYTES)
            append = append.replace(
                fill_region(mechanism.append, region), fill_region(mechanism.append, less)
            )
        loader = change.loader
    return Hop(
        number=number,
        incoming=images.incoming if number % 2 else images.outgoing,
        append=_join_flags(append),
        loader=loader,
    )


def _check_append(scenario: Scenario, boot_append: str, hops: tuple[Hop, ...]) -> None:
    # 8 digits hold every TSC frequency up to 99 GHz
    longest = max(
        len(text) for text in (boot_append, *(fill_append(h.append, 10**7) for h in hops))
    )
    if longest > MAX_COMMAND_LINE:
        key = "host.append" if scenario.host.append else "host.next_append"
        raise ScenarioError(
            f"kernel command line of {longest} bytes, at most {MAX_COMMAND_LINE}",
            where=where(scenario, key),
        )


def _words(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _join_flags(append: str) -> str:
    """Make one ``setcpuid=`` of all, where the last stood: the kernel reads only the last one.

    See cpu_parse_early_param() in arch/x86/kernel/cpu/common.c.
    """
    words = append.split()
    places = [index for index, word in enumerate(words) if word.startswith("setcpuid=")]
    if len(places) < 2:
        return append
    flags = dict.fromkeys(flag for at in places for flag in words[at][9:].split(","))
    words[places[-1]] = "setcpuid=" + ",".join(flags)
    return " ".join(word for at, word in enumerate(words) if at not in places[:-1])


def _drop_flag(word: str, flag: str) -> str:
    if not word.startswith("setcpuid="):
        return word
    rest = [item for item in word[9:].split(",") if item != flag]
    return "setcpuid=" + ",".join(rest) if rest else ""


def _drop(append: str, names: tuple[str, ...]) -> str:
    return " ".join(word for word in append.split() if word.partition("=")[0] not in names)


def _skips(scenario: Scenario, mechanism: Requirements) -> tuple[tuple[str, str], ...]:
    """Checks that nothing in this scenario can answer, with the reason."""
    skips: list[tuple[str, str]] = []
    if not scenario.devices:
        skips += [(check, NO_IOMMU) for check in IOMMU_CHECKS]
        skips += [(check, NO_DEVICE) for check in DEVICE_CHECKS]
    target, _ = split_target(scenario.target)
    for check, need in CHECK_NEEDS.items():
        if need not in target.capabilities:
            skips.append((check, f"target '{target.name}': {target.lacks[need]}"))
    observed = {guest.liveness for guest in scenario.guests}
    if not scenario.observe.memory:
        skips.append(("memory.content", "observe.memory is false"))
    if KHO not in mechanism.witnesses:
        reason = f"mechanism '{mechanism.name}' does without KHO, which counts the generations"
        skips.append(("handover.generation", reason))
    if "payload" not in observed:
        skips.append(("guest.storage", "no guest runs our payload, which keeps the journal"))
        if "agent" not in observed:
            skips.append(("guest.clock", "no guest can be asked for its clock"))
        if "network" not in observed:
            skips.append(("guest.network", "no guest answers on the network"))
    if scenario.budget.blackout_s is None:
        skips.append(("budget.blackout", "the scenario sets no bound"))
    return tuple(skips)


def _seed(scenario: Scenario) -> int:
    """Seed of the guests' patterns: a digest, so that a saved host fits its scenario again."""
    text = repr(
        [(guest.name, guest.memory_bytes, guest.pattern_bytes) for guest in scenario.guests]
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
