# SPDX-License-Identifier: Apache-2.0
"""Manual pages, made from the help of every verb: ``python -m liveupdate.cli.man DIRECTORY``.

click-man reads the ``commands`` of a group, which a group that loads its verbs late does not have.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

from liveupdate import __version__
from liveupdate.cli.app import VERBS, cli
from liveupdate.cli.output import PROGRAM

#: fixed, so that pages of one version are the same wherever they are made
DATE = "liveupdate"


def write_pages(directory: Path) -> tuple[Path, ...]:
    """Write liveupdate.1 and a page for each verb and each of its verbs; return the files."""
    context = click.Context(cli, info_name=PROGRAM)
    loaded = {name: cli.get_command(context, name) for name in VERBS}
    group = click.Group(
        name=PROGRAM,
        commands={name: command for name, command in loaded.items() if command is not None},
        params=list(cli.params),
        help=cli.help,
        short_help="Update a host's kernel under its guests, and prove that they survive.",
    )
    for name, command in group.commands.items():
        command.short_help = VERBS[name][1]
        for each in getattr(command, "commands", {}).values():
            each.short_help = (each.help or "").partition("\n")[0]
    directory.mkdir(parents=True, exist_ok=True)
    write_man_pages(PROGRAM, group, version=__version__, target_dir=str(directory), date=DATE)
    return tuple(sorted(directory.glob("*.1")))


if __name__ == "__main__":
    for page in write_pages(Path(sys.argv[1])):
        print(page)
