# SPDX-License-Identifier: Apache-2.0
"""``liveupdate apply``, ``status``, ``resume`` and ``abort``: docs/apply.md."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from liveupdate.cli import complete
from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option, results_option
from liveupdate.model.verdict import ExitCode

PATIENCE_S = 120.0

run_argument = click.argument(
    "run_dir",
    metavar="[RUN]",
    required=False,
    type=click.Path(path_type=Path),
    shell_complete=complete.runs,
)
step_option = click.option("--step", "by_step", is_flag=True, help="Ask before each step.")
yes_option = click.option("--yes", "is_sure", is_flag=True, help="Skip the confirmation.")
host_option = click.option(
    "--host", metavar="HOST", help="The host as `apply` was given it; needed if it was a path."
)
patience_option = click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=1.0),
    default=PATIENCE_S,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for a host that does not answer.",
)


@click.command()
@click.argument("host")
@click.option(
    "--next-kernel",
    "incoming",
    required=True,
    metavar="PATH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="bzImage of the incoming kernel.",
)
@click.option(
    "--kernel",
    "outgoing",
    metavar="PATH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="bzImage of the running kernel; needed to compare all handover ABIs.",
)
@click.option("--dry-run", is_flag=True, help="Check the host and print the plan; change nothing.")
@step_option
@yes_option
@click.option(
    "--memory-digests/--no-memory-digests",
    "digests",
    default=True,
    help="Digest the guests' memory on the host during the blackout; makes it longer.",
)
@click.option(
    "--observe",
    "observe_s",
    type=click.FloatRange(min=1.0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Watch the guests this long before and after the update.",
)
@click.option(
    "--blackout",
    "blackout_s",
    type=click.FloatRange(min=0.0),
    metavar="SECONDS",
    help="Longest acceptable blackout; a longer one is FAIL, it is not cut short.",
)
@patience_option
@results_option
@json_option
@common
def apply(
    app: App, *, host: str, incoming: Path, outgoing: Path | None, dry_run: bool, by_step: bool,
    is_sure: bool, digests: bool, observe_s: float, blackout_s: float | None, patience_s: float,
    results: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Update the kernel of HOST, whose agent runs guests that matter.

    HOST is the name or the path of a machine's description (docs/targets.md). It must be in the
    allow-list ~/.config/liveupdate/apply.toml. Exit status as of `run`. 5: rolled back, the guests
    run as before. 3 also when the preflight refuses the host; then nothing was changed.
    """
    from liveupdate.cli import apply_session
    from liveupdate.cli.apply_text import document, show_findings, show_plan
    from liveupdate.cli.output import log, say, say_json
    from liveupdate.cli.prepare_run import check_results
    from liveupdate.cli.results import required_checks
    from liveupdate.core.paths import results_dir
    from liveupdate.evidence import RunDir
    from liveupdate.images.catalogue import read_kernel
    from liveupdate.model.scenario import Budget, Observation
    from liveupdate.operate.plan import plan_update
    from liveupdate.operate.preflight import check, refusals
    from liveupdate.operate.wal import Wal

    required_checks()
    place = apply_session.find_place(host)
    if not dry_run:
        apply_session.check_allowed(place)
        if by_step or not is_sure:
            apply_session.need_terminal("--step" if by_step else "--yes")
    kernel = read_kernel(incoming)
    running = read_kernel(outgoing) if outgoing is not None else None
    directory = results_dir(results)
    survey, console = apply_session.survey_host(place, min(apply_session.SURVEY_S, patience_s))
    local = apply_session.local_facts(kernel, running, directory, console, digests)
    findings = check(survey, local)
    if not as_json:
        say("preflight\n" + show_findings(findings))
    if refused := refusals(findings):
        if as_json:
            why = "; ".join(each.text for each in refused)
            say_json(document("apply", host, "refused", ExitCode.ERROR, why, findings))
        log("liveupdate: refused, nothing was done")
        return ExitCode.ERROR
    plan = plan_update(
        survey,
        local,
        place=place.path,
        append=place.machine.append,
        host_key=place.machine.host_key,
        key=place.machine.key,
        observe=Observation(before_s=observe_s, after_s=observe_s, memory=digests),
        budget=Budget(blackout_s=blackout_s),
    )
    if not as_json:
        say("\n" + show_plan(plan, survey, f"'{place.name}' ({place.address})"))
    if dry_run:
        if as_json:
            say_json(document("apply", host, "dry-run", ExitCode.PASS, findings=findings))
        return ExitCode.PASS
    if not is_sure:
        apply_session.confirm(f"update '{host}' now?")
    check_results(directory)
    record = RunDir.create(directory, plan=plan, scenario='name = "apply"\n')
    with Wal(record.path, create=True) as journal:
        journal.append(
            "begin",
            update=f"{record.path.name}-{secrets.token_hex(2)}",
            host=place.name,
            place=str(place.path),
            address=place.address,
            owner=apply_session.owner(),
            argv=list(app.argv),
            outgoing=local.outgoing.path if local.outgoing is not None else "",
        )
        return apply_session.Session(
            app=app, verb="apply", place=place, plan=plan, record=record, journal=journal,
            local=local, by_step=by_step, patience_s=patience_s, as_json=as_json,
            findings=findings,
        ).work()  # fmt: skip


@click.command()
@run_argument
@step_option
@click.option("--reset", is_flag=True, help="Reset the host first, by its power command.")
@host_option
@patience_option
@json_option
@common
def resume(
    app: App, *, run_dir: Path | None, by_step: bool, reset: bool, host: str | None,
    patience_s: float, as_json: bool,
) -> int:  # fmt: skip
    """Continue the update of run directory RUN (default: runs/latest) where it stopped.

    With --reset the host is reset first; use it for a host that does not come back. Guests that
    are still in its memory are lost.
    """
    return _go_on(
        app, "resume", run_dir, host, by_step=by_step, reset=reset, patience_s=patience_s,
        as_json=as_json,
    )  # fmt: skip


@click.command()
@run_argument
@host_option
@patience_option
@json_option
@common
def abort(
    app: App, *, run_dir: Path | None, host: str | None, patience_s: float, as_json: bool
) -> int:
    """Roll back the update of run directory RUN (default: runs/latest); its guests keep running.

    Possible until the point of no return. After it, abort is refused (exit 3): resume the update
    instead. Exit status 5 when the update was rolled back and the guests run.
    """
    return _go_on(
        app, "abort", run_dir, host, by_step=False, reset=False, patience_s=patience_s,
        as_json=as_json,
    )  # fmt: skip


def _go_on(
    app: App, verb: str, run_dir: Path | None, host: str | None, *, by_step: bool, reset: bool,
    patience_s: float, as_json: bool,
) -> int:  # fmt: skip
    from liveupdate.cli import apply_session
    from liveupdate.cli.results import required_checks
    from liveupdate.core.paths import results_dir
    from liveupdate.evidence import RunDir
    from liveupdate.images.catalogue import read_kernel
    from liveupdate.operate.wal import Wal

    required_checks()
    if by_step:
        apply_session.need_terminal("--step")
    path = (run_dir or results_dir() / "latest").resolve()
    with Wal(path) as journal:
        begin = journal.state.begin or {}
        place = apply_session.find_place_of(path, begin, host)
        apply_session.check_allowed(place)
        record = RunDir.reopen(path)
        plan = record.load_plan()
        outgoing = str(begin.get("outgoing") or "")
        local = apply_session.local_facts(
            plan.hops[0].incoming,
            read_kernel(Path(outgoing)) if outgoing else None,
            path.parent,
            apply_session.console_trouble(place.machine),
            plan.observe.memory,
        )
        if journal.state.outcome is None:
            journal.append("note", text=f"{verb} by {apply_session.owner()}, pid {os.getpid()}")
        return apply_session.Session(
            app=app, verb=verb, place=place, plan=plan, record=record, journal=journal,
            local=local, by_step=by_step, patience_s=patience_s, as_json=as_json,
        ).work(reset=reset)  # fmt: skip


@click.command()
@run_argument
@host_option
@click.option("--offline", is_flag=True, help="Read the journal only; do not ask the host.")
@json_option
@common
def status(
    app: App, *, run_dir: Path | None, host: str | None, offline: bool, as_json: bool
) -> int:
    """Show how far the update of run directory RUN (default: runs/latest) has got.

    Changes nothing and does not disturb a running update. Exit status 0 when the state is known.
    """
    from liveupdate.cli import apply_session
    from liveupdate.cli.apply_text import document, now_document, show_status
    from liveupdate.cli.output import say, say_json
    from liveupdate.core.errors import LiveUpdateError
    from liveupdate.core.paths import results_dir
    from liveupdate.operate.journal import decide, replay
    from liveupdate.operate.wal import read_journal

    path = (run_dir or results_dir() / "latest").resolve()
    records = read_journal(path)
    state = replay(records)
    begin = state.begin or {}
    name = str(begin.get("host", ""))
    view, trouble = None, "not asked"
    if not offline and state.outcome is None:
        try:
            view = apply_session.view_host(apply_session.find_place_of(path, begin, host))
        except LiveUpdateError as error:
            trouble = str(error)
    moves = {verb: decide(state, verb, view) for verb in ("resume", "abort")} if view else {}
    if as_json:
        outcome = state.outcome or "in-progress"
        made = document("status", name, outcome, ExitCode.PASS, state.why, (), path, records)
        say_json({**made, "now": now_document(view, trouble, moves)})
    else:
        say(show_status(name, records, view, trouble, moves))
    return ExitCode.PASS
