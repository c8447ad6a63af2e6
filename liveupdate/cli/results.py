# SPDX-License-Identifier: Apache-2.0
"""From a finished run or a stored one to reports, messages and the exit status."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from liveupdate.cli.app import App
from liveupdate.cli.output import last_lines, log, one_line, printable, say, wants_color, write_file
from liveupdate.evidence import RunDir, StoreError
from liveupdate.judging.judge import judge
from liveupdate.judging.require import VARIABLE, apply_required, parse_required
from liveupdate.model import slots
from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import ExitCode, Verdict
from liveupdate.model.verdict import Outcome as Status
from liveupdate.report.html import render_html
from liveupdate.report.json_result import render_json
from liveupdate.report.junit import render_junit
from liveupdate.report.ktap import render_ktap
from liveupdate.report.text import render_text

#: SGR parameters: green, bold red, yellow, bold magenta
STATUS_COLORS = {"PASS": "32", "FAIL": "1;31", "SKIP": "33", "ERROR": "1;35"}
#: how much of the console is shown when a run went wrong
CONSOLE_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A judged run, from a machine or from a directory."""

    plan: Plan
    evidence: Evidence
    verdict: Verdict
    run_dir: Path


def required_checks(env: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the checks that LIVEUPDATE_REQUIRE forbids to skip; read before anything starts."""
    return parse_required(env.get(VARIABLE, ""))


def judge_directory(path: Path, required: frozenset[str]) -> Outcome:
    """Judge a run directory without a machine.

    :raises EvidenceError: this is no run directory, or its plan cannot be used.
    """
    record = RunDir.open(path)
    return judge_record(record, record.load_plan(), required)


def judge_record(record: RunDir, plan: Plan, required: frozenset[str]) -> Outcome:
    """Judge what a run has stored, and what it could not store."""
    evidence = record.load_evidence()
    verdict = apply_required(judge(plan, evidence), required)
    return Outcome(plan=plan, evidence=evidence, verdict=verdict, run_dir=record.path)


def render(outcome: Outcome, kind: str, *, color: bool = False, with_details: bool = False) -> str:
    """Render a report in text, json, junit, ktap or html; the flags are for text only."""
    arguments = (outcome.plan, outcome.evidence, outcome.verdict)
    match kind:
        case "json":
            return render_json(*arguments, RunDir.open(outcome.run_dir).artifacts())
        case "junit":
            return render_junit(*arguments)
        case "ktap":
            return render_ktap(*arguments)
        case "html":
            return render_html(*arguments)
    text = render_text(*arguments, with_details=with_details)
    return paint(text) if color else text


def paint(text: str) -> str:
    """Colour the statuses of a text report; it has no escapes of its own."""
    return re.sub(
        r"\b(?:PASS|FAIL|SKIP|ERROR)\b",
        lambda match: f"\x1b[{STATUS_COLORS[match[0]]}m{match[0]}\x1b[0m",
        text,
    )


def write_reports(outcome: Outcome, junit: Path | None, ktap: Path | None) -> None:
    """Write the reports that were asked for by ``--junit`` and ``--ktap``."""
    for kind, path in (("junit", junit), ("ktap", ktap)):
        if path is not None:
            write_file(path, render(outcome, kind))


def store_reports(outcome: Outcome) -> Outcome:
    """Write the reports of the run directory; they can be made again from the evidence at any time.

    A pass whose result cannot be stored is no pass: the returned outcome is then an error.
    """
    reports = (("json", slots.RESULT), ("junit", slots.JUNIT), ("html", slots.REPORT))
    try:
        record = RunDir.open(outcome.run_dir)
        for kind, name in reports:
            record.write_report(name, render(outcome, kind))
    except StoreError as error:
        log(f"liveupdate: {one_line(str(error))}")
        if outcome.verdict.outcome in (Status.PASS, Status.SKIP):
            verdict = replace(outcome.verdict, outcome=Status.ERROR, reason=error.message)
            return replace(outcome, verdict=verdict)
    return outcome


def show(outcome: Outcome, app: App, *, as_json: bool) -> int:
    """Print the result and return the exit status."""
    kind = "json" if as_json else "text"
    say(render(outcome, kind, color=has_color(app), with_details=app.verbosity > 0))
    return ExitCode(outcome.verdict.exit_code)


def has_color(app: App) -> bool:
    """Whether what goes to stdout is coloured."""
    return wants_color(app.color, os.environ, is_tty=sys.stdout.isatty())


def explain_failure(outcome: Outcome, argv: Iterable[str], console: Iterable[str] = ()) -> None:
    """Print what a person needs next: reason, console, directory, and how to reproduce it."""
    verdict = outcome.verdict
    log(f"liveupdate: {verdict.outcome.value}: {one_line(verdict.reason or 'no reason given')}")
    lines = tuple(console) or last_console_lines(outcome.run_dir)
    if lines:
        log("last lines of the host's console:")
        for line in lines[-CONSOLE_LINES:]:
            log(f"  | {printable(line)}")
    log(f"run directory: {outcome.run_dir}")
    log(f"reproduce: {shlex.join(argv)}")


def last_console_lines(run_dir: Path, count: int = CONSOLE_LINES) -> tuple[str, ...]:
    """Return the end of the newest boot's console log, if there is one."""
    from liveupdate.evidence.beneath import open_beneath

    boots = sorted(
        (path for path in run_dir.glob("boot-*/console.log") if path.parent.name[5:].isdigit()),
        key=lambda path: int(path.parent.name[5:]),
    )
    for path in reversed(boots):
        try:
            with open_beneath(run_dir, str(path.relative_to(run_dir))) as file:
                kept = [line.rstrip() for line in last_lines(file, 16384) if line.strip()]
        except OSError:
            continue
        if kept:
            return tuple(kept[-count:])
    return ()
