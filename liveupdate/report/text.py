# SPDX-License-Identifier: Apache-2.0
"""The report for a terminal: plain text, no escapes, 78 columns.

The verdict comes first, then one line for each guest, kernels and devices of each hop, and the
checks. Build ids, gaps of each hop and phases are details.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from liveupdate.core.units import format_ns, format_size
from liveupdate.model.evidence import Evidence, HopEvidence
from liveupdate.model.plan import Plan
from liveupdate.model.targets import DEFAULT
from liveupdate.model.verdict import Metric, Outcome, Verdict
from liveupdate.report.common import (
    GAPS,
    clean,
    find_metrics,
    guests_of,
    say_kernel,
    say_metric,
    say_outcome,
    say_seal,
    say_struck,
)

_WIDTH = 78
_ID_WIDTH = 22
_FRAMES = {"sent": "sent", "received": "received", "landed": "landed in the blackout"}


def render_text(
    plan: Plan, evidence: Evidence, verdict: Verdict, *, with_details: bool = False
) -> str:
    """Render the verdict; ends with a newline."""
    lines = _wrap(f"{say_outcome(verdict)}  {_say_run(plan, evidence)}", "  ", "")
    if verdict.reason:
        lines += _wrap(clean(verdict.reason), "  ")
    if verdict.rolled_back:
        lines.append("  rolled back: the guests run on the outgoing kernel")
    lines += ["", *_render_guests(plan, evidence, verdict)]
    for hop in evidence.hops:
        lines += _render_hop(plan, hop, verdict, with_details=with_details)
    lines += ["", *_render_checks(verdict)]
    trend = [
        f"{metric.labels['of']} {say_metric(metric)}"
        for metric in find_metrics(verdict, "leak.bytes_per_hop")
    ]
    if trend:
        lines += ["", *_wrap("leak per hop: " + ", ".join(trend), "  ", "")]
    if evidence.incidents:
        lines += ["", "incidents:"]
        for incident in evidence.incidents:
            guest = f" ({incident.guest})" if incident.guest else ""
            lines += _wrap(
                clean(f"hop {incident.hop} {incident.kind}{guest}: {incident.text}"), "  "
            )
    if seal := say_seal(evidence):
        lines += ["", *_wrap(seal, "  ", "")]
    return "\n".join(lines) + "\n"


def _render_guests(plan: Plan, evidence: Evidence, verdict: Verdict) -> Iterator[str]:
    """Say in one line for each guest how long it stood still, over all hops."""
    names = [name for hop in evidence.hops for name in guests_of(plan, hop)]
    for guest in dict.fromkeys([*(each.name for each in plan.guests), *names]):
        blackouts = list(find_metrics(verdict, "blackout", guest=guest))
        gaps = [gap for name in GAPS for gap in find_metrics(verdict, name, guest=guest)]
        said = f"{guest}: {_say_range(blackouts)}{_say_longest(gaps)}"
        yield from _wrap(clean(said), "  ", "")


def _say_range(blackouts: Sequence[Metric]) -> str:
    if not blackouts:
        return "blackout unknown"
    ordered = sorted(blackouts, key=lambda metric: metric.value)
    if len(ordered) == 1:
        return f"blackout {say_metric(ordered[0])}"
    return f"blackouts {say_metric(ordered[0])} to {say_metric(ordered[-1])}"


def _say_longest(gaps: Sequence[Metric]) -> str:
    if not gaps:
        return ""
    longest = max(gaps, key=lambda metric: metric.value)
    name = longest.name.removeprefix("gap.")
    return f", longest gap {say_metric(longest)} ({name}, hop {longest.labels['hop']})"


def _say_run(plan: Plan, evidence: Evidence) -> str:
    hops = f"{len(plan.hops)} hop{'s' if len(plan.hops) != 1 else ''}"
    guests = ", ".join(f"{guest.name} {format_size(guest.memory_bytes)}" for guest in plan.guests)
    said = f"{plan.scenario}: {hops}, {guests}, {plan.mechanism}"
    provenance = evidence.provenance
    if provenance is None:
        return clean(said)
    target = "" if plan.target == DEFAULT else f"{plan.target}, "
    start = f"{provenance.accel}, {provenance.start} start"
    return clean(f"{said}; {target}{start}, run {provenance.run_id}")


def _wrap(text: str, margin: str, first: str | None = None) -> list[str]:
    """Wrap text behind a margin; ``first`` is what its first line begins with."""
    first = margin if first is None else first
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=margin, break_on_hyphens=False
    )
    return lines or [first]


def _render_hop(
    plan: Plan, hop: HopEvidence, verdict: Verdict, *, with_details: bool
) -> Iterator[str]:
    if not with_details:
        releases = [facts.release if facts else "unknown" for facts in (hop.before, hop.after)]
        said = f"hop {hop.number}: {releases[0]} → {releases[1]}"
        yield from _wrap(clean(said), "  ", "")
        yield from _render_struck(hop)
        yield from _render_devices(hop, verdict)
        return
    yield ""
    yield f"hop {hop.number}"
    yield from _wrap(clean(say_kernel(hop.before)), " " * 12, "  outgoing  ")
    yield from _wrap(clean(say_kernel(hop.after)), " " * 12, "  incoming  ")
    yield from _render_struck(hop)
    for guest in guests_of(plan, hop):
        labels = {"hop": str(hop.number), "guest": guest}
        gaps = [
            f"{name.removeprefix('gap.')} {say_metric(metric)}"
            for name in GAPS
            for metric in find_metrics(verdict, name, **labels)
        ]
        blackout = _say_range(list(find_metrics(verdict, "blackout", **labels)))
        yield from _wrap(
            clean(f"{guest}: {blackout}; gaps: {', '.join(gaps) or 'unknown'}"), "    ", "  "
        )
    yield from _render_devices(hop, verdict)
    yield from _render_phases(hop)


def _render_struck(hop: HopEvidence) -> Iterator[str]:
    for each in hop.struck:
        yield from _wrap(clean(f"struck: {say_struck(each)}"), "    ", "  ")


def _render_devices(hop: HopEvidence, verdict: Verdict) -> Iterator[str]:
    for device in hop.devices:
        labels = {"hop": str(hop.number), "device": device}
        said = [
            f"{metric.value:.0f} {what}"
            for name, what in _FRAMES.items()
            for metric in find_metrics(verdict, f"frames.{name}", **labels)
        ]
        gap = [say_metric(metric) for metric in find_metrics(verdict, "gap.device", **labels)]
        facts = hop.devices[device].facts
        how = "left alone" if facts is None or facts.use is None else "DMA stopped"
        alone = f"{how} for {gap[0]}" if gap else ""
        frames = f"frames: {', '.join(said)}" if said else ""
        parts = [part for part in (frames, alone) if part]
        yield from _wrap(clean(f"{device}: {'; '.join(parts) or 'nothing seen'}"), "    ", "  ")
    watch = [
        f"{label} {say_metric(metric)}"
        for name, label in (("rate", "at"), ("cpu", "for"), ("hole", "of a core, longest hole"))
        for metric in find_metrics(verdict, f"iommu.sampling.{name}", hop=str(hop.number))
    ]
    if watch:
        yield from _wrap(clean(f"iommu: looked at from outside {' '.join(watch)}"), "    ", "  ")
    for metric in find_metrics(verdict, "iommu.preserve", hop=str(hop.number)):
        pages, devices = metric.labels.get("pages"), metric.labels.get("devices")
        preserved = f"{pages} table pages of {devices} devices preserved in {say_metric(metric)}"
        yield from _wrap(clean(f"iommu: {preserved}, by the kernel's own clock"), "    ", "  ")


def _render_phases(hop: HopEvidence) -> Iterator[str]:
    """Render the phases as a table, in the order in which they began, from the first pause on."""
    phases = sorted(hop.phases, key=lambda phase: (phase.began_ns, phase.ended_ns))
    if not phases:
        return
    origin = min(hop.paused_ns.values(), default=phases[0].began_ns)
    rows = [
        (
            clean(phase.name),
            clean(phase.guest) or "host",
            _relative(phase.began_ns - origin),
            format_ns(phase.ended_ns - phase.began_ns),
        )
        for phase in phases
    ]
    yield from _table(("phase", "of", "from pause", "took"), rows)


def _relative(offset_ns: int) -> str:
    return ("-" if offset_ns < 0 else "+") + format_ns(abs(offset_ns))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
        right = "  ".join(
            cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)
        )
        yield f"    {left}  {right}"


def _render_checks(verdict: Verdict) -> Iterator[str]:
    """Render one entry per check; skips with the same reason share a line."""
    skipped: dict[str, list[str]] = {}
    for check in verdict.checks:
        if check.status is Outcome.SKIP:
            skipped.setdefault(clean(check.reason), []).append(check.id)
            continue
        margin = " " * (8 + _ID_WIDTH)
        first = f"  {check.status.value:<5} {check.id:<{_ID_WIDTH}}"
        yield from _wrap(clean(check.reason), margin, first)
        if check.status is not Outcome.PASS:
            for path in check.evidence:
                yield f"{margin}see {clean(path)}"
    for reason, ids in skipped.items():
        yield from _wrap(f"{', '.join(ids)}: {reason}", " " * 8, "  SKIP  ")
