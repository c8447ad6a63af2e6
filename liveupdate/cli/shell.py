# SPDX-License-Identifier: Apache-2.0
"""``liveupdate shell``."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import ScenarioArgs, common, scenario_options
from liveupdate.cli.output import log
from liveupdate.model.verdict import ExitCode

#: opening a session on a host whose agent has already answered
LOGIN_S = 30.0


@click.command()
@scenario_options
@click.option("-c", "--command", metavar="COMMAND", help="Run this instead of a shell.")
@common
def shell(app: App, *, scenario_args: ScenarioArgs, command: str | None) -> int:
    """Boot a host under update without guests and log in as root; the host ends with the shell.

    The exit status is that of the remote shell or command, as with ssh.
    """
    from liveupdate.cli.prepare_run import prepare
    from liveupdate.cli.view import show_steps
    from liveupdate.core.deadline import Deadline
    from liveupdate.images.catalogue import make_kit
    from liveupdate.run.bringup import make_host

    with tempfile.TemporaryDirectory(prefix="liveupdate-shell-") as name:
        directory = Path(name)
        prepared = prepare(app, scenario_args, directory)
        plan = prepared.plan
        log(f"liveupdate: accelerator {plan.machine.accel}: {prepared.accel_reason}")
        with make_host(plan, secrets.token_hex(3), directory, make_kit(plan.images)) as host:
            with show_steps(app) as steps, steps.step("boot"):
                deadline = Deadline.after(plan.timeouts.boot_s, "sshd on the host under update")
                ssh = host.ssh(deadline)
            with ssh:
                opening = Deadline.after(LOGIN_S, "a session on the host under update")
                status = ssh.shell(opening, ("sh", "-c", command) if command else ())
    return ExitCode.ERROR if status == 255 else status
