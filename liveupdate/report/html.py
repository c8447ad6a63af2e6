# SPDX-License-Identifier: Apache-2.0
"""One HTML page that contains everything: no script, no font, nothing loaded from elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from html import escape

from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Outcome, Verdict
from liveupdate.report.common import artifacts_of, clean, say_metric, say_outcome
from liveupdate.report.timeline_svg import render_timeline

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222;
background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left;vertical-align:top}
td.number{text-align:right;font-variant-numeric:tabular-nums}
.status{font-weight:bold;white-space:nowrap}
.PASS{color:#176b2c}.FAIL{color:#b00020}.ERROR{color:#8a5a00}.SKIP{color:#666}
code{font-size:.9em;overflow-wrap:anywhere}
svg{width:100%;height:auto}
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}td,th{border-color:#444}
.PASS{color:#6fcf87}.FAIL{color:#ff7b8a}.ERROR{color:#f0b95b}.SKIP{color:#999}}
"""


def render_html(plan: Plan, evidence: Evidence, verdict: Verdict) -> str:
    """Render the page."""
    title = f"{say_outcome(verdict)}: {clean(plan.scenario)}"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
        f'<h1><span class="{verdict.outcome.value}">{say_outcome(verdict)}</span> '
        f"{_text(plan.scenario)}</h1>",
        f"<p>{_text(verdict.reason)}</p>" if verdict.reason else "",
        *_summary(plan, evidence),
        "<h2>Checks</h2>",
        *_checks(verdict),
        "<h2>Timeline</h2>",
        *(
            f"<h3>Hop {hop.number}</h3>{render_timeline(plan, hop, verdict)}"
            for hop in evidence.hops
        ),
        "<h2>Metrics</h2>",
        *_metrics(verdict),
        *_incidents(evidence),
        "<h2>Files</h2>",
        *_files(evidence),
        "</body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _text(text: str) -> str:
    return escape(clean(text))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Write a table; cells are HTML already."""
    yield "<table><tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"
    for row in rows:
        yield (
            "<tr>"
            + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
            + "</tr>"
        )
    yield "</table>"


def _summary(plan: Plan, evidence: Evidence) -> Iterator[str]:
    rows = [
        ["outgoing kernel", _kernel(plan.images.outgoing.release, plan.images.outgoing.build_id)]
    ]
    for hop in plan.hops:
        kernel = _kernel(hop.incoming.release, hop.incoming.build_id)
        rows.append([f"incoming kernel of hop {hop.number}", kernel])
    provenance = evidence.provenance
    if provenance is not None:
        rows += [
            ["run", f"{_text(provenance.run_id)}, {_text(provenance.started_utc)}"],
            ["tool", _text(provenance.tool_version)],
            ["accelerator", f"{_text(provenance.accel)} ({_text(provenance.accel_reason)})"],
            ["start", _text(provenance.start)],
            ["QEMU", _text(provenance.qemu_version)],
            ["guests' QEMU", _text(provenance.guest_qemu_version or "unknown")],
            ["command", f"<code>{_text(shlex.join(provenance.argv))}</code>"],
        ]
    yield from _table(("", ""), rows)


def _kernel(release: str, build_id: str) -> str:
    return f"{_text(release)} <code>{_text(build_id) or 'no build id'}</code>"


def _checks(verdict: Verdict) -> Iterator[str]:
    rows = (
        (
            f'<td class="status {check.status.value}">{check.status.value}</td>',
            f"<code>{_text(check.id)}</code>",
            _text(check.reason)
            + (
                f"<br>expected {_text(check.expected)}, observed {_text(check.observed)}"
                if check.status is Outcome.FAIL and check.expected
                else ""
            ),
            "<br>".join(f"<code>{_text(path)}</code>" for path in check.evidence),
        )
        for check in verdict.checks
    )
    yield from _table(("Status", "Check", "Reason", "Evidence"), rows)


def _metrics(verdict: Verdict) -> Iterator[str]:
    rows = (
        (
            _text(metric.name),
            _text(", ".join(f"{name} {value}" for name, value in metric.labels.items())),
            f'<td class="number">{_text(say_metric(metric))}</td>',
        )
        for metric in verdict.metrics
    )
    yield from _table(("Metric", "Of", "Value"), rows)


def _incidents(evidence: Evidence) -> Iterator[str]:
    if not evidence.incidents and not evidence.unreadable:
        return
    yield "<h2>Incidents</h2>"
    rows = [
        (str(incident.hop), _text(incident.kind), _text(incident.guest), _text(incident.text))
        for incident in evidence.incidents
    ]
    rows += [
        ("", "unreadable", "", f"{_text(p)}: {_text(w)}") for p, w in evidence.unreadable.items()
    ]
    yield from _table(("Hop", "Kind", "Guest", "What"), rows)


def _files(evidence: Evidence) -> Iterator[str]:
    rows = (
        (
            f"<code>{_text(artifact.path)}</code>",
            f'<td class="number">{artifact.size_bytes}</td>',
            f"<code>{_text(artifact.sha256)}</code>",
        )
        for artifact in artifacts_of(evidence)
    )
    yield from _table(("File", "Bytes", "SHA-256"), rows)
