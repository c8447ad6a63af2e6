# SPDX-License-Identifier: Apache-2.0
"""SSH to the host under update by paramiko: one pinned host key, and a deadline on every wait.

``Channel.recv_exit_status()`` has no timeout in any paramiko release (paramiko #1815, #2415) and is
never called before the status is there. A command that runs when the connection is cut (kexec ends
sshd) is :class:`OutcomeUnknown`. Must not know what the commands do.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import select
import shlex
import signal
import socket
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import paramiko

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import CommandFailed, LostMachine, OutcomeUnknown
from liveupdate.transport.unix import Watch, check_watch

T = TypeVar("T")
Channel = paramiko.Channel

log = logging.getLogger(__name__)
_PARAMIKO_LOG = logging.getLogger(f"{__name__}.paramiko")
_PARAMIKO_LOG.addHandler(logging.NullHandler())

KEEPALIVE_S = 5
#: a host under update is not trusted to end its output
MAX_OUTPUT_BYTES = 64 << 20
_READ_BYTES = 64 * 1024
_RETRY_S = 0.1


class WrongHostKey(LostMachine):
    """Something else answers on that port, such as an older machine (pulsar #402)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SshResult:
    """A remote command that has ended. A negative ``status``: sshd reported none (signal)."""

    argv: tuple[str, ...]
    stdout: bytes
    stderr: bytes
    status: int

    def check(self) -> SshResult:
        """Return this result; :raises CommandFailed: unless the status is 0."""
        if self.status != 0:
            tail = (self.stderr or self.stdout).decode(errors="replace")[-2000:]
            raise CommandFailed(("ssh", *self.argv), self.status, tail)
        return self


def read_public_key(path: Path) -> paramiko.PKey:
    """Read one key of a ``.pub`` or known_hosts line.

    :raises LostMachine: the file holds no key, so no host can be verified.
    """
    fields = path.read_text(encoding="ascii", errors="replace").split()
    for kind, blob in pairwise(fields):
        if kind.startswith(("ssh-", "ecdsa-")):
            with contextlib.suppress(paramiko.SSHException, ValueError):
                return paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
    raise LostMachine(f"'{path}' holds no public host key", how="garbled")


class Ssh:
    """One connection; a context manager. Connect again after a kexec, with a new object."""

    def __init__(self, transport: paramiko.Transport, *, watch: Watch | None = None) -> None:
        self._transport = transport
        self._watch = watch

    @classmethod
    def connect(
        cls,
        *,
        host: str,
        port: int,
        user: str,
        key: Path,
        host_key: Path,
        deadline: Deadline,
        watch: Watch | None = None,
    ) -> Ssh:
        """Connect as soon as sshd answers, check the pinned key, log in.

        :param key: private key file of the control host.
        :param host_key: ``.pub`` file of the only host key that is accepted.
        :raises WrongHostKey: at once, because waiting does not help.
        :raises LostMachine: what ``watch`` said, or the key was refused.
        :raises DeadlineExceeded: no answer in time.
        """
        pinned = read_public_key(host_key)
        identity = paramiko.PKey.from_path(key)
        last = "nothing tried"

        def attempt() -> Ssh | None:
            nonlocal last
            check_watch(watch)
            try:
                return cls(_login(host, port, user, identity, pinned, deadline), watch=watch)
            except paramiko.AuthenticationException as error:
                raise LostMachine(
                    f"{user}@{host}:{port} refused the key: {error}", how="garbled"
                ) from error
            except (OSError, EOFError, paramiko.SSHException) as error:
                # slirp accepts before sshd is there and then hangs up: part of any boot
                last = f"{type(error).__name__}: {error}"
                return None

        return wait_until(attempt, deadline, interval_s=_RETRY_S, describe=lambda: last)

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether the connection is up as far as keepalives show."""
        return self._transport.is_active()

    def close(self) -> None:
        """Close the connection; calls that wait on it fail. Idempotent, from any thread."""
        self._transport.close()

    def run(
        self, argv: Sequence[str], deadline: Deadline, *, stdin: bytes = b"", check: bool = False
    ) -> SshResult:
        """Run a command to its end. sshd passes it to the login shell, quoted by ``shlex.join``.

        :raises OutcomeUnknown: the connection was cut while it ran, or its output was too long.
        :raises LostMachine: the connection was down before.
        :raises DeadlineExceeded: it did not end in time; the connection stays up.
        :raises CommandFailed: with ``check``, on a status other than 0.
        """
        command = tuple(argv)
        with (
            contextlib.closing(self._open(deadline)) as channel,
            _cut_off(f"'{shlex.join(command)}'"),
        ):
            _exec(channel, shlex.join(command), deadline)
            sender = memoryview(stdin)
            out, err = bytearray(), bytearray()
            if not sender:
                channel.shutdown_write()

            def pump() -> bool:
                nonlocal sender
                check_watch(self._watch)
                # Order matters: what was sent before the end is still in the buffers.
                ended = channel.exit_status_ready() or channel.closed
                if sender and channel.send_ready():
                    sender = sender[channel.send(bytes(sender[:_READ_BYTES])) :]
                    if not sender:
                        channel.shutdown_write()
                _drain(channel, out, err)
                if len(out) + len(err) > MAX_OUTPUT_BYTES:
                    raise OutcomeUnknown(
                        f"'{command[0]}' said more than {MAX_OUTPUT_BYTES} bytes; cut off"
                    )
                # A closed channel counts as "status ready"; only a live line makes it one (-1 then
                # means a signal).
                if ended and channel.exit_status == -1 and not self._transport.is_active():
                    raise OutcomeUnknown(f"the line was cut while '{command[0]}' ran")
                return ended and bool(channel.eof_received or channel.closed)

            wait_until(
                pump,
                deadline,
                interval_s=0.005,
                describe=lambda: bytes(err or out)[-200:].decode(errors="replace") or "no output",
            )
            _drain(channel, out, err)
            # Does not wait: the status is there.
            result = SshResult(
                argv=command,
                stdout=bytes(out),
                stderr=bytes(err),
                status=channel.recv_exit_status(),
            )
        return result.check() if check else result

    def stream(self, argv: Sequence[str], deadline: Deadline) -> paramiko.Channel:
        """Start a command and return its two ends of a pipe, for :class:`..bridge.Bridge`.

        :raises LostMachine: the line is down.
        """
        channel = self._open(deadline)
        try:
            with _cut_off(f"'{argv[0]}'"):
                _exec(channel, shlex.join(argv), deadline)
        except BaseException:
            channel.close()
            raise
        channel.settimeout(None)
        return channel

    def put(self, data: bytes, path: str, deadline: Deadline, *, mode: int = 0o600) -> None:
        """Write a file on the host, atomically; needs no sftp server.

        :raises CommandFailed: the file could not be written.
        """
        script = 'umask 077; cat >"$1.new" && chmod "$2" "$1.new" && mv -f "$1.new" "$1"'
        self.run(("sh", "-c", script, "put", path, f"{mode:o}"), deadline, stdin=data, check=True)

    def shell(self, deadline: Deadline, argv: Sequence[str] = ()) -> int:
        """Connect this process's terminal to a remote shell (or ``argv``) until that ends.

        :param deadline: for opening it; the session itself has no limit.
        :return: exit status of the remote side, 255 when the connection was cut.
        """
        descriptor = sys.stdin.fileno()
        with (
            contextlib.closing(self._open(deadline)) as channel,
            _raw_terminal(descriptor) as is_terminal,
        ):
            if is_terminal:
                size = os.get_terminal_size(descriptor)
                channel.get_pty(os.environ.get("TERM", "dumb"), *size)

                def resize(_signal: int, _frame: object) -> None:
                    with contextlib.suppress(paramiko.SSHException):
                        channel.resize_pty(*os.get_terminal_size(descriptor))

                signal.signal(signal.SIGWINCH, resize)
            if argv:
                _exec(channel, shlex.join(argv), deadline)
            else:
                channel.invoke_shell()
            _converse(channel, descriptor)
            return channel.recv_exit_status() if channel.exit_status_ready() else 255

    def _open(self, deadline: Deadline) -> paramiko.Channel:
        try:
            return self._transport.open_session(timeout=max(0.01, deadline.remaining_s))
        except (paramiko.SSHException, EOFError, OSError) as error:
            if self._transport.is_active() and deadline.expired:
                raise deadline.exceeded("sshd does not open a session") from error
            raise LostMachine(f"SSH is gone: {error}", how="no-answer") from error


def _login(
    host: str,
    port: int,
    user: str,
    identity: paramiko.PKey,
    pinned: paramiko.PKey,
    deadline: Deadline,
) -> paramiko.Transport:
    """One attempt. A helper thread belongs to the transport; it ends with it."""
    with contextlib.ExitStack() as stack:
        link = socket.create_connection((host, port), timeout=max(0.01, deadline.remaining_s))
        stack.callback(link.close)
        transport = paramiko.Transport(link)
        # It logs each failed attempt as an error with its traceback; attempts fail in any boot.
        transport.set_log_channel(_PARAMIKO_LOG.name)
        _PARAMIKO_LOG.propagate = log.isEnabledFor(logging.DEBUG)
        stack.callback(transport.close)
        # Bounded by us: a peer that accepts and says nothing must not use up its own timeouts.
        bound_s = max(0.05, deadline.remaining_s)
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = bound_s
        # offer only the pinned type, or a server with several keys may show another one
        options = transport.get_security_options()
        options.key_types = tuple(
            name for name in options.key_types if _is_type_of(name, pinned)
        ) or (pinned.get_name(),)
        transport.start_client(timeout=bound_s)
        shown = transport.get_remote_server_key()
        if (shown.get_name(), shown.asbytes()) != (pinned.get_name(), pinned.asbytes()):
            raise WrongHostKey(
                f"{host}:{port} shows host key {shown.fingerprint}, expected {pinned.fingerprint}",
                how="garbled",
                hint="another machine answers on that port",
            )
        transport.auth_publickey(user, identity)
        transport.set_keepalive(KEEPALIVE_S)
        stack.pop_all()
        return transport


def _is_type_of(name: str, key: paramiko.PKey) -> bool:
    """rsa-sha2-* are signatures by the key type ssh-rsa."""
    return name == key.get_name() or (key.get_name() == "ssh-rsa" and name.startswith("rsa-"))


@contextlib.contextmanager
def _cut_off(what: str) -> Iterator[None]:
    try:
        yield
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise OutcomeUnknown(f"the line was cut while {what} ran: {error!r}") from error


def _exec(channel: paramiko.Channel, command: str, deadline: Deadline) -> None:
    """Start a command. ``exec_command()`` waits for ever; closing the channel ends that."""
    timer = threading.Timer(deadline.remaining_s, channel.close)
    timer.start()
    try:
        channel.exec_command(command)
        channel.settimeout(deadline.remaining_s or 0.001)
    except paramiko.SSHException as error:
        if deadline.expired:
            raise deadline.exceeded(f"sshd does not start '{command}'") from error
        raise
    finally:
        timer.cancel()
        timer.join()


def _drain(channel: paramiko.Channel, out: bytearray, err: bytearray) -> None:
    while channel.recv_ready():
        out += channel.recv(_READ_BYTES)
    while channel.recv_stderr_ready():
        err += channel.recv_stderr(_READ_BYTES)


def _converse(channel: paramiko.Channel, descriptor: int) -> None:
    """Copy bytes both ways until the remote side ends."""
    channel.settimeout(None)
    reading = [descriptor]
    while not (channel.exit_status_ready() and not channel.recv_ready()):
        ready, _, _ = select.select([channel.fileno(), *reading], [], [], 1.0)
        if channel.fileno() in ready:
            data = channel.recv(_READ_BYTES)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
            while channel.recv_stderr_ready():
                os.write(sys.stderr.fileno(), channel.recv_stderr(_READ_BYTES))
        if descriptor in ready:
            typed = os.read(descriptor, _READ_BYTES)
            if typed:
                channel.sendall(typed)
            else:
                channel.shutdown_write()
                reading = []


@contextlib.contextmanager
def _raw_terminal(descriptor: int) -> Iterator[bool]:
    """Put a terminal into raw mode; yield False when it is none."""
    if not os.isatty(descriptor):
        yield False
        return
    saved = termios.tcgetattr(descriptor)
    handler = signal.getsignal(signal.SIGWINCH)
    try:
        tty.setraw(descriptor)
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
        signal.signal(signal.SIGWINCH, handler)
