# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run: gaps, clocks, phases, leak trend. What is unknown is left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from liveupdate.formats.iommu import IommuFormatError, unpack_runs
from liveupdate.judging.checks.guest import blackout_ns, clock_gap, readings
from liveupdate.judging.clockfit import fit_clock, fit_slope
from liveupdate.judging.compare import Gap, network_gap, storage_gap, vcpu_gap
from liveupdate.judging.context import Context, GuestHop
from liveupdate.judging.costs import measure_costs, number
from liveupdate.model.evidence import HopEvidence
from liveupdate.model.verdict import Metric


def measure(context: Context) -> tuple[Metric, ...]:
    """Return every metric that the evidence gives."""
    metrics: list[Metric] = []
    for at in context.guests():
        if context.hop(at.hop) is not None:
            metrics += _measure_guest(at)
    for facts in context.evidence.hops:
        metrics += _measure_devices(facts)
        metrics += _measure_iommu(facts)
        metrics += _measure_phases(facts)
        metrics += _measure_kernel(facts)
        metrics += measure_costs(context, facts)
    metrics += _measure_trend(context)
    return tuple(metrics)


def _length(gap: Gap | None) -> int | None:
    return gap.length_ns if gap else None


def _measure_guest(at: GuestHop) -> Iterator[Metric]:
    labels = {"hop": str(at.hop), "guest": at.guest.name}
    yield from number("blackout", blackout_ns(at), "ns", labels)
    trace = at.trace
    if trace is None:
        return
    pause = at.paused_ns, at.resumed_ns
    yield from number("gap.vcpu", _length(vcpu_gap(trace.ticks, *pause)), "ns", labels)
    yield from number("gap.network", _length(network_gap(trace.echoes, *pause)), "ns", labels)
    yield from number("gap.storage", _length(storage_gap(trace.journal, *pause)), "ns", labels)
    gap = clock_gap(trace, *pause)
    if gap is None or len({tick.boot for tick in trace.ticks}) > 1:
        return
    for clock in ("monotonic", "boottime", "realtime"):
        change = fit_clock(readings(trace, clock), gap)
        named = {**labels, "clock": clock}
        yield from number("clock.step", change.step_ns, "ns", named)
        yield from number("clock.rate.before", change.ppm_before, "ppm", named)
        yield from number("clock.rate.after", change.ppm_after, "ppm", named)
        # the clock gap: what the guest believes did not happen
        if clock == ("monotonic" if trace.ticks else "realtime") and change.step_ns is not None:
            yield from number("gap.clock", max(0, -change.step_ns), "ns", labels)


def _measure_phases(facts: HopEvidence) -> Iterator[Metric]:
    for phase in facts.phases:
        labels = {"hop": str(phase.hop), "phase": phase.name}
        if phase.guest:
            labels["guest"] = phase.guest
        yield from number("phase", phase.ended_ns - phase.began_ns, "ns", labels)


def _measure_devices(facts: HopEvidence) -> Iterator[Metric]:
    for name, trace in facts.devices.items():
        labels = {"hop": str(facts.number), "device": name}
        yield from number("frames.sent", len(trace.frames) or None, "frames", labels)
        seen = trace.facts
        if seen is None:
            continue
        use = seen.use
        if use is not None and use.asleep_ns is not None and use.first_ns is not None:
            yield from number("gap.device", use.first_ns - use.asleep_ns, "ns", labels)
        if seen.before is not None and seen.after is not None:
            received = seen.after.received - seen.before.received
            yield from number("frames.received", received, "frames", labels)
        if seen.landed is not None:
            yield from number("frames.landed", seen.landed.found, "frames", labels)
        if seen.frozen_ns is not None and seen.adopted_ns is not None:
            yield from number("gap.device", seen.adopted_ns - seen.frozen_ns, "ns", labels)


#: metric to the field of the kernel's facts
_KERNEL_BYTES = {
    "mem-free": "mem_free_bytes",
    "preserved": "preserved_bytes",
    "scratch": "scratch_bytes",
}


def _measure_iommu(facts: HopEvidence) -> Iterator[Metric]:
    """Measure how well the IOMMU was watched from outside, and what that cost the control host."""
    iommu = facts.iommu
    if iommu is None:
        return
    labels = {"hop": str(facts.number)}
    for walk in iommu.mappings:
        walked = {**labels, "view": walk.view, "moment": walk.moment, "of": walk.requester}
        yield from number("iommu.walk", walk.took_ns, "ns", walked)
        with contextlib.suppress(IommuFormatError):  # the check of the mappings says so
            count = sum(run.size // run.page for run in unpack_runs(walk.runs))
            yield from number("iommu.mapped", count, "mappings", walked)
    if iommu.kept is not None:
        of = {"pages": str(iommu.kept.table_pages), "devices": str(iommu.kept.devices)}
        yield from number("iommu.preserve", iommu.kept.took_ns, "ns", {**labels, **of})
    watch = iommu.watch
    if watch is None or watch.ended_ns <= watch.began_ns:
        return
    length_ns = watch.ended_ns - watch.began_ns
    yield from number("iommu.sampling.rate", watch.samples * 1e9 / length_ns, "Hz", labels)
    yield from number("iommu.sampling.cpu", 100 * watch.cpu_ns / length_ns, "%", labels)
    yield from number("iommu.sampling.hole", watch.longest_hole_ns, "ns", labels)


def _measure_kernel(facts: HopEvidence) -> Iterator[Metric]:
    for name, field in _KERNEL_BYTES.items():
        value = getattr(facts.after, field, None)
        yield from number(f"memory.{name}", value, "bytes", {"hop": str(facts.number)})


def _measure_trend(context: Context) -> Iterator[Metric]:
    """Bytes per hop by a robust slope, from three hops on."""
    hops = [context.hop(hop.number) for hop in context.plan.hops]
    for name, field in _KERNEL_BYTES.items():
        values: list[Any] = [getattr(facts and facts.after, field, None) for facts in hops]
        known = takewhile(lambda value: value is not None, values)
        slope = fit_slope([float(value) for value in known])
        if slope is not None:
            # a leak is positive whichever way the number it shows in moves
            leak = -slope if name == "mem-free" else slope
            yield from number("leak.bytes_per_hop", leak, "bytes", {"of": name})
