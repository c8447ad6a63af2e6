# SPDX-License-Identifier: Apache-2.0
"""The timeline of one hop as inline SVG: phases of the host and of each guest, and the gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from liveupdate.core.units import format_ns
from liveupdate.judging.compare import Gap, network_gap, storage_gap, vcpu_gap
from liveupdate.model.evidence import GuestTrace, HopEvidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Verdict
from liveupdate.report.common import clean, guests_of

_WIDTH = 1000
_LEFT = 190
_ROW = 22
_TOP = 24
_GRID_LINES = 8
#: fill of phases of the host, phases of guests, gaps; readable on white and on black
_COLOURS = {"host": "#4477aa", "guest": "#228833", "gap": "#cc6677"}


@dataclass(frozen=True, slots=True)
class _Bar:
    label: str
    kind: str
    began_ns: int
    ended_ns: int


def render_timeline(plan: Plan, hop: HopEvidence, verdict: Verdict) -> str:
    """Render one hop; if none of its times is known, say so."""
    bars = list(_bars(plan, hop))
    if not bars:
        return "<p>No phase of this hop was timed.</p>"
    began = min(bar.began_ns for bar in bars)
    ended = max(max(bar.ended_ns for bar in bars), began + 1)
    scale = (_WIDTH - _LEFT - 10) / (ended - began)
    height = _TOP + _ROW * len(bars) + 6
    body = [*_grid(began, ended, scale, height, hop)]
    for row, bar in enumerate(bars):
        body += _draw(bar, began, scale, _TOP + row * _ROW)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Timeline of hop {hop.number}, {verdict.outcome.value}" '
        f'font-family="system-ui,sans-serif" font-size="11" fill="currentColor">'
        + "".join(body)
        + "</svg>"
    )


def _bars(plan: Plan, hop: HopEvidence) -> Iterator[_Bar]:
    phases = sorted(hop.phases, key=lambda phase: (phase.began_ns, -phase.ended_ns))
    for phase in phases:
        if not phase.guest:
            yield _Bar(phase.name, "host", phase.began_ns, phase.ended_ns)
    traces = {trace.guest: trace for trace in hop.guests}
    for guest in guests_of(plan, hop):
        for phase in phases:
            if phase.guest == guest:
                yield _Bar(f"{guest}: {phase.name}", "guest", phase.began_ns, phase.ended_ns)
        if guest in traces:
            for name, gap in _gaps(hop, traces[guest]):
                if gap is not None:
                    yield _Bar(f"{guest}: {name} gap", "gap", gap.began_ns, gap.ended_ns)


def _gaps(hop: HopEvidence, trace: GuestTrace) -> Iterator[tuple[str, Gap | None]]:
    pause = hop.paused_ns.get(trace.guest), hop.resumed_ns.get(trace.guest)
    yield "vCPU", vcpu_gap(trace.ticks, *pause)
    yield "network", network_gap(trace.echoes, *pause)
    yield "storage", storage_gap(trace.journal, *pause)


def _grid(began: int, ended: int, scale: float, height: int, hop: HopEvidence) -> Iterator[str]:
    """Vertical lines with the time from the first pause."""
    origin = min(hop.paused_ns.values(), default=began)
    for index in range(_GRID_LINES + 1):
        at = began + (ended - began) * index // _GRID_LINES
        x = _LEFT + (at - began) * scale
        offset = at - origin
        label = ("-" if offset < 0 else "+") + f"{abs(offset) / 1e9:.2f} s"
        anchor = "end" if index == _GRID_LINES else "middle"
        yield (
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height}" stroke="#999" '
            f'stroke-opacity=".3"/><text x="{x:.1f}" y="12" text-anchor="{anchor}">{label}</text>'
        )


def _draw(bar: _Bar, began: int, scale: float, y: int) -> Iterator[str]:
    x = _LEFT + (bar.began_ns - began) * scale
    length = bar.ended_ns - bar.began_ns
    # what took next to no time is still to be seen
    width = max(length * scale, 1.5)
    label = escape(clean(bar.label))
    took = format_ns(length)
    yield (
        f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{label}</text>'
        f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}" rx="2" '
        f'fill="{_COLOURS[bar.kind]}"><title>{label}: {took}</title></rect>'
    )
    inside = width > 60
    if inside:
        yield f'<text x="{x + 4:.1f}" y="{y + 14}" fill="#fff">{took}</text>'
        return
    is_far_right = x + width > _WIDTH - 70
    at = x - 4 if is_far_right else x + width + 4
    anchor = "end" if is_far_right else "start"
    yield f'<text x="{at:.1f}" y="{y + 14}" text-anchor="{anchor}">{took}</text>'
