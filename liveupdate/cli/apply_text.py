# SPDX-License-Identifier: Apache-2.0
"""The output of ``apply``, ``status``, ``resume`` and ``abort``, for people and for programs.

``docs/apply.md`` describes the JSON document of all four.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from liveupdate.cli.output import printable
from liveupdate.core.units import format_size
from liveupdate.evidence.beneath import read_beneath
from liveupdate.model import slots
from liveupdate.model.codec import encode
from liveupdate.model.plan import Plan
from liveupdate.operate.bundle import Bundle
from liveupdate.operate.journal import HostView, Move, Record, replay
from liveupdate.operate.preflight import Finding
from liveupdate.operate.steps import FORWARD, NO_RETURN
from liveupdate.operate.survey import Survey

SCHEMA_VERSION = "1.0"


def show_findings(findings: tuple[Finding, ...]) -> str:
    """Format the findings of the preflight for people."""
    lines = []
    for each in findings:
        subject = f" {each.subject}:" if each.subject else ""
        lines.append(f"  {each.level.value:<6} {each.id:<24}{subject} {each.text}")
        if each.hint and each.level.value != "ok":
            lines.append(f"  {'':<6} {'':<24} ({each.hint})")
    return "\n".join(map(printable, lines))


def show_plan(plan: Plan, survey: Survey, host: str) -> str:
    """Format the plan with risks and the way back, for people."""
    hop = plan.hops[0]
    total = sum(guest.memory_bytes for guest in plan.guests)
    lines = [
        f"update of {host}",
        f"  from  {survey.facts.release} (build id {survey.facts.build_id[:12] or 'none'})",
        f"  to    {hop.incoming.release} (build id {hop.incoming.build_id[:12] or 'none'})",
        f"  guests {', '.join(guest.name for guest in plan.guests)}, {format_size(total)} in all;"
        f" update number {hop.number} of this host",
        "",
    ]
    for number, step in enumerate(FORWARD, 1):
        if step.name == NO_RETURN:
            lines.append("  ---- point of no return: no way back from here on ----")
        lines.append(f"  {number:>2} {step.name:<15} {step.does}")
        if step.risk != "none":
            lines.append(f"     {'':<15} risk: {step.risk}")
        lines.append(f"     {'':<15} back: {step.rollback}")
    return "\n".join(map(printable, lines))


def step_rows(records: tuple[Record, ...]) -> list[dict[str, object]]:
    """Return one row for each step that was begun: its name, status, times in UTC and error."""
    rows: list[dict[str, object]] = []
    for record in records:
        if record.kind == "intent":
            rows.append(
                {"name": record.step, "status": "begun", "began_utc": record.utc,
                 "ended_utc": None, "error": None}
            )  # fmt: skip
        elif record.kind in ("done", "failed") and rows:
            rows[-1]["status"] = record.kind
            rows[-1]["ended_utc"] = record.utc
            rows[-1]["error"] = record.data.get("error")
    return rows


def document(
    verb: str,
    host: str,
    outcome: str,
    exit_code: int,
    why: str = "",
    findings: tuple[Finding, ...] = (),
    run_dir: Path | None = None,
    records: tuple[Record, ...] = (),
    bundle: Bundle | None = None,
) -> dict[str, object]:
    """Build the JSON document of ``apply``, ``resume``, ``abort`` and ``status``."""
    state = replay(records)
    result = following = None
    if run_dir is not None:
        with contextlib.suppress(OSError, ValueError):
            result = json.loads(read_beneath(run_dir, slots.RESULT))
        if outcome in ("interrupted", "stopped", "in-progress", "unreachable"):
            following = f"liveupdate resume {run_dir}"
    return {
        "schema_version": SCHEMA_VERSION,
        "verb": verb,
        "host": host,
        "outcome": outcome,
        "exit_code": int(exit_code),
        "reason": why,
        "update": (state.begin or {}).get("update"),
        "past_no_return": state.is_past,
        "run_dir": str(run_dir) if run_dir is not None else None,
        "bundle": {**asdict(bundle), "path": str(bundle.path)} if bundle is not None else None,
        "preflight": [encode(each) for each in findings],
        "steps": step_rows(records),
        "result": result,
        "next": following,
    }


def now_document(
    view: HostView | None, trouble: str, moves: Mapping[str, Move]
) -> dict[str, object]:
    """Return the state that the host reports, and what each verb would do."""
    return {
        "host": encode(view) if view is not None else None,
        "trouble": "" if view is not None else trouble,
        "verbs": {verb: encode(move) for verb, move in moves.items()},
    }


def show_status(
    name: str,
    records: tuple[Record, ...],
    view: HostView | None,
    trouble: str,
    moves: Mapping[str, Move],
) -> str:
    """Format how far an update has got, for people."""
    state = replay(records)
    begin = state.begin or {}
    lines = [f"update {begin.get('update')} of '{name}' by {begin.get('owner')}"]
    for row in step_rows(records):
        lines.append(f"  {row['began_utc']} {row['name']:<15} {row['status']}")
        if row["error"]:
            lines.append(f"    {row['error']}")
    if state.outcome is not None:
        lines.append(f"ended: {state.outcome}, exit status {state.exit_code}")
    else:
        passed = "was asked for: the point of no return may be passed" if state.is_past else (
            "was not asked for: it can still be given up"
        )  # fmt: skip
        lines.append(f"the jump {passed}")
        if view is None:
            lines.append(f"the host does not say: {trouble}")
        else:
            held = f"held by update {view.update} of {view.owner}" if view.update else "not held"
            same = "another boot"
            if view.boot_id == (state.host_boot_id or view.boot_id):
                same = "the boot the update began in"
            lines.append(f"the host is in {same}, {view.handover}, {held}")
        for verb, move in moves.items():
            what = {"go": f"goes on with '{move.step}'", "turn": f"{move.path}: {move.why}",
                    "refused": f"is refused: {move.why}", "ended": "has nothing to do"}  # fmt: skip
            lines.append(f"'{verb}' {what[move.kind]}")
    return "\n".join(map(printable, lines))
