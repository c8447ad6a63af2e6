# SPDX-License-Identifier: Apache-2.0
"""``liveupdate stage`` and ``liveupdate kselftest``: two-stage programs across a real kexec."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import ScenarioArgs, common, results_option, scenario_options
from liveupdate.cli.output import log, printable, say, write_file
from liveupdate.cli.prepare_run import Prepared, prepare
from liveupdate.cli.view import show_steps
from liveupdate.core.paths import guest_images_dir
from liveupdate.images import kselftest as builder
from liveupdate.images import source
from liveupdate.images.catalogue import make_kit, open_cache
from liveupdate.images.usertree import find_layout
from liveupdate.model.verdict import ExitCode, Outcome, reduce
from liveupdate.run.bringup import make_host
from liveupdate.run.stages import Staged, as_ktap, give_time, run_stages
from liveupdate.scenario.load import Override

timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=1), default=60.0, show_default=True, metavar="SECONDS",
    help="How long a stage may take.",
)  # fmt: skip


@click.command()
@click.argument("program", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="A file to put beside the program.",
)
@click.option("--flag", default="--stage", show_default=True, help="Its option for the stage.")
@timeout_option
@scenario_options
@results_option
@common
def stage(
    app: App, *, program: Path, files: tuple[Path, ...], flag: str, timeout: float,
    scenario_args: ScenarioArgs, results: Path | None,
) -> int:  # fmt: skip
    """Run PROGRAM --stage 1, kexec, and PROGRAM --stage 2; print KTAP.

    PROGRAM is static, or a script. It passes when both stages exit with 0; 4 is a skip. A stage
    that hangs, a kexec that did not happen, and a host that does not come back are errors; a
    panic after stage 1 is a failure. [SCENARIO] says how the host and its kernels are made; no
    guest is started.
    """

    prepared = prepare(app, scenario_args, results)
    return run_all(app, prepared, [program], files=files, flag=flag, timeout_s=timeout)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--kernel-tree", metavar="DIR", help="Kernels and tests of this tree.")
@timeout_option
@results_option
@common
def kselftest(
    app: App, *, names: tuple[str, ...], kernel_tree: str | None, timeout: float,
    results: Path | None,
) -> int:  # fmt: skip
    """Build and run a tree's own two-stage live update tests; print KTAP.

    Without a tree, those of the pinned Linux on the built kernels. Without names, all of them.
    """

    overrides = [Override("kernel_tree", kernel_tree, "--kernel-tree")] if kernel_tree else []
    prepared = prepare(app, ScenarioArgs(scenario=None, overrides=tuple(overrides)), results)
    if kernel_tree:
        src = find_layout(Path(kernel_tree).resolve()).src
    else:
        pin = source.read_base(guest_images_dir() / "kernel/BASE")
        src = open_cache().root / "build" / f"{pin.package}_{pin.version}" / "src"
    programs = builder.build_tests(src, names, open_cache())
    # there is no scenario here that could set timeouts.total
    prepared = replace(prepared, plan=give_time(prepared.plan, timeout))
    return run_all(app, prepared, list(programs.values()), flag="-s", timeout_s=timeout)


def run_all(
    app: App, prepared: Prepared, programs: Sequence[Path], *, files: Sequence[Path] = (),
    flag: str, timeout_s: float,
) -> int:  # fmt: skip
    """Run each program on a machine of its own, print one KTAP document, return the exit status."""

    log(f"liveupdate: accelerator {prepared.plan.machine.accel}: {prepared.accel_reason}")
    kit = make_kit(prepared.plan.images)
    is_untried = prepared.scenario.has_own_incoming
    found: list[Staged] = []
    with show_steps(app) as steps:
        for program in programs:
            run_id = secrets.token_hex(3)
            directory = prepared.results / f"stage-{program.name}-{run_id}"
            directory.mkdir()
            with make_host(prepared.plan, run_id, directory, kit) as host:
                found.append(run_stages(host, prepared.plan, program, steps, files=files,
                                        flag=flag, timeout_s=timeout_s,
                                        is_untried=is_untried))  # fmt: skip
            for stage in found[-1].stages:
                (directory / f"stage-{stage.number}.txt").write_text(stage.output)
            write_file(directory / "result.ktap", as_ktap(found[-1:]) + "\n")
            log(f"liveupdate: {program.name}: {found[-1].outcome.value} ({directory})")
    say(as_ktap(found))
    for each in found:
        for line in each.console:
            log(f"  | {printable(line)}")
    return exit_code(found)


def exit_code(found: Sequence[Staged]) -> int:
    """Return the exit status of all results: the worst one's."""

    worst = reduce(each.outcome for each in found)
    if worst is Outcome.ERROR and any(each.timed_out for each in found):
        return ExitCode.TIMEOUT
    return ExitCode[worst.name]
