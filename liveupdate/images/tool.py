# SPDX-License-Identifier: Apache-2.0
"""Runs the programs that images are built with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError, CommandFailed

#: for make(1): one more than there are CPUs, because the compiler also waits for the disk
JOBS = f"-j{(os.cpu_count() or 1) + 1}"


def run_tool(
    argv: Sequence[str | Path],
    deadline: Deadline,
    failed: str,
    *,
    env: Mapping[str, str] | None = None,
    tree: bool = True,
    hint: str | None = None,
) -> None:
    """Run a program to its end.

    :param failed: what its failure means; the error quotes the program's last lines behind it.
    :param env: added to the environment.
    :param tree: the program starts others, which have to end with it.
    :raises BuildError: the program failed.
    :raises DeadlineExceeded: it has not ended, and was killed.
    """
    try:
        proc.run(argv, deadline=deadline, env=env, tree=tree)
    except CommandFailed as error:
        raise BuildError(f"{failed}: {error.tail}", hint=hint) from error
