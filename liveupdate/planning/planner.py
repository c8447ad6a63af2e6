# SPDX-License-Identifier: Apache-2.0
"""From scenario, images and facts about the control host to a :class:`Plan`.

Pure: no I/O, no environment. Everything that can be refused before anything starts is refused here,
in one line that names where the value came from. A value that is wrong by itself is a
:class:`ScenarioError`; one that this machine or these kernels cannot fulfil is a
:class:`PlanError`, so that ``--bisect`` skips such a kernel instead of calling it bad.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from liveupdate.core.errors import PlanError, ScenarioError
from liveupdate.core.suggest import suggest_or_list
from liveupdate.core.units import GIB, MIB, PAGE_BYTES, format_size
from liveupdate.faults.base import Fault, HopChange
from liveupdate.faults.table import FAULTS
from liveupdate.judging.check import Asked
from liveupdate.judging.table import CHECKS
from liveupdate.model.device_models import FED_KINDS
from liveupdate.model.mechanism import Requirements
from liveupdate.model.plan import (
    TSC_KHZ,
    TSC_KHZ_SKEWED,
    FaultPlan,
    Hop,
    ImageSet,
    MachineSpec,
    Plan,
    Region,
)
from liveupdate.model.scenario import CONTINUOUS, Scenario, Timeouts
from liveupdate.model.targets import Capability, Target, parse_target
from liveupdate.planning import region_place as regions
from liveupdate.planning.devices import (
    IOMMU_APPEND,
    can_be_saved,
    check_devices,
    mapped_bytes,
    pace_devices,
)
from liveupdate.planning.faults import check_fault
from liveupdate.planning.kernels import check_kernels, name_for
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.planning.reserved_region import fill_region, find_region, piece_bytes
from liveupdate.scenario.load import where

T = TypeVar("T")

#: what the host under update needs beside its guests: kernel, tmpfs, agent, room for the incoming
#: kernel's image and KHO's scratch areas while the guests' memory stays where it is
HOST_OVERHEAD_BYTES = 1280 * MIB
#: with less than this an explicit host.memory cannot work
HOST_LEAST_BYTES = 512 * MIB
MIN_HOST_BYTES = 2 * GIB
#: a VMM's own memory beside the RAM of its guest
VMM_BYTES = 64 * MIB
#: what the control host must keep for itself: memory of QEMU and of this process
CONTROL_BYTES = 256 * MIB
#: logs, reports and traces of a run
RUN_BYTES = 64 * MIB
#: digests (freeze, boot) and page frame numbers (before, after), 8 bytes each for every page
EVIDENCE_PER_PAGE = 4 * 8
#: one line for each frame sent, for as long as a hop may take under TCG
EVIDENCE_PER_FRAME = 48
FRAMES_S = 60
#: what a run may take longer for each hop after the first
TOTAL_PER_HOP_S = 300
#: arch/x86/include/asm/setup.h, COMMAND_LINE_SIZE without the final NUL
MAX_COMMAND_LINE = 2047

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
    #: the longest blackout that runs on this machine have shown lately; None: none is known
    blackout_s: float | None = None


def make_plan(scenario: Scenario, images: ImageSet, machine: MachineFacts) -> Plan:
    """Resolve everything; no code after this reads a default or the environment.

    :raises ScenarioError: an unknown mechanism or fault, or values that contradict each other.
    :raises PlanError: the kernels or the control host cannot do it.
    """
    mechanism, target, fault = check_scenario(scenario)
    check_kernels(scenario, images, mechanism, fault, testbed=target.has(Capability.MADE))
    memory_bytes = host_memory(scenario, mechanism)
    region = find_region(scenario, mechanism, memory_bytes)
    _check_target(scenario, target, mechanism, region)
    if target.has(Capability.MADE):
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
    change = HopChange() if fault is None or fault.change is None else fault.change
    calibration = scenario.calibration and change.calibration
    hops = tuple(
        _hop(
            number,
            scenario,
            images,
            boot_append,
            calibration,
            mechanism,
            region,
            change if number == 1 else HopChange(),
        )
        for number in range(1, scenario.hops + 1)
    )
    _check_append(scenario, boot_append, hops)
    return Plan(
        scenario=scenario.name,
        target=target.kind.name,
        place=machine.place or target.place,
        guest_disks=machine.guest_disks,
        mechanism=mechanism.name,
        images=images,
        machine=spec,
        boot_append=name_for(images.outgoing, _join_flags(boot_append)),
        hops=hops,
        guests=scenario.guests,
        devices=pace_devices(scenario.devices, machine.blackout_s),
        calibration=calibration,
        timeouts=_timeouts(scenario),
        observe=scenario.observe,
        budget=scenario.budget,
        fault=None if fault is None else _plan_fault(fault, scenario.fault_seed),
        # fragmented memory is made anew for each run, and QEMU has no way to save every device
        cold=scenario.cold
        or not target.has(Capability.SAVE)
        or scenario.host.fragment > 0
        or not can_be_saved(scenario),
        fragment=scenario.host.fragment,
        skips=_skips(Asked(scenario=scenario, mechanism=mechanism, target=target.kind)),
        seed=_seed(scenario),
        witnesses=mechanism.witnesses,
        region=region,
        state_digests=True,
        vcpu_state=scenario.vcpu_state,
        clock=scenario.clock,
    )


def check_scenario(scenario: Scenario) -> tuple[Requirements, Target, Fault | None]:
    """Return mechanism, target and fault, after the checks that need neither image nor machine.

    :raises ScenarioError: as :func:`make_plan`.
    """
    mechanism = _find(scenario, "mechanism", scenario.mechanism, MECHANISMS)
    target = parse_target(scenario.target)
    fault = None
    if scenario.fault is not None:
        fault = _find(scenario, "fault", scenario.fault, FAULTS)
        check_fault(scenario, fault, mechanism, target)
    check_devices(scenario, mechanism)
    _check_clock(scenario)
    return mechanism, target, fault


def _check_clock(scenario: Scenario) -> None:
    """:raises ScenarioError: clocks are to go on that a guest itself sets when it wakes up."""
    owners = [device.guest for device in scenario.devices if device.guest is not None]
    if scenario.clock == CONTINUOUS and owners:
        raise ScenarioError(
            f"guest '{owners[0]}' has a device of its own and sleeps over the update, and a guest "
            "that wakes up sets its clocks by itself",
            where=where(scenario, "clock"),
            hint='clock = "stopped"',
        )


def fill_append(append: str, tsc_khz: int | None) -> str:
    """Put the calibration into a :class:`Hop`'s append.

    :param tsc_khz: as the outgoing kernel has it; ``None`` when it is unknown: then the words that
        depend on it are left out, and the incoming kernel calibrates by itself.
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


def _find(scenario: Scenario, what: str, name: str, known: Mapping[str, T]) -> T:
    """Return what the scenario names.

    :raises ScenarioError: there is no such thing.
    """
    if name not in known:
        raise ScenarioError(
            f"unknown {what} '{name}'",
            where=where(scenario, what),
            hint=suggest_or_list(name, known),
        )
    return known[name]


def _check_target(
    scenario: Scenario, target: Target, mechanism: Requirements, region: Region | None
) -> None:
    """Refuse what the target does not support.

    :raises ScenarioError: devices, another IOMMU or memory set aside.
    """
    kind = target.kind
    if scenario.devices and not target.has(Capability.DEVICES):
        raise ScenarioError(
            f"target '{kind.name}' cannot run a scenario with devices:"
            f" {kind.lacks[Capability.DEVICES]}",
            where=where(scenario, "target"),
        )
    if target.has(Capability.MADE):
        return
    reason = kind.lacks[Capability.MADE]
    if scenario.iommu.kind != "intel":
        raise ScenarioError(
            f"target '{kind.name}' has no choice of an IOMMU: {reason}",
            where=where(scenario, "iommu.kind"),
        )
    if region is not None:
        raise ScenarioError(
            f"mechanism '{mechanism.name}' sets memory aside, and target '{kind.name}' has no known"
            f" place for it: {reason}",
            where=where(scenario, "mechanism"),
        )


def _timeouts(scenario: Scenario) -> Timeouts:
    """Give each hop after the first its own time, unless the user has set that of the whole run."""
    timeouts = scenario.timeouts
    if "timeouts.total" in scenario.origins:
        return timeouts
    return replace(timeouts, total_s=timeouts.total_s + (scenario.hops - 1) * TOTAL_PER_HOP_S)


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
    disk += sum(guest.disk_bytes for guest in scenario.guests if guest.kind.payload)
    if scenario.observe.memory:
        disk += scenario.hops * pages * EVIDENCE_PER_PAGE
    if machine.run_free_bytes < disk:
        raise PlanError(
            f"--results: {format_size(disk)} needed, {format_size(machine.run_free_bytes)} is free",
            hint="free some space, or choose another directory with --results",
        )


def _check_lab(scenario: Scenario, machine: MachineFacts) -> None:
    """Refuse guests that a lab machine has no disk for, or whose image is not on it."""
    needed = len(scenario.guests)
    if len(machine.guest_disks) < needed:
        raise PlanError(
            f"{machine.place}: {needed} guests need {needed} disks, 'disks' names"
            f" {len(machine.guest_disks)}",
            hint="use fewer guests",
        )
    if not all(guest.kind.payload for guest in scenario.guests):
        raise PlanError(f"{machine.place}: a guest's own image is not copied to a lab machine")


def _hop(
    number: int,
    scenario: Scenario,
    images: ImageSet,
    boot_append: str,
    calibration: bool,
    mechanism: Requirements,
    region: Region | None,
    change: HopChange,
) -> Hop:
    append = _words(
        boot_append,
        CALIBRATION_APPEND if calibration else "",
        scenario.host.next_append,
    )
    append = _words(_drop(append, change.drop), change.add)
    if change.shrink and region is not None:
        less = Region(start=region.start, size_bytes=region.size_bytes - regions.SECTION_BYTES)
        append = append.replace(
            fill_region(mechanism.append, region), fill_region(mechanism.append, less)
        )
    incoming = images.incoming if number % 2 else images.outgoing
    return Hop(
        number=number,
        incoming=incoming,
        append=name_for(incoming, _join_flags(append)),
        loader=change.loader,
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


def _skips(asked: Asked) -> tuple[tuple[str, str], ...]:
    """Return the checks that cannot be answered in this scenario, with the reason."""
    reasons = ((row.id, row.why_skipped(asked)) for row in CHECKS)
    return tuple((check, reason) for check, reason in reasons if reason is not None)


def _plan_fault(fault: Fault, seed: int | None) -> FaultPlan:
    place = UNSET if seed is None else seed
    return FaultPlan(name=fault.name, expected=fault.expected, proves=True, seed=place)


def _seed(scenario: Scenario) -> int:
    """Seed of the guests' patterns: a digest, so that a saved host fits its scenario again."""
    text = repr([(each.name, each.memory_bytes, each.pattern_bytes) for each in scenario.guests])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
