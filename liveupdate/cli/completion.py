# SPDX-License-Identifier: Apache-2.0
"""``liveupdate completion``."""

from __future__ import annotations

import click

from liveupdate.cli.app import COMPLETION_VARIABLE, App, cli
from liveupdate.cli.options import common
from liveupdate.cli.output import PROGRAM, say
from liveupdate.model.verdict import ExitCode


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common
def completion(app: App, *, shell: str) -> int:
    """Print the completion script of a shell.

    bash: liveupdate completion bash > ~/.local/share/bash-completion/completions/liveupdate
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click knows no completion for '{shell}'")
    # source_vars only fills the template; source() would first run the shell to ask its version
    maker = found(cli, {}, PROGRAM, COMPLETION_VARIABLE)
    say(maker.source_template % maker.source_vars())
    return ExitCode.PASS
