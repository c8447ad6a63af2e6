# SPDX-License-Identifier: Apache-2.0
"""The subprocess gateway: every child process of this package is started here.

argv only, never a shell line; stdin is ``/dev/null``; the environment is a short allow-list plus
what the caller names; each child leads a session of its own, so that a signal reaches it and all of
its children; and each child dies when this process does, even by SIGKILL (``PR_SET_PDEATHSIG``,
prctl(2)). Must not know what it runs.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import CommandFailed

log = logging.getLogger(__name__)

#: inherited from this process's environment; all else (MAKEFLAGS, CFLAGS, KBUILD_*…) would leak
_ENV_KEPT = (
    "PATH", "HOME", "USER", "LOGNAME", "TMPDIR",
    "http_proxy", "https_proxy", "ftp_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Lines and bytes of a failed command's output that go into the error.
TAIL_LINES = 20
TAIL_BYTES = 8192

# The death signal is set by setpriv(1), not by a preexec_fn: that would run Python between fork and
# exec of a process with threads. $0 is our pid: when we died before setpriv got as far as prctl,
# nothing else would notice.
_GUARD = '[ "$PPID" = "$0" ] || exit 125; exec "$@"'
# For commands with children of their own (make): the death signal reaches only the leader, which
# then takes the whole process group with it. `wait` returns early on the trapped signal.
_GUARD_TREE = (
    '[ "$PPID" = "$0" ] || exit 125; trap "trap - TERM; kill -KILL 0" TERM; "$@" & wait "$!"'
)

Sink = int | IO[bytes] | None
PIPE = subprocess.PIPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that has ended. ``stdout`` and ``stderr`` are "" when they were written to a
    file.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    elapsed_s: float


class _Spawner:
    """Forks every child from one thread that lives as long as this process.

    PR_SET_PDEATHSIG fires when the *thread* that forked ends, not the process (prctl(2)): a child
    started by a worker thread would die with the worker.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = -1
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def submit(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a child in a session of its own; ``options`` are those of Popen."""
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                self._pool = concurrent.futures.ThreadPoolExecutor(1, "liveupdate-spawn")
                self._pid = os.getpid()
            pool = self._pool

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, start_new_session=True, **options
            )

        return pool.submit(start).result()


_SPAWNER = _Spawner()


def make_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make a child's environment: a few inherited variables, the C locale, and ``extra``."""
    env = {name: os.environ[name] for name in _ENV_KEPT if name in os.environ}
    env.setdefault("PATH", _DEFAULT_PATH)
    # Administration tools live here, and a user's PATH on Debian does not name them.
    for directory in ("/usr/sbin", "/sbin"):
        if directory not in env["PATH"].split(":"):
            env["PATH"] += f":{directory}"
    return {**env, "LC_ALL": "C.UTF-8", **(extra or {})}


def find_program(name: str) -> str | None:
    """Return where a child would find ``name``, or None."""
    return shutil.which(name, path=make_env()["PATH"])


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    deadline: Deadline,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: IO[bytes] | None = None,
    check: bool = True,
    tree: bool = False,
) -> Completed:
    """Run a command to its end.

    :param env: added to the environment of :func:`make_env`.
    :param stdout: a file for stdout and stderr together; without it both are captured.
    :param tree: the command has children that would outlive it (make); they die with us as well.
    :raises CommandFailed: on a status other than 0 (unless not ``check``), or when there is no such
        program (127).
    :raises DeadlineExceeded: when it did not end in time; its process group is killed by then.
    """
    began = time.monotonic()
    command = tuple(os.fspath(item) for item in argv)
    offset = os.fstat(stdout.fileno()).st_size if stdout else 0
    child = spawn(
        command,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.STDOUT if stdout else subprocess.PIPE,
        cwd=cwd,
        env=env,
        tree=tree,
    )
    with child:
        try:
            out, err = child.popen.communicate(timeout=deadline.remaining_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise deadline.exceeded(shlex.join(command)) from error
    code = child.popen.returncode
    if tree and code > 128:
        # The leader is a shell, which reports a signal as 128 + N.
        code = 128 - code
    text = [(stream or b"").decode(errors="replace") for stream in (out, err)]
    log.debug("exit %d: %s", code, command[0])
    if check and code != 0:
        tail = _file_tail(stdout, offset) if stdout else (text[1].strip() or text[0])
        raise CommandFailed(command, code, _tail(tail))
    return Completed(
        argv=command,
        returncode=code,
        stdout=text[0],
        stderr=text[1],
        elapsed_s=time.monotonic() - began,
    )


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdout: Sink,
    stderr: Sink,
    pass_fds: Sequence[int] = (),
    pdeathsig: bool = True,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    tree: bool = False,
) -> Child:
    """Start a command and return at once.

    :param stdout: a file, a descriptor, :data:`PIPE` or ``DEVNULL``; ``stderr`` likewise.
    :param pass_fds: descriptors the child gets under the same numbers.
    :param pdeathsig: the child is killed when this process ends, however it ends.
    :param tree: see :func:`run`.
    :raises CommandFailed: when there is no such program (127).
    """
    command = [os.fspath(item) for item in argv]
    environment = make_env(env)
    if shutil.which(command[0], path=environment["PATH"]) is None:
        raise CommandFailed(tuple(command), 127, "no such program in " + environment["PATH"])
    log.debug("+ %s", shlex.join(command))
    wrapped = command
    if pdeathsig:
        sig, guard = ("TERM", _GUARD_TREE) if tree else ("KILL", _GUARD)
        wrapped = ["setpriv", "--pdeathsig", sig, "sh", "-c", guard, str(os.getpid()), *command]
    popen = _SPAWNER.submit(
        wrapped, cwd=cwd, env=environment, stdout=stdout, stderr=stderr, pass_fds=pass_fds
    )
    return Child(tuple(command), popen)


class Child:
    """A running child. As a context manager: killed with its group and reaped at the end."""

    def __init__(self, argv: tuple[str, ...], popen: subprocess.Popen[bytes]) -> None:
        self.argv = argv
        self.popen = popen
        self.pid = popen.pid
        self.pidfd = os.pidfd_open(popen.pid)
        #: clock ticks after boot; with the pid it names a process for good
        self.start_time = read_start_time(popen.pid) or 0

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def returncode(self) -> int | None:
        """Exit status, negative signal number, or None while it runs."""
        return self.popen.poll()

    def wait(self, deadline: Deadline) -> int:
        """Wait for the end and return the exit status (negative: signal).

        :raises DeadlineExceeded: when it still runs; it is left alone.
        """
        if self.popen.poll() is None:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            if not poller.poll(deadline.remaining_s * 1000):
                raise deadline.exceeded(f"pid {self.pid} still runs: {shlex.join(self.argv)}")
        return self.popen.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group; does nothing when the group has ended."""
        if self.popen.returncode is not None and read_start_time(self.pid) is not None:
            # Reaped, and its number is in use again: so the group is gone, for the kernel does not
            # hand out a number that is still a group's.
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def kill(self) -> None:
        """Kill the process group and reap the leader. Idempotent."""
        self.signal(signal.SIGKILL)
        self.popen.wait()

    def close(self) -> None:
        """Kill processes that still run and release the descriptors. Idempotent."""
        self.kill()
        for stream in (self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def read_start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot, or None when there is none.

    Field 22 of ``/proc/PID/stat``, see proc_pid_stat(5).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in field 2 may hold spaces and parentheses: count from the last one.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def _tail(text: str) -> str:
    return "\n".join(text[-TAIL_BYTES:].strip().splitlines()[-TAIL_LINES:])


def _file_tail(stream: IO[bytes], offset: int) -> str:
    stream.flush()
    with open(f"/proc/self/fd/{stream.fileno()}", "rb") as again:
        size = os.fstat(again.fileno()).st_size
        again.seek(max(offset, size - TAIL_BYTES))
        return again.read().decode(errors="replace")
