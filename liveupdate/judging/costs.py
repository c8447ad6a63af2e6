# SPDX-License-Identifier: Apache-2.0
"""What carrying the guests' memory cost, as metrics. What is unknown is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from liveupdate.core.units import GIB, MIB, PAGE_BYTES
from liveupdate.judging.context import Context
from liveupdate.model.costs import CostFacts, RamFacts
from liveupdate.model.evidence import HopEvidence
from liveupdate.model.targets import Capability
from liveupdate.model.verdict import Metric

#: phases of the blackout that are the mechanism's own work, of each guest
_OWN_PHASES = ("preserve-state", "retrieve")


def number(
    name: str, value: float | None, unit: str, labels: Mapping[str, str]
) -> Iterator[Metric]:
    """Return a metric; nothing when its value is unknown."""
    if value is not None:
        yield Metric(name=name, value=float(value), unit=unit, labels=labels)


def measure_costs(context: Context, facts: HopEvidence) -> Iterator[Metric]:
    """Return what one hop says about costs."""
    labels = {"hop": str(facts.number)}
    before, after = facts.costs.before, facts.costs.after
    if before is not None:
        yield from _measure_rams(before, labels, "before")
        if before.fragment is not None:
            blocks = {"before": before.fragment.whole_before, "after": before.fragment.whole_after}
            for when, count in blocks.items():
                whole = {**labels, "when": when}
                yield from number("fragment.whole", count * 2 * MIB, "bytes", whole)
        if before.hugetlb is not None:
            # what the guests' RAM cost, all together, against the same from hugetlbfs
            yield from number("allocate.hugetlb", before.hugetlb.allocate_ns, "ns", labels)
    if after is not None:
        yield from _measure_rams(after, labels, "after")
    if facts.sessions and all(session.error is None for session in facts.sessions):
        took_ns = sum(session.retrieve_ns for session in facts.sessions)
        yield from number("restore", took_ns, "ns", labels)
    yield from _measure_share(context, facts)
    yield from number("memory.metadata", metadata_bytes(context, facts), "bytes", labels)
    yield from number("memory.overhead", overhead_bytes(context, facts), "bytes", labels)


def _measure_rams(costs: CostFacts, labels: Mapping[str, str], when: str) -> Iterator[Metric]:
    for ram in costs.rams:
        guest = {**labels, "guest": ram.guest}
        if labels["hop"] == "1" and when == "before":
            yield from number("allocate", ram.allocate_ns, "ns", guest)
        now = {**guest, "when": when}
        yield from number("memory.huge", huge_share(ram), "%", now)
        if ram.online_page is not None and ram.pinnable is not None:
            # memory of a device has struct pages that kpageflags does not show
            has = ram.online_page or ram.pinnable
            yield from number("memory.struct-pages", has, "boolean", now)
        yield from number("memory.pinnable", ram.pinnable, "boolean", now)


def _measure_share(context: Context, facts: HopEvidence) -> Iterator[Metric]:
    """How much of a guest's blackout the mechanism worked for it, as far as phases tell."""
    for guest in context.plan.guests:
        paused, resumed = facts.paused_ns.get(guest.name), facts.resumed_ns.get(guest.name)
        own = [
            phase.ended_ns - phase.began_ns
            for phase in facts.phases
            if phase.guest == guest.name and phase.name in _OWN_PHASES
        ]
        if paused is None or resumed is None or resumed <= paused or len(own) < len(_OWN_PHASES):
            continue
        labels = {"hop": str(facts.number), "guest": guest.name}
        yield from number("blackout.share", 100 * sum(own) / (resumed - paused), "%", labels)


def huge_share(ram: RamFacts) -> float | None:
    """Return the share, in percent, of a guest's memory that KVM maps with pages of 2 MiB or
    more.
    """
    if ram.pages_4k is None or ram.pages_2m is None or ram.pages_1g is None:
        return None
    small, huge = ram.pages_4k * PAGE_BYTES, ram.pages_2m * 2 * MIB + ram.pages_1g * GIB
    return 100 * huge / (small + huge) if small + huge else None


def metadata_bytes(context: Context, facts: HopEvidence) -> int | None:
    """Return the bytes that describe the guests' memory: the mechanism's own count plus KHO's.

    Without a region, everything that KHO preserves and that the agent did not ask for is such a
    description: arrays of folios, sessions, blobs.
    """
    told = facts.costs.before.metadata_bytes if facts.costs.before else None
    walked = facts.costs.handed_over
    if walked is None:
        return None if context.plan.witnesses else told
    nodes = walked.nodes * PAGE_BYTES
    if context.plan.region is not None:
        return None if told is None else told + nodes
    held = sum(count * (PAGE_BYTES << order) for order, count in walked.folios)
    if held < walked.ours_bytes:
        # what carries the memory does not do it by preserving pages of KHO
        return None if told is None else told + nodes
    return held - walked.ours_bytes + nodes


def overhead_bytes(context: Context, facts: HopEvidence) -> int | None:
    """Return the RAM of the host that is neither the guests' nor available after the update, in
    bytes.

    It includes kernel and user space, which are the same for all mechanisms.
    """
    plan = context.plan
    if facts.after is None or facts.after.mem_available_bytes is None:
        return None
    if not plan.target_has(Capability.MADE):
        return None  # how much RAM the machine has is not planned
    guests = sum(guest.memory_bytes for guest in plan.guests)
    return plan.machine.memory_bytes - guests - facts.after.mem_available_bytes
