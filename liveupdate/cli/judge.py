# SPDX-License-Identifier: Apache-2.0
"""``liveupdate judge`` and ``liveupdate report``: from a run directory, with no machine."""

from __future__ import annotations

from pathlib import Path

import click

from liveupdate.cli import complete
from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option, report_files
from liveupdate.core.errors import EvidenceError
from liveupdate.model.verdict import ExitCode

run_dir_argument = click.argument(
    "run_dir", metavar="RUN", type=click.Path(path_type=Path), shell_complete=complete.runs
)


@click.command()
@run_dir_argument
@click.option(
    "--require-sealed", is_flag=True, help="Refuse a run of an earlier version, without a seal."
)
@json_option
@report_files
@common
def judge(
    app: App, *, run_dir: Path, require_sealed: bool, as_json: bool, junit: Path | None,
    ktap: Path | None,
) -> int:  # fmt: skip
    """Judge the run directory or bundle RUN again; the exit status is that of the run.

    Reads evidence only and changes nothing in RUN. Altered evidence is ERROR, never PASS.
    """
    import tempfile

    from liveupdate.cli import results
    from liveupdate.cli.output import check_report
    from liveupdate.operate.bundle import unpack

    for path in filter(None, (junit, ktap)):
        check_report(path)
    with tempfile.TemporaryDirectory(prefix="liveupdate-") as scratch:
        if run_dir.is_file():
            run_dir = unpack(run_dir, Path(scratch))
        outcome = results.judge_directory(run_dir, results.required_checks())
        if require_sealed and outcome.evidence.seal is None:
            raise EvidenceError(f"'{run_dir}' is not sealed: an earlier version made it")
        results.write_reports(outcome, junit, ktap)
        return results.show(outcome, app, as_json=as_json)


@click.command()
@run_dir_argument
@click.option(
    "--format",
    "kind",
    type=click.Choice(["text", "json", "junit", "ktap", "html"]),
    default="text",
    show_default=True,
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file."
)
@common
def report(app: App, *, run_dir: Path, kind: str, output: Path | None) -> int:
    """Report on the run directory RUN; exits 0 whatever the verdict (see `judge`)."""
    from liveupdate.cli import results
    from liveupdate.cli.output import say, write_file

    outcome = results.judge_directory(run_dir, results.required_checks())
    text = results.render(
        outcome,
        kind,
        color=output is None and results.has_color(app),
        with_details=app.verbosity > 0,
    )
    if output is not None:
        write_file(output, text)
    else:
        say(text)
    return ExitCode.PASS
