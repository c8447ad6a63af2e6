# SPDX-License-Identifier: Apache-2.0
"""A private libvirtd: a session daemon with directories and a socket of its own.

As root it runs in a user namespace in which it is not root, so that it is the same unprivileged
daemon, and no other libvirt of this machine is touched.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until

#: the monolithic daemon, or the modular one
PROGRAMS = ("libvirtd", "virtqemud")
START_S = 30.0
_CONFIG = """
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
log_outputs = "2:stderr"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One that runs. ``uri`` is for ``--target libvirt:URI``."""

    uri: str
    child: proc.Child
    directory: Path


def missing() -> str:
    """Say what is not there, or ""."""
    if not any(proc.find_program(name) for name in PROGRAMS):
        return "no libvirtd; run 'liveupdate/setup.sh --tests'"
    if importlib.util.find_spec("libvirt") is None:
        return "no libvirt-python; run 'liveupdate/setup.sh --tests'"
    return ""


@contextmanager
def serve() -> Iterator[Daemon]:
    """Run a libvirtd for the length of a block."""
    program = next(found for name in PROGRAMS if (found := proc.find_program(name)))
    # short: what is made below it has to fit into a socket's address
    directory = Path(tempfile.mkdtemp(prefix="lu-virt-", dir="/tmp"))
    config = directory / "daemon.conf"
    config.write_text(_CONFIG.format(directory=directory))
    env = {
        "HOME": str(directory),
        "XDG_RUNTIME_DIR": str(directory / "r"),
        "XDG_CONFIG_HOME": str(directory / "c"),
        "XDG_CACHE_HOME": str(directory / "k"),
    }
    for name in ("r", "c", "k"):
        (directory / name).mkdir(mode=0o700)
    (directory / "c" / "libvirt").mkdir()
    # or it starts a virtlogd, which would outlive it
    (directory / "c" / "libvirt" / "qemu.conf").write_text('stdio_handler = "file"\n')
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    argv = (
        *(namespace if os.geteuid() == 0 else ()),
        program, "--config", str(config), "--pid-file", str(directory / "pid"),
    )  # fmt: skip
    log = directory / "log"
    try:
        with (
            log.open("wb") as output,
            proc.spawn(argv, stdout=output, stderr=output, env=env) as child,
        ):
            socket = wait_until(
                lambda: next(iter(directory.glob("*-sock")), None),
                Deadline.after(START_S, "a private libvirtd"),
                describe=lambda: log.read_text(errors="replace")[-500:],
            )
            uri = f"qemu+unix:///session?socket={socket}"
            yield Daemon(uri=uri, child=child, directory=directory)
    finally:
        shutil.rmtree(directory)
