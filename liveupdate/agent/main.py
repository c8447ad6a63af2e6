# SPDX-License-Identifier: Apache-2.0
"""The agent: one thread for all I/O, one that carries out calls in order, one per guest at work.

Events go out from the thread in which the thing happened, at once; the port never blocks.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import sys

from . import host, wire
from .guests import Guest
from .handover import Handover
from .lean import Task
from .net import Network
from .port import Port
from .spec import SpecError
from .vmm_qemu import RUN_DIR, QemuVmm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .lean import Socket

READY_FD_ENV = "LIVEUPDATE_READY_FD"
CALLS_QUEUED_MAX = 256
GUEST_LINE_BYTES_MAX = 64 << 10
READ_RAM_MAX = 64 << 10
#: poll interval while the port is absent, has no reader, or has not taken all
RETRY_MS = 20


class Agent:
    """Owns the port, the guests and the handover."""

    def __init__(self, port: Port, ready_fd: int = -1) -> None:
        """:param ready_fd: pipe to PID 1, which waits at its other end; -1: there is none."""
        self.port = port
        self._ready_fd = ready_fd
        self.guests: dict[str, Guest] = {}
        self.network = Network()
        self.handover = Handover(self.guests, self.emit, port.drain)
        self._events = 0
        self._events_lock = _thread.allocate_lock()
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._port_registered = False
        self._splitter = wire.LineSplitter()
        self._calls: list[tuple[int, str, dict[str, object]]] = []
        self._calls_ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

    # --- out

    def emit(self, name: str, data: dict[str, object]) -> None:
        """Send an event now, from any thread."""
        with self._events_lock:  # numbers must leave in order
            self._events += 1
            line = wire.encode_event(self._events, name, data)
            self._send(line, droppable=name == "guest-line")

    def _send(self, line: bytes, *, droppable: bool = False) -> None:
        self.port.send(line, droppable=droppable)
        if self.port.has_pending:
            os.eventfd_write(self._wake, 1)

    # --- start

    def start(self) -> None:
        """Say hello and take over what the previous kernel left; returns at once."""
        recovered, entries = self.handover.recover()
        self.emit(
            "hello",
            {
                "protocol": wire.PROTOCOL,
                "boot_id": host.boot_id(),
                "pid": os.getpid(),
                "generation": host.generation(),
                "recovered": recovered,
                "sessions": list(self.handover.sessions),
            },
        )
        for entry in entries:
            guest = Guest(entry.spec, self.handover.open(), self.network, self.emit, self.watch)
            guest.faults = entry.faults
            self.guests[entry.spec.name] = guest
        # a session that could not be had is news, too
        Task(self._restore if self.handover.sessions else self._tell_init)
        Task(self._serve)

    def _restore(self) -> None:
        try:
            self.handover.restore()
        finally:
            self._tell_init()

    def _tell_init(self) -> None:
        """Tell PID 1 that the guests run: what it kept back may start."""
        if self._ready_fd >= 0:
            os.write(self._ready_fd, b"\n")
            os.close(self._ready_fd)

    # --- the I/O thread

    def loop(self) -> None:
        """Move bytes for ever."""
        self._epoll.register(self._wake, select.EPOLLIN)
        self._handlers[self._wake] = self._woken
        hung_up = False
        while True:
            # Nobody at the other end is said again at once, for ever: look again after a while.
            if not self._port_registered and not hung_up:
                self._register_port()
            hung_up = False
            waiting = self.port.has_pending or not self._port_registered
            for fd, events in self._epoll.poll(RETRY_MS / 1000 if waiting else -1):
                if fd == self.port.fd:
                    self._port_event(events)
                    hung_up = not self._port_registered
                elif fd in self._handlers:
                    self._handlers[fd]()
            if self.port.has_pending:
                self.port.flush()

    def _register_port(self) -> None:
        if self.port.fd < 0 and not self.port.try_open():
            return
        self._epoll.register(self.port.fd, select.EPOLLIN)
        self._port_registered = True
        self.port.flush()

    def _port_event(self, events: int) -> None:
        if events & select.EPOLLIN:
            data = self.port.read()
            for line in self._splitter.feed(data):
                self._take_line(line)
            if data:
                return
        # HUP cannot be masked: without a reader the port would be ready for ever
        self._epoll.unregister(self.port.fd)
        self._port_registered = False
        self.port.hang_up()

    def _take_line(self, line: bytes | None) -> None:
        if line is not None and not line.strip():
            return
        try:
            if line is None:
                raise wire.WireError(f"line longer than {wire.MAX_LINE_BYTES} bytes")
            call = wire.parse_call(line)
        except wire.WireError as err:
            self._send(wire.encode_error(err.seq, "protocol", str(err)))
            return
        if call[1] == "read_ram":
            # not queued: it is how guests are watched while another call takes its time
            self._read_ram(call[0], call[2])
            return
        if len(self._calls) >= CALLS_QUEUED_MAX:
            self._send(wire.encode_error(call[0], "busy", "too many calls are waiting"))
            return
        self._calls.append(call)
        os.eventfd_write(self._calls_ready, 1)

    def _read_ram(self, seq: int, args: dict[str, object]) -> None:
        """Answer with bytes of a guest's RAM, for want of anybody who sees it from outside."""
        from binascii import b2a_base64

        offset, size = args.get("offset"), args.get("bytes")
        guest = self.guests.get(str(args.get("guest")))
        if guest is not None and not guest.running:
            # what lies there now was written before the pause: no sign of life
            self._send(wire.encode_error(seq, "paused", f"guest '{guest.spec.name}' is paused"))
            return
        if (
            guest is None
            or guest.ram is None
            or not isinstance(offset, int)
            or not isinstance(size, int)
            or not 0 <= offset < guest.spec.memory_bytes
            or not 0 < size <= READ_RAM_MAX
        ):
            self._send(wire.encode_error(seq, "args", "no such guest, or not in its RAM"))
            return
        try:
            data = os.pread(guest.ram.fd, size, guest.ram.offset + offset)
        except OSError as err:
            self._send(wire.encode_error(seq, "os", str(err)))
            return
        text = b2a_base64(data, newline=False).decode("ascii")
        self._send(wire.encode_reply(seq, {"data": text}))

    def _woken(self) -> None:
        try:  # noqa: SIM105 - contextlib costs an import
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _handle(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _unhandle(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            try:  # noqa: SIM105 - contextlib costs an import
                self._epoll.unregister(fd)
            except OSError:
                pass  # closed meanwhile, which unregisters

    # --- guests

    def watch(self, guest: Guest) -> None:
        """Follow the payload and the end of a guest's new VMM."""
        vmm, payload = guest.vmm, guest.vmm.payload
        if payload is not None:
            splitter = wire.LineSplitter(GUEST_LINE_BYTES_MAX)
            self._handle(payload.fileno(), lambda: self._payload(guest, payload, splitter))
        self._handle(vmm.pidfd, lambda: self._vmm_ended(guest, vmm))

    def _payload(self, guest: Guest, sock: Socket, splitter: wire.LineSplitter) -> None:
        try:
            data = sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._unhandle(sock.fileno())
        for line in splitter.feed(data):
            text = "(line too long)" if line is None else line.decode("utf-8", "replace").strip()
            if text:  # an empty line is how the payload resynchronises
                guest.tell("guest-line", line=text)

    def _vmm_ended(self, guest: Guest, vmm: QemuVmm) -> None:
        self._unhandle(vmm.pidfd)
        if vmm.payload is not None:
            self._unhandle(vmm.payload.fileno())
        if not vmm.ending:
            status = vmm.reap()
            guest.error = f"VMM ended with status {status}; {vmm.last_words()}"
            guest.tell("vmm-exit", status=status, last_words=vmm.last_words())

    # --- the call thread

    def _serve(self) -> None:
        from .calls import CallError, Calls

        calls = Calls(self)
        while True:
            os.eventfd_read(self._calls_ready)
            seq, name, args = self._calls.pop(0)
            after = None
            try:
                ok, after = calls.run(name, args)
                self._send(wire.encode_reply(seq, ok))
            except SpecError as err:
                self._send(wire.encode_error(seq, "args", str(err)))
            except CallError as err:
                self._send(wire.encode_error(seq, err.kind, str(err)))
            except OSError as err:
                kind = errno.errorcode.get(err.errno or 0, "os").lower()
                self._send(wire.encode_error(seq, kind, str(err)))
            except Exception as err:
                kind = getattr(err, "kind", "internal")
                self._send(wire.encode_error(seq, kind, f"{type(err).__name__}: {err}"))
            if after is not None:
                try:
                    after()
                except Exception as err:
                    self.emit("agent-error", {"call": name, "message": repr(err)})


def main() -> int:
    """Run the agent; returns only when it cannot start."""
    try:
        os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)
        ready_fd = int(os.environ.pop(READY_FD_ENV, "-1"))
        if ready_fd >= 0:
            os.set_inheritable(ready_fd, False)  # not for VMMs
        agent = Agent(Port(), ready_fd)
    except (OSError, ValueError) as err:
        print(f"liveupdate agent: {err}", file=sys.stderr)
        return 1
    agent.start()
    agent.loop()
    return 0
