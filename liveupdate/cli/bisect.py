# SPDX-License-Identifier: Apache-2.0
"""``liveupdate bisect``, a step of ``git bisect run``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from liveupdate.cli.app import App, for_bisect
from liveupdate.cli.options import ScenarioArgs, common, results_option, scenario_options
from liveupdate.cli.output import one_line, say
from liveupdate.cli.prepare_run import build_missing, prepare
from liveupdate.cli.results import required_checks
from liveupdate.cli.run import carry_out
from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LiveUpdateError
from liveupdate.images import catalogue
from liveupdate.scenario.load import Override

#: of git bisect run
_SAID = {0: "good", 125: "skip"}


@click.command()
@click.option(
    "--bad-side",
    type=click.Choice(["outgoing", "incoming", "both"]),
    default="incoming",
    show_default=True,
    help="Which kernel comes from the tree; the other one is the built one, or --kernel or"
    " --next-kernel.",
)
@scenario_options
@results_option
@common
def bisect(app: App, *, bad_side: str, scenario_args: ScenarioArgs, results: Path | None) -> int:
    """Judge the checked-out commit of a kernel tree, as a step of git bisect run.

    git bisect run liveupdate bisect --bad-side incoming --kernel-tree .

    The tree is --kernel-tree, or the working directory. One line says what the step saw. Exit
    status: 0 good; 1 or 5 bad; 125 skip: the commit does not build, cannot be tried, or the machine
    failed; 128 and above ends the bisect: the call is wrong.
    """
    given = {each.key: each.value for each in scenario_args.overrides}
    tree = given.get("kernel_tree", ".")
    overrides = [each for each in scenario_args.overrides if each.key != "kernel_tree"]
    if bad_side != "outgoing":
        overrides.append(Override("next_kernel_tree", tree, "--kernel-tree"))
    if bad_side != "incoming":
        overrides.append(Override("kernel_tree", tree, "--kernel-tree"))
    step = f"bisect: {commit_of(Path(tree))}, {bad_side} kernel"
    try:
        if bad_side == "outgoing" and not {"next_kernel", "next_kernel_tree"} & set(given):
            # by default, a tree makes both kernels
            build_missing(app, "a bisect", ("kernel-b",))
            pinned = catalogue.find_kernel("kernel-b").path
            overrides.append(Override("next_kernel", pinned, "--bad-side"))
        prepared = prepare(app, replace(scenario_args, overrides=tuple(overrides)), results)
        outcome, _ = carry_out(app, prepared, required_checks())
    except LiveUpdateError as error:
        say(f"{step}: not judged: {one_line(str(error))}")
        raise
    app.has_verdict = True
    verdict = outcome.verdict
    said = _SAID.get(for_bisect(verdict.exit_code), "bad")
    say(f"{step}: {said}: {verdict.outcome.value}: {one_line(verdict.reason)} ({outcome.run_dir})")
    return int(verdict.exit_code)


def commit_of(tree: Path) -> str:
    """Return the short hash of a tree's commit; the tree's name when git does not know it."""
    argv = ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"]
    done = proc.run(argv, deadline=Deadline.after(10.0, "git rev-parse"), check=False)
    return done.stdout.strip() or str(tree)
