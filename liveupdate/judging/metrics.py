# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run: gaps, clocks, phases, leak trend. What is unknown is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from liveupdate.formats.iommu import IommuFormatError, unpack_runs
from liveupdate.judging.checks.guest import blackout_ns, clock_gap, readings
from liveupdate.judging.clockfit import fit_clock, fit_slope
from liveupdate.judging.compare import Gap, network_gap, storage_gap, vcpu_gap
from liveupdate.judging.context import Context
from liveupdate.judging.costs import measure_costs
from liveupdate.model.evidence import HopEvidence, KernelFacts, MappingFacts
from liveupdate.model.verdict import Metric


def measure(context: Context) -> tuple[Metric, ...]:
    """Return every metric that the evidence gives."""
    metrics: list[Metric] = []
    for hop, facts, guest in context.guests():
        if facts is not None:
            labels = {"hop": str(hop.number), "guest": guest.name}
            metrics += _measure_guest(context, facts, guest.name, labels)
    for facts in context.evidence.hops:
        metrics += _measure_devices(facts)
        metrics += _measure_iommu(facts)
        metrics += _measure_phases(facts)
        metrics += _measure_kernel(facts)
        metrics += measure_costs(context, facts)
    metrics += _measure_trend(context)
    return tuple(metrics)


def _ns(name: str, value_ns: float | None, labels: Mapping[str, str]) -> Iterator[Metric]:
    if value_ns is not None:
        yield Metric(name=name, value=float(value_ns), unit="ns", labels=labels)


def _gap(name: str, gap: Gap | None, labels: Mapping[str, str]) -> Iterator[Metric]:
    return _ns(name, gap.length_ns if gap else None, labels)


def _measure_guest(
    context: Context, facts: HopEvidence, guest: str, labels: Mapping[str, str]
) -> Iterator[Metric]:
    yield from _ns("blackout", blackout_ns(context, facts.number, guest), labels)
    trace = context.trace(facts.number, guest)
    if trace is None:
        return
    pause = facts.paused_ns.get(guest), facts.resumed_ns.get(guest)
    yield from _gap("gap.vcpu", vcpu_gap(trace.ticks, *pause), labels)
    yield from _gap("gap.network", network_gap(trace.echoes, *pause), labels)
    yield from _gap("gap.storage", storage_gap(trace.journal, *pause), labels)
    gap = clock_gap(trace, *pause)
    if gap is None or len({tick.boot for tick in trace.ticks}) > 1:
        return
    for clock in ("monotonic", "boottime", "realtime"):
        change = fit_clock(readings(trace, clock), gap)
        named = {**labels, "clock": clock}
        yield from _ns("clock.step", change.step_ns, named)
        for name, ppm in (("before", change.ppm_before), ("after", change.ppm_after)):
            if ppm is not None:
                yield Metric(name=f"clock.rate.{name}", value=ppm, unit="ppm", labels=named)
        # the clock gap: what the guest believes did not happen
        if clock == ("monotonic" if trace.ticks else "realtime") and change.step_ns is not None:
            yield from _ns("gap.clock", max(0, -change.step_ns), labels)


def _measure_phases(facts: HopEvidence) -> Iterator[Metric]:
    for phase in facts.phases:
        labels = {"hop": str(phase.hop), "phase": phase.name}
        if phase.guest:
            labels["guest"] = phase.guest
        yield from _ns("phase", phase.ended_ns - phase.began_ns, labels)


def _measure_devices(facts: HopEvidence) -> Iterator[Metric]:
    for name, trace in facts.devices.items():
        labels = {"hop": str(facts.number), "device": name}
        if trace.frames:
            sent = float(len(trace.frames))
            yield Metric(name="frames.sent", value=sent, unit="frames", labels=labels)
        seen = trace.facts
        if seen is None:
            continue
        use = seen.use
        if use is not None and use.asleep_ns is not None and use.first_ns is not None:
            yield from _ns("gap.device", use.first_ns - use.asleep_ns, labels)
        if seen.before is not None and seen.after is not None:
            received = float(seen.after.received - seen.before.received)
            yield Metric(name="frames.received", value=received, unit="frames", labels=labels)
        if seen.landed is not None:
            landed = float(seen.landed.found)
            yield Metric(name="frames.landed", value=landed, unit="frames", labels=labels)
        if seen.frozen_ns is not None and seen.adopted_ns is not None:
            yield from _ns("gap.device", seen.adopted_ns - seen.frozen_ns, labels)


_KERNEL_BYTES = ("mem_free_bytes", "preserved_bytes", "scratch_bytes")


def _kernel_bytes(kernel: KernelFacts | None, name: str) -> int | None:
    value: int | None = getattr(kernel, name) if kernel is not None else None
    return value


def _measure_iommu(facts: HopEvidence) -> Iterator[Metric]:
    """Measure how well the IOMMU was watched from outside, and what that cost the control host."""
    iommu = facts.iommu
    if iommu is None:
        return
    labels = {"hop": str(facts.number)}
    for walk in iommu.mappings:
        walked = {**labels, "view": walk.view, "moment": walk.moment, "of": walk.requester}
        yield from _ns("iommu.walk", walk.took_ns, walked)
        yield from _count_mappings(walk, walked)
    if iommu.kept is not None:
        of = {"pages": str(iommu.kept.table_pages), "devices": str(iommu.kept.devices)}
        yield from _ns("iommu.preserve", iommu.kept.took_ns, {**labels, **of})
    watch = iommu.watch
    if watch is None or watch.ended_ns <= watch.began_ns:
        return
    length_ns = watch.ended_ns - watch.began_ns
    rate, share = watch.samples * 1e9 / length_ns, 100 * watch.cpu_ns / length_ns
    yield Metric(name="iommu.sampling.rate", value=rate, unit="Hz", labels=labels)
    yield Metric(name="iommu.sampling.cpu", value=share, unit="%", labels=labels)
    yield from _ns("iommu.sampling.hole", watch.longest_hole_ns, labels)


def _count_mappings(walk: MappingFacts, labels: Mapping[str, str]) -> Iterator[Metric]:
    try:
        runs = unpack_runs(walk.runs)
    except IommuFormatError:
        return  # the check of the mappings says so
    count = sum(run.size // run.page for run in runs)
    yield Metric(name="iommu.mapped", value=float(count), unit="mappings", labels=labels)


def _measure_kernel(facts: HopEvidence) -> Iterator[Metric]:
    for name in _KERNEL_BYTES:
        value = _kernel_bytes(facts.after, name)
        if value is not None:
            label = name.removesuffix("_bytes").replace("_", "-")
            yield Metric(
                name=f"memory.{label}",
                value=float(value),
                unit="bytes",
                labels={"hop": str(facts.number)},
            )


def _measure_trend(context: Context) -> Iterator[Metric]:
    """Bytes per hop by a robust slope, from three hops on."""
    for name in _KERNEL_BYTES:
        series: list[float] = []
        for hop in context.plan.hops:
            facts = context.hop(hop.number)
            value = _kernel_bytes(facts.after if facts else None, name)
            if value is None:
                break
            series.append(float(value))
        slope = fit_slope(series)
        if slope is not None:
            label = name.removesuffix("_bytes").replace("_", "-")
            yield Metric(
                name="leak.bytes_per_hop",
                # a leak is positive whichever way the number it shows in moves
                value=-slope if name == "mem_free_bytes" else slope,
                unit="bytes",
                labels={"of": label},
            )
