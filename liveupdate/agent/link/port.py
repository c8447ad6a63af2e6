# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the channel: a virtio-serial port, which may have no reader or appear late.

A machine without that port is reached through a unix socket instead, by a relay that the control
host starts over SSH. A client of the socket is a visitor until the agent makes it the relay, of
which there is one at a time.
"""

from __future__ import annotations

import _thread
import os
import select
import time

from ..base.fast_stdlib import Socket, listen_unix, read_text
from ..base.framing import LineSplitter, Outbox

PORT_NAME = "org.liveupdate.agent"
#: liveupdate/target/ssh/host.py connects here
SOCKET = "/run/liveupdate/agent.sock"
READ_BYTES = 1 << 16
VISITOR_LINE_BYTES_MAX = 64 << 10
VISITOR_SEND_S = 2.0
_SIOCOUTQ = 0x5411


def find_port(name: str = PORT_NAME, root: str = "/sys/class/virtio-ports") -> str | None:
    """Return the device node of the port with that name; None: not there (yet)."""
    try:
        for entry in os.listdir(root):
            if read_text(f"{root}/{entry}/name") == name:
                return f"/dev/{entry}"
    except OSError:
        pass
    return None


class Visitor:
    """A client of the socket that is not the relay. Read by the main loop only."""

    def __init__(self, sock: Socket) -> None:
        self.sock = sock
        #: a visitor's queue is shorter than the relay's
        self.splitter = LineSplitter(VISITOR_LINE_BYTES_MAX)

    def send(self, line: bytes) -> None:
        """Send an answer; it is dropped if the visitor does not read."""
        try:
            self.sock.settimeout(VISITOR_SEND_S)
            self.sock.sendall(line)
        except OSError:
            pass

    def read(self) -> bytes:
        """Return what has arrived; empty: it has gone."""
        try:
            return self.sock.recv(READ_BYTES)
        except OSError:
            return b""


class Port:
    """Sends from any thread without blocking; read by the main loop only."""

    def __init__(self) -> None:
        self.fd = -1
        self._lock = _thread.allocate_lock()
        self._outbox = Outbox()
        self._listener: Socket | None = None
        self._relay: Socket | None = None

    def try_open(self) -> bool:
        """Open the port if it exists by now; on a machine without one, listen at the socket."""
        path = find_port()
        if path is None:
            self._listen()
            return False
        try:
            self.attach(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        if self._listener is None:
            try:
                self._listener = listen_unix(SOCKET)
                self._listener.setblocking(False)
            except OSError:
                self._listener = None

    @property
    def listener_fd(self) -> int:
        """Descriptor that is readable when a client waits at the socket; -1: there is none."""
        return self._listener.fileno() if self._listener is not None else -1

    def accept(self) -> Visitor | None:
        """Accept a client as a visitor."""
        try:
            fd, _ = self._listener._accept()  # type: ignore[union-attr]  # not in the public class
        except (OSError, AttributeError):
            return None
        return Visitor(Socket(fileno=fd))

    @property
    def has_relay(self) -> bool:
        """Whether a relay is connected."""
        return self.fd >= 0

    def promote(self, visitor: Visitor) -> None:
        """Make a visitor the relay; there must be none."""
        self._relay = visitor.sock
        self._relay.setblocking(False)
        with self._lock:
            self._outbox.rewind()
        self.attach(visitor.sock.fileno())

    def hang_up(self) -> None:
        """Forget a relay that has gone; a port stays, with any reader."""
        if self._relay is None:
            return
        with self._lock:
            self.fd = -1
            self._relay.close()
            self._relay = None

    def attach(self, fd: int) -> None:
        """Use ``fd``, a descriptor that does not block, from now on."""
        with self._lock:
            self.fd = fd

    def send(self, data: bytes, *, droppable: bool = False) -> None:
        """Queue a line and write as much as the other end takes now."""
        with self._lock:
            self._outbox.put(data, droppable=droppable)
            self._flush()

    def flush(self) -> None:
        """Write as much of the queue as the other end takes now."""
        with self._lock:
            self._flush()

    @property
    def has_pending(self) -> bool:
        """Whether output is queued."""
        return self._outbox.pending_bytes > 0

    def drain(self, timeout_s: float) -> None:
        """Wait until all is written, but no longer than ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        poller = select.poll()
        if self.fd >= 0:
            poller.register(self.fd, select.POLLOUT)
        while self.has_pending and time.monotonic() < deadline:
            poller.poll(10)
            self.flush()
        # written to a relay is not yet read by it
        while self._relay is not None and self._unread() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _unread(self) -> int:
        """Return how many bytes the relay has not taken (SIOCOUTQ, unix(7))."""
        import fcntl

        count = bytearray(4)
        try:
            fcntl.ioctl(self.fd, _SIOCOUTQ, count)
        except OSError:
            return 0
        return int.from_bytes(count, "little")

    def read(self) -> bytes:
        """Return what has arrived; empty: nothing, or there is no other end."""
        try:
            return os.read(self.fd, READ_BYTES)
        except OSError:
            return b""

    def _flush(self) -> None:
        if self.fd < 0:
            return
        try:  # noqa: SIM105 - contextlib costs an import
            self._outbox.flush(lambda data: os.write(self.fd, data))
        except OSError:
            pass  # the other end went away; what is queued waits for the next
