# SPDX-License-Identifier: Apache-2.0
"""A private libvirtd: a session daemon with directories and a socket of its own."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.target.libvirt import daemon

START_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One that runs. ``uri`` is for ``--target libvirt:URI``."""

    uri: str
    child: proc.Child
    directory: Path


def missing() -> str:
    """Say what is not there, or ""."""
    if daemon.find_program() is None:
        return "no libvirtd; run 'make setup'"
    if importlib.util.find_spec("libvirt") is None:
        return "no libvirt-python; run 'make setup'"
    return ""


@contextmanager
def serve() -> Iterator[Daemon]:
    """Run a libvirtd for the length of a block."""
    program = daemon.find_program()
    assert program is not None
    # short: what is made below it has to fit into a socket's address
    directory = Path(tempfile.mkdtemp(prefix="lu-virt-", dir="/tmp"))
    command = daemon.prepare(program, directory, "stderr")
    log = directory / "log"
    try:
        with (
            log.open("wb") as output,
            proc.spawn(command.argv, stdout=output, stderr=output, env=command.env) as child,
        ):
            wait_until(
                lambda: command.socket.exists() or None,
                Deadline.after(START_S, "a private libvirtd"),
                describe=lambda: log.read_text(errors="replace")[-500:],
            )
            yield Daemon(uri=command.uri, child=child, directory=directory)
    finally:
        shutil.rmtree(directory)
