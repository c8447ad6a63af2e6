# SPDX-License-Identifier: Apache-2.0
"""What carrying the guests' memory cost, as metrics. What is unknown is left out."""

from __future__ import annotations

from collections.abc import Iterator

from liveupdate.core.units import GIB, MIB, PAGE_BYTES
from liveupdate.judging.context import Context
from liveupdate.model.costs import CostFacts, RamFacts
from liveupdate.model.evidence import HopEvidence
from liveupdate.model.targets import Capability
from liveupdate.model.verdict import Metric

#: phases of the blackout that are the mechanism's own work, of each guest
_OWN_PHASES = ("preserve-state", "retrieve")


def measure_costs(context: Context, facts: HopEvidence) -> Iterator[Metric]:
    """Return what one hop says about costs."""
    hop = str(facts.number)
    if facts.costs.before is not None:
        yield from _measure_rams(facts.costs.before, hop, "before")
        yield from _measure_fragment(facts.costs.before, hop)
        yield from _measure_hugetlb(facts.costs.before, hop)
    if facts.costs.after is not None:
        yield from _measure_rams(facts.costs.after, hop, "after")
    if facts.sessions and all(session.error is None for session in facts.sessions):
        took = float(sum(session.retrieve_ns for session in facts.sessions))
        yield Metric(name="restore", value=took, unit="ns", labels={"hop": hop})
    yield from _measure_share(context, facts)
    metadata = metadata_bytes(context, facts)
    if metadata is not None:
        yield Metric(
            name="memory.metadata", value=float(metadata), unit="bytes", labels={"hop": hop}
        )
    overhead = overhead_bytes(context, facts)
    if overhead is not None:
        yield Metric(
            name="memory.overhead", value=float(overhead), unit="bytes", labels={"hop": hop}
        )


def _measure_rams(costs: CostFacts, hop: str, when: str) -> Iterator[Metric]:
    for ram in costs.rams:
        labels = {"hop": hop, "guest": ram.guest, "when": when}
        if ram.allocate_ns is not None and hop == "1" and when == "before":
            yield Metric(
                name="allocate",
                value=float(ram.allocate_ns),
                unit="ns",
                labels={"hop": hop, "guest": ram.guest},
            )
        share = huge_share(ram)
        if share is not None:
            yield Metric(name="memory.huge", value=share, unit="%", labels=labels)
        if ram.online_page is not None and ram.pinnable is not None:
            # memory of a device has struct pages that kpageflags does not show
            has = ram.online_page or ram.pinnable
            yield Metric(
                name="memory.struct-pages", value=float(has), unit="boolean", labels=labels
            )
        if ram.pinnable is not None:
            yield Metric(
                name="memory.pinnable", value=float(ram.pinnable), unit="boolean", labels=labels
            )


def _measure_fragment(costs: CostFacts, hop: str) -> Iterator[Metric]:
    found = costs.fragment
    if found is None:
        return
    for moment, blocks in (("before", found.whole_before), ("after", found.whole_after)):
        yield Metric(
            name="fragment.whole",
            value=float(blocks * 2 * MIB),
            unit="bytes",
            labels={"hop": hop, "when": moment},
        )


def _measure_hugetlb(costs: CostFacts, hop: str) -> Iterator[Metric]:
    """What the guests' RAM cost, all together, against the same from hugetlbfs."""
    found = costs.hugetlb
    if found is None or found.allocate_ns is None:
        return
    labels = {"hop": hop}
    yield Metric(name="allocate.hugetlb", value=float(found.allocate_ns), unit="ns", labels=labels)


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
        yield Metric(
            name="blackout.share",
            value=100 * sum(own) / (resumed - paused),
            unit="%",
            labels={"hop": str(facts.number), "guest": guest.name},
        )


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
