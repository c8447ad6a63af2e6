# SPDX-License-Identifier: Apache-2.0
"""The host under update as a lab machine: SSH, a serial console, and a power switch.

It is already installed: the agent starts at boot and listens on a unix socket of the machine, which
a relay reaches through SSH. Entering resets the machine, so that every run begins with a cold boot;
it stays switched on afterwards. Must not know what the machine is for.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import socket
import termios
import tty
from collections.abc import Mapping
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import CommandFailed, LaunchError, LiveUpdateError
from liveupdate.target.base import Entered
from liveupdate.target.labgrid import Place
from liveupdate.target.machines import Registry
from liveupdate.target.ssh.spec import LabMachine
from liveupdate.transport.agent_link import AgentLink, Garbled, Reply, parse_line
from liveupdate.transport.bridge import Bridge, Stream
from liveupdate.transport.console import Console
from liveupdate.transport.ssh import Channel, Ssh, WrongHostKey
from liveupdate.transport.unix import Watch

log = logging.getLogger(__name__)

#: as liveupdate/agent/link/port.py has it
AGENT_SOCKET = "/run/liveupdate/agent.sock"
NEXT_KERNEL = "/run/liveupdate/next-kernel"
POWER_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 30.0
#: one attempt to reach the agent; the bridge tries again
_ATTEMPT_S = 20.0
_PUT_TIMEOUT_S = 120.0

#: connects, sends the line it is given to attach, passes the answer on, then all data
_RELAY = """
import os, select, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
agent = s.fileno()
s.sendall(sys.argv[2].encode() + b"\\n")
while True:
    ready = select.select([0, agent], [], [])[0]
    for source, sink in ((0, agent), (agent, 1)):
        if source in ready:
            data = os.read(source, 65536)
            if not data:
                sys.exit()
            while data:
                data = data[os.write(sink, data):]
"""
_MAX_ANSWER_BYTES = 4096


class HostLocked(LaunchError):
    """Another control host's update holds the machine; waiting does not help."""


def log_in(machine: LabMachine, deadline: Deadline, watch: Watch | None = None) -> Ssh:
    """Log in to a machine, with the pinned host key.

    :param watch: returns why waiting is useless, or None.
    :raises LiveUpdateError: it cannot be reached, or shows another key.
    """
    return Ssh.connect(
        host=machine.address,
        port=machine.port,
        user=machine.user,
        key=machine.key,
        host_key=machine.host_key,
        deadline=deadline,
        watch=watch,
    )


class SshHost(Entered):
    """One machine, for one run. ``console`` and ``agent`` exist while it is entered."""

    def __init__(
        self, machine: LabMachine, *, run_id: str, run_dir: Path, registry: Registry
    ) -> None:
        super().__init__(run_id=run_id, run_dir=run_dir, registry=registry)
        self.machine = machine
        self._relay: Bridge | None = None
        self._place: Place | None = None
        self._refusal: LiveUpdateError | None = None
        #: the first line to the agent, see ``Agent._attach``
        self._attach: dict[str, object] = {"id": ""}

    def ssh(self, deadline: Deadline) -> Ssh:
        """Log in, with the pinned host key."""
        return log_in(self.machine, deadline, self.death)

    def reset(self, deadline: Deadline) -> None:
        """Reset the machine by its power command.

        :raises LaunchError: the command failed, or took too long.
        :raises PlaceLost: the lab's place is no longer held.
        """
        try:
            if self.machine.power:
                proc.run((*self.machine.power, "reset"), deadline=deadline)
            elif self._place is not None:
                self._place.reset(deadline)
            else:
                raise LaunchError(
                    "the description has no power command, and no place of a lab was taken",
                    hint="name one with [power], or switch it yourself and resume",
                )
        except CommandFailed as error:
            raise LaunchError(f"the power command failed: {error.message}") from error

    @property
    def outside(self) -> None:
        """None: the machine cannot be observed from outside."""
        return None

    def place_kernel(self, hop: int, path: Path) -> str:
        """Copy the kernel to the machine and return its path there."""
        return self.push_kernel(path)

    def push_kernel(self, path: Path) -> str:
        """Copy a kernel to the machine and return its path there."""
        deadline = Deadline.after(_PUT_TIMEOUT_S, "the kernel to be copied")
        with self.ssh(deadline) as ssh:
            ssh.put(path.read_bytes(), NEXT_KERNEL, deadline)
        return NEXT_KERNEL

    def death(self) -> Exception | None:
        """Return why waiting is useless: place lost, a panic, another machine answers; else
        None.
        """
        if self._stopping:
            return None
        if self._place is not None and self._place.lost is not None:
            return self._place.lost
        if self._refusal is not None:
            return self._refusal
        return self._console.death() if self._console else None

    # --- inside

    def _enter(self) -> None:
        deadline = Deadline.after(_CONNECT_TIMEOUT_S + POWER_TIMEOUT_S, "the machine to be taken")
        try:
            self._reach(deadline)
        except OSError as error:
            raise LaunchError(f"the machine cannot be taken: {error}") from error

    def _reach(self, deadline: Deadline) -> None:
        self._take()
        if self.machine.labgrid is not None:
            self._place = self._stack.enter_context(Place(self.machine.labgrid))
        runtime = self._make_runtime_dir()
        self._console = self._connect_console(runtime, self.run_dir, _CONNECT_TIMEOUT_S)
        mark = self._console.mark()
        self.reset(Deadline.after(POWER_TIMEOUT_S, "the power command"))
        # Events of an older run's agent must not be taken for those of this run.
        self._console.wait_line("Linux version", deadline, since=mark)
        self._connect_agent(runtime, deadline)

    def _connect_console(
        self, runtime: Path, directory: Path, timeout_s: float, *, booted: bool = False
    ) -> Console:
        """Start to read the console.

        :param directory: for its log.
        :param booted: as of :class:`Console`.
        """
        path = Path(self.machine.console.socket or runtime / "con")
        if not self.machine.console.socket:
            self._stack.enter_context(Bridge(path, self._open_console))
        console = self._stack.enter_context(Console(path, directory, booted=booted))
        console.connect(Deadline.after(timeout_s, f"the console '{path}'"))
        return console

    def _connect_agent(self, runtime: Path, deadline: Deadline) -> None:
        self._relay = self._stack.enter_context(Bridge(runtime / "agt", self._open_agent))
        self._agent = self._stack.enter_context(AgentLink(runtime / "agt", watch=self.death))
        self._agent.connect(deadline)

    def _take(self) -> None:
        """Lock out other runs of this user; reservations between users are the lab's.

        :raises LaunchError: another run uses the machine.
        """
        name = f"{self.machine.address}-{self.machine.port}".replace("/", "_")
        lock = (self._registry.root / f"{name}.lock").open("ab")
        self._stack.callback(lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"another run uses {self.machine.address}:{self.machine.port}",
                hint="wait until it has ended",
            ) from error

    def _open_agent(self) -> Stream:
        deadline = Deadline.after(_ATTEMPT_S, "the relay to the agent")
        try:
            ssh = self.ssh(deadline)
            try:
                line = json.dumps({"seq": 0, "call": "attach", "args": self._attach})
                argv = ("python3", "-I", "-S", "-c", _RELAY, AGENT_SOCKET, line)
                channel = ssh.stream(argv, deadline)
                _read_answer(channel, deadline)
            except BaseException:
                ssh.close()
                raise
        except (WrongHostKey, HostLocked) as error:
            # waiting does not help: a waiting thread gets the error
            self._refusal = error
            raise
        return _OwningStream(channel, ssh)

    def _open_console(self) -> Stream:
        spec = self.machine.console
        if spec.device:
            return _TtyStream(spec.device)
        if not spec.command and self._place is not None:
            return _run_console(self._place.console_argv, self._place.env)
        return _run_console(spec.command)


def _read_answer(channel: Channel, deadline: Deadline) -> None:
    """Read the agent's answer to attaching, and not a byte more.

    :raises HostLocked: another control host's update holds the machine.
    :raises LaunchError: it is not possible now.
    """
    line = bytearray()
    channel.settimeout(max(0.1, deadline.remaining_s))
    try:
        while not line.endswith(b"\n") and len(line) < _MAX_ANSWER_BYTES:
            byte = channel.recv(1)
            if not byte:
                raise LaunchError("the agent's socket is not there, or it hung up")
            line += byte
    except OSError as error:
        raise LaunchError(f"the agent does not answer: {error!r}") from error
    finally:
        channel.settimeout(None)
    answer = parse_line(bytes(line))
    if not isinstance(answer, Reply):
        why = f": {answer.why}: {answer.head!r}" if isinstance(answer, Garbled) else ""
        raise LaunchError(f"the agent's answer is not valid in the protocol of liveupdate{why}")
    if answer.kind == "locked":
        raise HostLocked(answer.message, hint="wait until it has ended, or have it aborted")
    if answer.ok is None:
        raise LaunchError(f"the agent refuses the connection: {answer.message}")


class _OwningStream:
    """A channel with which its connection, or the process at its other end, ends."""

    def __init__(self, channel: Stream, owner: Ssh | proc.Child) -> None:
        self._channel = channel
        self._owner = owner

    def fileno(self) -> int:
        return self._channel.fileno()

    def recv(self, size: int) -> bytes:
        return self._channel.recv(size)

    def sendall(self, data: bytes) -> object:
        return self._channel.sendall(data)

    def close(self) -> None:
        self._channel.close()
        self._owner.close()


class _TtyStream(io.FileIO):
    """A serial device at 115200 baud, raw."""

    def __init__(self, device: str) -> None:
        """:raises OSError: it cannot be opened, or is no tty."""
        super().__init__(os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC), "r+")
        try:
            tty.setraw(self.fileno())
            attributes = termios.tcgetattr(self)
            attributes[4] = attributes[5] = termios.B115200
            termios.tcsetattr(self, termios.TCSANOW, attributes)
        except (termios.error, OSError) as error:
            self.close()
            raise OSError(f"'{device}' is no serial line: {error}") from error

    def recv(self, size: int) -> bytes:
        return self.read(size)

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[self.write(data) :]


def _run_console(argv: tuple[str, ...], env: Mapping[str, str] | None = None) -> Stream:
    """Run a command whose output is the console, such as a conserver's client.

    :raises CommandFailed: there is no such program.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            child = proc.spawn(
                argv, stdout=theirs.fileno(), stderr=theirs.fileno(), tree=True, env=env
            )
    except BaseException:
        ours.close()
        raise
    return _OwningStream(ours, child)
