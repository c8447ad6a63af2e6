# SPDX-License-Identifier: Apache-2.0
"""``liveupdate matrix``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from liveupdate.cli import complete
from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option
from liveupdate.cli.output import say
from liveupdate.core.errors import ScenarioError


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
@click.argument("scenario", required=False, shell_complete=complete.scenarios)
@click.option("--mechanisms", callback=_listed, default="all", metavar="M,…", help="all, or names.")
@click.option(
    "--guest-memory", callback=_listed, default="256M", metavar="SIZE,…", help="RAM of every guest."
)
@click.option("--guests", callback=_counts, default="1", metavar="N,…", help="How many guests.")
@click.option(
    "--next-kernels",
    metavar="PATH,…",
    help="bzImages of incoming kernels; 'built' is the built one, which is the default.",
)
@click.option(
    "--fragment",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Also run with this share of the host's free memory fragmented; 0: do not.",
)
@click.option(
    "--runs", type=click.IntRange(1, 100), default=1, metavar="N", help="Runs of each cell."
)
@click.option(
    "--fragment-runs",
    type=click.IntRange(1, 100),
    metavar="N",
    help="Runs of each cell with fragmented memory; as --runs when absent.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    metavar="N",
    help="Parallel runs; timings then include contention.",
)
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of every scenario."
)
@click.option("--dry-run", is_flag=True, help="Run nothing; show the results so far.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    default=Path("matrix"),
    show_default=True,
    help="Directory of this matrix; finished runs in it are kept and not repeated.",
)
@json_option
@common
def matrix(
    app: App, *, scenario: str | None, mechanisms: Sequence[str], guest_memory: Sequence[str],
    guests: Sequence[int], next_kernels: str | None, fragment: float, runs: int,
    fragment_runs: int | None, jobs: int, sets: Sequence[str], dry_run: bool, results: Path,
    as_json: bool,
) -> int:  # fmt: skip
    """Run every mechanism with every guest size and compare them.

    An interrupted matrix continues where it stopped. Writes matrix.json, matrix.md and plots
    beside the runs.
    """
    from liveupdate.cli.matrix_jobs import Runs, describe, exit_code
    from liveupdate.planning import matrix as cells
    from liveupdate.report import matrix as report
    from liveupdate.scenario.load import set_override

    names = _find_mechanisms(mechanisms)
    _check_sizes(guest_memory)
    more = [set_override(text) for text in sets]
    known = describe(names)
    planned = cells.make_cells(
        names,
        guest_memory,
        guests,
        _find_kernels(next_kernels),
        (0.0, fragment) if fragment else (0.0,),
    )
    own = {each.key for cell in planned for each in cell.overrides()}
    for each in more:
        if each.key in own:
            raise ScenarioError("the matrix sets this key itself", where=each.option)
    results.mkdir(parents=True, exist_ok=True)
    wanted = {cell: (fragment_runs or runs) if cell.fragment else runs for cell in planned}
    made = Runs(app=app, scenario=scenario, wanted=wanted, known=known, more=more, results=results)
    if not dry_run:
        made.make(jobs)
    rows = made.show()
    text = report.render_json(rows, known) if as_json else report.render_table(rows, known)
    say(text)
    return exit_code(rows)


def _find_mechanisms(wanted: Sequence[str]) -> tuple[str, ...]:
    from liveupdate.planning.mechanisms import MECHANISMS

    names = tuple(MECHANISMS) if tuple(wanted) == ("all",) else tuple(dict.fromkeys(wanted))
    for name in names:
        if name not in MECHANISMS:
            raise ScenarioError(
                f"unknown mechanism '{name}'",
                where="--mechanisms",
                hint=f"known: {', '.join(MECHANISMS)}",
            )
    return names


def _check_sizes(sizes: Iterable[str]) -> None:
    from liveupdate.core.units import parse_size

    for size in sizes:
        try:
            parse_size(size)
        except ValueError as error:
            raise ScenarioError(str(error), where="--guest-memory") from error


def _find_kernels(wanted: str | None) -> tuple[str, ...]:
    """Return paths of incoming kernels, "" for the built one; relative to here, so made whole."""
    if wanted is None:
        return ("",)
    found = [item.strip() for item in wanted.split(",") if item.strip()]
    if not found:
        raise ScenarioError("an empty list", where="--next-kernels")
    return tuple("" if item == "built" else str(Path(item).absolute()) for item in found)
