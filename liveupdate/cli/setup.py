# SPDX-License-Identifier: Apache-2.0
"""``liveupdate setup``."""

from __future__ import annotations

import click

from liveupdate.cli.app import App
from liveupdate.cli.options import common
from liveupdate.cli.output import say
from liveupdate.model.verdict import ExitCode


@click.command()
@click.option("--run", "run_it", is_flag=True, help="Run it instead of naming it.")
@common
def setup(app: App, *, run_it: bool) -> int:
    """Install packages and build the images: `make setup` of the checkout.

    Installing packages is the Makefile's work, which says what it will install before it does; this
    verb finds the checkout and names the command, or runs it.
    """
    import os
    import subprocess

    from liveupdate.core.paths import checkout_root

    argv = ["make", "-C", os.fspath(checkout_root()), "setup"]
    if not run_it:
        say(" ".join(argv))
        return ExitCode.PASS
    # not through proc.run: it belongs to the user's terminal, sudo may ask for a password there
    status = subprocess.run(argv, check=False).returncode
    return ExitCode.PASS if status == 0 else ExitCode.ERROR
