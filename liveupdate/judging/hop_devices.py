# SPDX-License-Identifier: Apache-2.0
"""What the checks of devices and of their translation share: which devices, over which time.

There are two tiers with different guarantees. A device of tier ``continuous`` may not stop, not
even for one sample. A device of tier ``quiesce`` is stopped on purpose: the guarantee is its state
before and after, and that it could do no DMA while its translation was off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from liveupdate.core.units import format_ns
from liveupdate.formats.pci_config import ConfigSpace, decode_config
from liveupdate.judging.context import Context, Finding, Place, error_finding, skipped
from liveupdate.judging.guest_share import GuestShare
from liveupdate.model import slots
from liveupdate.model.evidence import IommuEvidence
from liveupdate.model.iommu_samples import BindingSample, IommuWatch, WatchedDevice
from liveupdate.model.slots import Slot

AMD = "amd"
CONTINUOUS, QUIESCE = "continuous", "quiesce"
NO_DEVICE = "no device of the scenario is kept or quiesced"
#: with a longer hole in the sampling nothing is claimed about what can only be sampled: what a
#: short one hides would have to come and go within it. QEMU's trace has no holes while it is alive
MAX_HOLE_NS = 2_000_000_000
#: in the blackout a hole may be as long as this share of it, and four samples in any case
_HOLE_SHARE, _LEAST_SAMPLES = 4, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedDevice:
    """A device of the plan as it was found in one hop."""

    name: str
    kind: str
    tier: str
    found: WatchedDevice
    #: the guest that has it, and where its memory lay before and after; None: no guest has it
    share: GuestShare | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HopDevices:
    """All that was observed of the devices in one hop; times are those of the blackout."""

    hop: int
    evidence: IommuEvidence
    watch: IommuWatch
    devices: tuple[JudgedDevice, ...]
    paused_ns: int
    resumed_ns: int

    @property
    def is_continuous(self) -> bool:
        """Whether any device has to continue its DMA."""
        return any(each.tier == CONTINUOUS for each in self.devices)

    def place(self, *found: Slot[Any], device: JudgedDevice | None = None) -> Place:
        """Return a place in this hop, or of a device in it, with findings that rest on slots."""
        where = f"hop {self.hop}"
        if device is not None:
            where += f", {device.name} ({device.found.function})"
        return Place(where, tuple(slot.path(self.hop) for slot in found))

    def excess_ns(self, began_ns: int, ended_ns: int) -> int:
        """Return by how much a hole between two looks is too long to claim anything over it."""
        limit_ns = MAX_HOLE_NS
        if began_ns < self.resumed_ns and ended_ns > self.paused_ns:
            share_ns = (self.resumed_ns - self.paused_ns) // _HOLE_SHARE
            limit_ns = min(limit_ns, max(share_ns, _LEAST_SAMPLES * self.watch.interval_ns))
        return ended_ns - began_ns - limit_ns

    def since_pause(self, at_ns: int) -> str:
        """Format a time as milliseconds after the pause."""
        return f"{(at_ns - self.paused_ns) / 1e6:+.0f} ms from the pause"


def judge_hop_devices(
    context: Context, judge: Callable[[HopDevices], Iterable[Finding]]
) -> Iterator[Finding]:
    """Judge every hop in which the devices were observed; find why it was not, for the others."""
    if not context.plan.devices:
        yield error_finding("expected by the plan, which has no device")
    elif not any(device.tier in (CONTINUOUS, QUIESCE) for device in context.plan.devices):
        yield skipped(NO_DEVICE)
    else:
        for hop in context.plan.hops:
            if context.rolled_back(hop.number):
                yield skipped(f"hop {hop.number}: rolled back, the kernel was not replaced")
                continue
            found = _find_hop_devices(context, hop.number)
            yield from [found] if isinstance(found, Finding) else judge(found)


def _find_hop_devices(context: Context, number: int) -> HopDevices | Finding:
    def missing(what: str, slot: Slot[Any]) -> Finding:
        return context.missing(what, number, paths=(slot.path(number),))

    facts = context.hop(number)
    if facts is None or facts.iommu is None or facts.iommu.watch is None:
        return missing("the devices seen from outside", slots.WATCH)
    if not facts.paused_ns:
        return missing("the moment of the pause", slots.MARKS)
    found = {each.name: each for each in facts.iommu.devices}
    devices: list[JudgedDevice] = []
    for spec in context.plan.devices:
        if spec.tier not in (CONTINUOUS, QUIESCE):
            continue
        device = found.get(spec.name)
        if device is None:
            return missing(f"device '{spec.name}'", slots.DEVICES)
        if spec.bdf is not None and spec.bdf != device.function:
            return error_finding(
                f"hop {number}: device '{spec.name}' was watched at {device.function}, "
                f"planned was {spec.bdf}"
            )
        share = None
        if spec.guest is not None:
            memory = context.memory(number, spec.guest)
            if memory is None or memory.pfns_before is None or memory.pfns_after is None:
                tables = (slots.PFNS_BEFORE, slots.PFNS_AFTER)
                files = [slot.path(number, spec.guest) for slot in tables]
                return context.missing("where its memory lies", number, spec.guest, files)
            share = GuestShare.of(spec.guest, memory.pfns_before.pfns, memory.pfns_after.pfns)
        devices.append(
            JudgedDevice(name=spec.name, kind=spec.kind, tier=spec.tier, found=device, share=share)
        )
    return HopDevices(
        hop=number,
        evidence=facts.iommu,
        watch=facts.iommu.watch,
        devices=tuple(devices),
        paused_ns=min(facts.paused_ns.values()),
        # guests that never went on are judged elsewhere; devices are, for as long as was looked
        resumed_ns=max(facts.resumed_ns.values(), default=facts.iommu.watch.ended_ns),
    )


def find_blindness(hop_devices: HopDevices, *, is_sampled: bool) -> Finding | None:
    """Say why sampling and trace are not enough to claim that something never happened; None: they
    are.

    :param is_sampled: the claim rests on the samples, and not on the trace alone.
    """
    at, watch = hop_devices.place(slots.WATCH), hop_devices.watch
    if watch.began_ns > hop_devices.paused_ns or watch.ended_ns < hop_devices.resumed_ns:
        return at.error("the sampling did not cover the blackout from pause to resume")
    samples = hop_devices.evidence.samples
    if watch.samples != len(samples):
        return at.error(f"{len(samples)} of {watch.samples} samples of the registers are there")
    if is_sampled:
        looks = [watch.began_ns, *(each.host_ns for each in samples), watch.ended_ns]
        hole_ns = max((hop_devices.excess_ns(*pair), pair[1] - pair[0]) for pair in pairwise(looks))
        if hole_ns[0] > 0 or watch.longest_hole_ns > MAX_HOLE_NS:
            hole = format_ns(max(hole_ns[1], watch.longest_hole_ns))
            return at.error(f"no sample for {hole}", hole)
    if not watch.trace_lines:
        return at.error("QEMU's trace is empty, so events between samples are unknown")
    if watch.beats_ns is None:
        return None
    first, last, longest = watch.beats_ns
    if not first or first > hop_devices.paused_ns or last < hop_devices.resumed_ns:
        return at.error("QEMU's trace was not alive from the pause to the resume")
    if longest > MAX_HOLE_NS:
        return at.error(f"QEMU's trace showed no life for {format_ns(longest)}")
    return None


def say_rate(hop_devices: HopDevices) -> str:
    """Format how well the samples covered the blackout, as measured."""
    samples = hop_devices.evidence.samples
    inside = [
        each for each in samples if hop_devices.paused_ns <= each.host_ns <= hop_devices.resumed_ns
    ]
    rate = len(inside) / (max(1, hop_devices.resumed_ns - hop_devices.paused_ns) / 1e9)
    looks = [each.host_ns for each in samples]
    hole = format_ns(max((later - look for look, later in pairwise(looks)), default=0))
    return (
        f"{len(samples)} samples, {len(inside)} of them in the blackout "
        f"({rate:.0f} Hz, longest hole {hole})"
    )


def find_spaces(hop_devices: HopDevices, function: str) -> tuple[ConfigSpace, ConfigSpace] | str:
    """Return a function's configuration space before or after, or what is wrong with it."""
    found: list[ConfigSpace] = []
    for moment in ("before", "after"):
        configs = hop_devices.evidence.configs
        facts = next(
            (each for each in configs if (each.function, each.moment) == (function, moment)), None
        )
        if facts is None:
            return f"its configuration space was not seen {moment} the update"
        try:
            found.append(decode_config(bytes.fromhex(facts.data)))
        except ValueError as error:
            return f"its configuration space {moment} the update cannot be used: {error}"
    return found[0], found[1]


def rows_of(hop_devices: HopDevices, device: JudgedDevice) -> list[BindingSample]:
    """Return the samples of what translates one device, in the order they were taken."""
    function = device.found.function
    return [each for each in hop_devices.evidence.bindings if each.requester.split()[0] == function]
