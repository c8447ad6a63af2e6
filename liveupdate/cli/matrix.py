# SPDX-License-Identifier: Apache-2.0
"""``liveupdate matrix``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import Wish, common, json_option
from liveupdate.cli.output import log, say, write_file
from liveupdate.errors import LiveUpdateError, PlanError, ScenarioError
from liveupdate.model.verdict import ExitCode

if TYPE_CHECKING:
    from liveupdate.matrix import Cell, Document, Row


def _listed(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    """Take values with commas between them apart."""
    found = tuple(item.strip() for item in value.split(",") if item.strip())
    if not found:
        raise click.BadParameter("an empty list")
    return found


def _counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    found = _listed(ctx, param, value)
    if not all(item.isdecimal() and int(item) > 0 for item in found):
        raise click.BadParameter(f"'{value}' must be numbers with commas between them")
    return tuple(map(int, found))


@click.command()
@click.argument("scenario", required=False)
@click.option("--mechanisms", callback=_listed, default="all", metavar="M,…", help="all, or names.")
@click.option(
    "--guest-memory", callback=_listed, default="256M", metavar="SIZE,…", help="RAM of every guest."
)
@click.option("--guests", callback=_counts, default="1", metavar="N,…", help="How many guests.")
@click.option(
    "--runs", type=click.IntRange(1, 100), default=1, metavar="N", help="Runs of each cell."
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    default=Path("matrix"),
    show_default=True,
    help="Directory of this matrix; what is there already is not run again.",
)
@json_option
@common
def matrix(
    app: App, *, scenario: str | None, mechanisms: Sequence[str], guest_memory: Sequence[str],
    guests: Sequence[int], runs: int, results: Path, as_json: bool,
) -> int:  # fmt: skip
    """Run every mechanism with every guest size, and compare them.

    Broken off, it goes on where it stopped. Writes matrix.json and matrix.md beside the runs.
    """
    from liveupdate import matrix as cells
    from liveupdate.preserve.registry import MECHANISMS
    from liveupdate.report import matrix as report
    from liveupdate.units import parse_size

    names = tuple(MECHANISMS) if tuple(mechanisms) == ("all",) else tuple(mechanisms)
    for name in names:
        if name not in MECHANISMS:
            raise ScenarioError(
                f"unknown mechanism '{name}'",
                where="--mechanisms",
                hint=f"known: {', '.join(MECHANISMS)}",
            )
    for size in guest_memory:
        try:
            parse_size(size)
        except ValueError as error:
            raise ScenarioError(str(error), where="--guest-memory") from error
    results.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for cell in cells.make_cells(names, guest_memory, guests):
        rows.append(_fill(app, cell, scenario, runs, results))
        # after each cell: a matrix takes hours, and what is there should be seen
        write_file(results / "matrix.json", report.render_json(rows))
        write_file(results / "matrix.md", report.render_table(rows))
    say(report.render_json(rows) if as_json else report.render_table(rows))
    return exit_code(rows)


def exit_code(rows: Sequence[Row]) -> ExitCode:
    """Return the worst that any cell came to; a cell without a run is an error."""
    outcomes = {outcome for row in rows for outcome, _ in row.runs}
    if "ERROR" in outcomes or any(not row.runs for row in rows):
        return ExitCode.ERROR
    return ExitCode.FAIL if "FAIL" in outcomes else ExitCode.PASS


def _fill(app: App, cell: Cell, scenario: str | None, runs: int, results: Path) -> Row:
    """Make the runs of a cell that are still missing; return all there are."""
    from liveupdate import matrix as cells

    directory = results / cell.name
    done = [each for each in read_results(directory) if cells.is_observed(each[1])]
    refused = ""
    for number in range(len(done), runs):
        log(f"matrix: {cell.name}, run {number + 1} of {runs}")
        try:
            _run(app, cell, scenario, directory)
        except (PlanError, ScenarioError) as error:
            refused = str(error)  # this combination cannot be; the others may
            log(f"matrix: {cell.name}: {refused}")
            break
        except LiveUpdateError as error:
            refused = str(error)
            log(f"matrix: {cell.name}: {refused}")
    found = read_results(directory)
    # errors count while there is nothing better
    observed = [each for each in found if cells.is_observed(each[1])]
    return cells.summarise(cell, observed or found, refused)


def _run(app: App, cell: Cell, scenario: str | None, directory: Path) -> None:
    from liveupdate.cli.gather import prepare
    from liveupdate.cli.run import carry_out

    wish = Wish(
        scenario=scenario,
        overrides=(
            ("mechanism", cell.mechanism, "--mechanisms"),
            ("guests", str(cell.guests), "--guests"),
            ("guest.*.memory", cell.guest_memory, "--guest-memory"),
        ),
    )
    carry_out(app, prepare(wish, directory), frozenset())


def read_results(directory: Path) -> list[tuple[str, Document]]:
    """Return path and result of every finished run below ``directory``, oldest first.

    A run that was cut off has no result, and is as if it had never been.
    """
    from liveupdate.model import layout

    found: list[tuple[str, Document]] = []
    for path in sorted(directory.glob(f"*/{layout.RESULT}")):
        if path.parent.is_symlink():
            continue
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            log(f"matrix: {path} cannot be used: {error}")
            continue
        found.append((str(path.parent), document))
    return found
