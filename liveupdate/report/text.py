# SPDX-License-Identifier: Apache-2.0
"""The report for a terminal: plain text, no escapes, 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from liveupdate.core.units import format_ns, format_size
from liveupdate.model.evidence import Evidence, HopEvidence
from liveupdate.model.plan import Plan
from liveupdate.model.targets import DEFAULT
from liveupdate.model.verdict import Outcome, Verdict
from liveupdate.report.common import (
    GAPS,
    clean,
    find_metrics,
    guests_of,
    say_kernel,
    say_metric,
    say_outcome,
    say_seal,
)

_WIDTH = 100
_ID_WIDTH = 22
_FRAMES = {"sent": "sent", "received": "received", "landed": "landed in the blackout"}


def render_text(plan: Plan, evidence: Evidence, verdict: Verdict) -> str:
    """Render the verdict; ends with a newline."""
    lines = [f"{say_outcome(verdict)}  {_say_run(plan, evidence)}"]
    if seal := say_seal(evidence):
        lines.append(f"  {seal}")
    if verdict.reason:
        lines += _wrap(clean(verdict.reason), "  ")
    if verdict.rolled_back:
        lines.append("  rolled back: the guests run on the outgoing kernel")
    for hop in evidence.hops:
        lines += ["", *_render_hop(plan, hop, verdict)]
    lines += ["", *_render_checks(verdict)]
    trend = [
        f"{metric.labels['of']} {say_metric(metric)}"
        for metric in find_metrics(verdict, "leak.bytes_per_hop")
    ]
    if trend:
        lines += ["", "leak per hop: " + ", ".join(trend)]
    if evidence.incidents:
        lines += ["", "incidents:"]
        for incident in evidence.incidents:
            guest = f" ({incident.guest})" if incident.guest else ""
            lines += _wrap(
                clean(f"hop {incident.hop} {incident.kind}{guest}: {incident.text}"), "  "
            )
    return "\n".join(lines) + "\n"


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


def _wrap(text: str, margin: str, first: str = "") -> list[str]:
    first = first or margin
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=margin, break_on_hyphens=False
    )
    return lines or [first]


def _render_hop(plan: Plan, hop: HopEvidence, verdict: Verdict) -> Iterator[str]:
    yield f"hop {hop.number}"
    yield f"  outgoing  {clean(say_kernel(hop.before))}"
    yield f"  incoming  {clean(say_kernel(hop.after))}"
    for guest in guests_of(plan, hop):
        labels = {"hop": str(hop.number), "guest": guest}
        gaps = [
            f"{name.removeprefix('gap.')} {say_metric(metric)}"
            for name in GAPS
            for metric in find_metrics(verdict, name, **labels)
        ]
        blackout = [say_metric(metric) for metric in find_metrics(verdict, "blackout", **labels)]
        yield clean(
            f"  {guest}: blackout {blackout[0] if blackout else 'unknown'}; gaps: "
            f"{', '.join(gaps) or 'unknown'}"
        )
    yield from _render_devices(hop, verdict)
    yield from _render_phases(hop)


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
        yield clean(f"  {device}: {'; '.join(parts) or 'nothing seen'}")
    watch = [
        f"{label} {say_metric(metric)}"
        for name, label in (("rate", "at"), ("cpu", "for"), ("hole", "of a core, longest hole"))
        for metric in find_metrics(verdict, f"iommu.sampling.{name}", hop=str(hop.number))
    ]
    if watch:
        yield clean(f"  iommu: looked at from outside {' '.join(watch)}")
    for metric in find_metrics(verdict, "iommu.preserve", hop=str(hop.number)):
        pages, devices = metric.labels.get("pages"), metric.labels.get("devices")
        yield clean(
            f"  iommu: {pages} table pages of {devices} devices preserved in {say_metric(metric)},"
            " by the kernel's own clock"
        )


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
