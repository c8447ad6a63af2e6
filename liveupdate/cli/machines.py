# SPDX-License-Identifier: Apache-2.0
"""``liveupdate ps`` and ``liveupdate gc``."""

from __future__ import annotations

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import common, json_option
from liveupdate.cli.output import log, say, say_json
from liveupdate.model.verdict import ExitCode

GC_S = 30.0


@click.command()
@json_option
@common
def ps(app: App, *, as_json: bool) -> int:
    """List the machines that liveupdate started: running, orphaned (their run is gone) or dead."""
    from liveupdate.core.paths import runtime_dir
    from liveupdate.target.machines import Registry

    found = Registry(runtime_dir()).list()
    if as_json:
        say_json(
            [
                {
                    "run": item.machine.run_id,
                    "pid": item.machine.pid,
                    "state": item.state.value,
                    "accel": item.machine.accel,
                    "run_dir": item.machine.run_dir,
                }
                for item in found
            ]
        )
    elif not found:
        say("no machines")
    else:
        for item in found:
            machine = item.machine
            say(f"{machine.run_id}  {machine.pid:>8}  {item.state.value:<8} {machine.run_dir}")
    return ExitCode.PASS


@click.command()
@click.option(
    "--all", "everything", is_flag=True, help="Also end machines of runs that are still alive."
)
@json_option
@common
def gc(app: App, *, everything: bool, as_json: bool) -> int:
    """End machines whose run is gone, and remove their sockets and files."""
    from liveupdate.core.deadline import Deadline
    from liveupdate.core.paths import cache_dir, runtime_dir
    from liveupdate.run.bringup import WARM_BYTES
    from liveupdate.target.machines import Registry
    from liveupdate.target.warm import WarmStore

    deadline = Deadline.after(GC_S, "machines to end")
    swept = Registry(runtime_dir()).sweep(deadline, everything=everything)
    states = WarmStore(cache_dir() / "warm").prune(0 if everything else WARM_BYTES)
    for error in swept.errors:
        log(f"liveupdate: {error}")
    if as_json:
        say_json(
            {
                "killed": swept.killed,
                "removed": swept.removed,
                "warm_states": states,
                "errors": swept.errors,
            }
        )
    else:
        say(
            f"ended {len(swept.killed)} machines, removed what {len(swept.removed)} left behind,"
            f" {len(states)} saved hosts"
        )
    return ExitCode.ERROR if swept.errors else ExitCode.PASS
