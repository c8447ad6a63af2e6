# SPDX-License-Identifier: Apache-2.0
"""The timeline of one hop as inline SVG: phases of the host and of each guest, and the gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from liveupdate.core.units import format_ns
from liveupdate.judging.compare import Gap, network_gap, storage_gap, vcpu_gap
from liveupdate.model.evidence import GuestTrace, HopEvidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Verdict
from liveupdate.report import svg
from liveupdate.report.common import guests_of

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
    title = f"Timeline of hop {hop.number}, {verdict.outcome.value}"
    return svg.picture(title, _WIDTH, height, "currentColor", body)


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
        anchor = "end" if index == _GRID_LINES else "middle"
        yield svg.line(f"M{x:.1f} {_TOP - 6}V{height}", "#9999994d")
        yield svg.text(x, 12, f"{(at - origin) / 1e9:+.2f} s", anchor)


def _draw(bar: _Bar, began: int, scale: float, y: int) -> Iterator[str]:
    x = _LEFT + (bar.began_ns - began) * scale
    length = bar.ended_ns - bar.began_ns
    # what took next to no time is still to be seen
    width = max(length * scale, 1.5)
    took = format_ns(length)
    yield svg.text(_LEFT - 8, y + 14, bar.label, "end")
    yield svg.box(x, y + 3, width, _ROW - 6, _COLOURS[bar.kind], f"{bar.label}: {took}")
    if width > 60:
        yield svg.text(x + 4, y + 14, took, "start", ' fill="#fff"')
    elif x + width > _WIDTH - 70:
        yield svg.text(x - 4, y + 14, took, "end")
    else:
        yield svg.text(x + width + 4, y + 14, took, "start")
