# SPDX-License-Identifier: Apache-2.0
"""A session libvirtd that keeps to one directory, for users for whom libvirt starts none.

libvirt starts a session daemon for every user but root: root's ``qemu:///session`` is the system's
daemon, and a container has none. As root the daemon runs in a user namespace in which it is not
root, so that it is the same unprivileged daemon as every other user's, and no other libvirt of the
machine is touched.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import CommandFailed, DeadlineExceeded, PlanError
from liveupdate.core.paths import runtime_dir

#: the monolithic daemon or the modular one, and what its socket is called
PROGRAMS: Mapping[str, str] = {"libvirtd": "libvirt-sock", "virtqemud": "virtqemud-sock"}
START_S = 60.0
#: libvirt itself gives a session daemon that it starts 120 s without a client (src/rpc,
#: virNetSocketForkDaemon); a machine of this tool ends with its owner's connection
IDLE_S = 120
_CONFIG = """
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
log_outputs = "2:{log}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How a daemon is started. ``env`` is added to the environment, ``uri`` is where it answers."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    socket: Path

    @property
    def uri(self) -> str:
        """The URI at which the daemon answers."""
        return f"qemu+unix:///session?socket={self.socket}"


def find_program() -> str | None:
    """Return the path of the daemon's program, or None."""
    return next((found for name in PROGRAMS if (found := proc.find_program(name))), None)


def prepare(program: str, directory: Path, log: str) -> Command:
    """Write the configuration of a daemon that keeps to ``directory``.

    :param directory: mode 0700, and short: sockets of machines are made four levels below it.
    :param log: where it logs to, as in libvirtd.conf: "stderr", or "file:PATH".
    """
    config = directory / "daemon.conf"
    config.write_text(_CONFIG.format(directory=directory, log=log))
    env = {
        "HOME": str(directory),
        "XDG_RUNTIME_DIR": str(directory / "r"),
        "XDG_CONFIG_HOME": str(directory / "c"),
        "XDG_CACHE_HOME": str(directory / "k"),
    }
    for name in ("r", "c", "k"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    (directory / "c" / "libvirt").mkdir(exist_ok=True)
    # or it starts a virtlogd, which would outlive it
    (directory / "c" / "libvirt" / "qemu.conf").write_text('stdio_handler = "file"\n')
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    return Command(
        argv=(
            *(namespace if os.geteuid() == 0 else ()),
            program, "--config", str(config), "--pid-file", str(directory / "pid"),
        ),
        env=env,
        socket=directory / PROGRAMS[Path(program).name],
    )  # fmt: skip


def ensure(*, idle_s: int = IDLE_S) -> str:
    """Return the URI of this user's own daemon; start it when it does not run.

    It outlives this process and ends ``idle_s`` seconds after its last client has left.

    :raises PlanError: it is not installed, or does not start.
    """
    program = find_program()
    if program is None:
        raise PlanError("target 'libvirt' needs libvirtd, and there is none", hint="'make setup'")
    directory = runtime_dir() / "libvirt"
    directory.mkdir(mode=0o700, exist_ok=True)
    command = prepare(program, directory, f"file:{directory / 'log'}")
    with (directory / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers(command.socket):
            return command.uri
        argv = (*command.argv, "--daemon", "--timeout", str(idle_s))
        try:
            # returns when the daemon listens, or has failed
            proc.run(argv, deadline=Deadline.after(START_S, "a libvirtd to start"), env=command.env)
        except (CommandFailed, DeadlineExceeded) as error:
            raise PlanError(
                f"libvirtd does not start: {error}",
                hint=f"see {directory / 'log'}, or name another one: --target libvirt:URI",
            ) from error
    return command.uri


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.connect(str(path))
        except OSError:
            return False
    return True
