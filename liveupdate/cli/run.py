# SPDX-License-Identifier: Apache-2.0
"""``liveupdate run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import (
    ScenarioArgs,
    common,
    json_option,
    report_files,
    results_option,
    scenario_options,
)
from liveupdate.model.verdict import ExitCode

if TYPE_CHECKING:
    from liveupdate.cli.prepare_run import Prepared
    from liveupdate.cli.results import Outcome


@click.command()
@scenario_options
@results_option
@json_option
@report_files
@click.option(
    "--bisect",
    is_flag=True,
    expose_value=False,
    help="Exit for git bisect run: 125 when the run cannot be judged, 128 for a wrong call.",
)
@common
def run(
    app: App, *, scenario_args: ScenarioArgs, results: Path | None, as_json: bool,
    junit: Path | None, ktap: Path | None,
) -> int:  # fmt: skip
    """Update a host under its guests and judge the result.

    SCENARIO is a TOML file (docs/scenario.md) or the name of a shipped one. Without it, one guest
    goes through one kexec, or a fault gets the scenario that it needs (see `liveupdate faults`).
    """
    from liveupdate.cli import results as outcomes
    from liveupdate.cli.prepare_run import prepare

    required = outcomes.required_checks()
    prepared = prepare(app, scenario_args, results, reports=(junit, ktap))
    outcome, console = carry_out(app, prepared, required)
    app.has_verdict = True
    outcomes.write_reports(outcome, junit, ktap)
    code = outcomes.show(outcome, app, as_json=as_json)
    if code != ExitCode.PASS:
        outcomes.explain_failure(outcome, app.command_line, console)
    return code


def carry_out(
    app: App, prepared: Prepared, required: frozenset[str]
) -> tuple[Outcome, tuple[str, ...]]:
    """Run the plan under the view; return the outcome and the console's last lines."""
    from liveupdate.cli.results import Outcome, store_reports
    from liveupdate.cli.view import show_steps
    from liveupdate.judging.require import apply_required
    from liveupdate.run import runner
    from liveupdate.target.blackouts import note_shown

    with show_steps(app) as steps:
        steps.note("accelerator", accel=prepared.plan.machine.accel, reason=prepared.accel_reason)
        done = runner.run(
            prepared.plan,
            prepared.scenario,
            results=prepared.results,
            steps=steps,
            argv=app.command_line,
            accel_reason=prepared.accel_reason,
        )
    shown = [each.value for each in done.verdict.metrics if each.name in ("blackout", "gap.device")]
    if shown:
        note_shown(prepared.plan.machine.accel, max(shown) / 1e9)
    outcome = Outcome(
        plan=prepared.plan,
        evidence=done.evidence,
        verdict=apply_required(done.verdict, required),
        run_dir=done.run_dir,
    )
    return store_reports(outcome), done.console_tail
