# SPDX-License-Identifier: Apache-2.0
"""The agent: one thread for all I/O, one that carries out calls in order, one per busy guest.

The thread in which something happens sends its event, at once; the port never blocks.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import sys

from ..base import framing, host
from ..base.fast_stdlib import TYPE_CHECKING, Task
from ..base.names import CallError, SpecError
from ..guest.guests import Guest
from ..guest.net import Network
from ..guest.vmm_qemu import RUN_DIR, QemuVmm
from ..update.handover import Handover
from ..update.lock_record import READ_ONLY, Update
from .port import Port, Visitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..base.fast_stdlib import Socket

READY_FD_ENV = "LIVEUPDATE_READY_FD"
CALLS_QUEUED_MAX = 256
VISITORS_MAX = 16
GUEST_LINE_BYTES_MAX = 64 << 10
READ_RAM_MAX = 64 << 10
#: poll interval while the port is absent, has no reader, or has not taken all output
RETRY_MS = 20


class Agent:
    """Owns the port, the guests and the handover."""

    def __init__(self, port: Port, ready_fd: int = -1) -> None:
        """:param ready_fd: pipe to PID 1, which waits at its other end; -1: there is none."""
        self.port = port
        self._ready_fd = ready_fd
        self.guests: dict[str, Guest] = {}
        self.network = Network()
        self.update = Update(self.guests)
        self.handover = Handover(self.guests, self.emit, port.drain, self.update)
        self._events = 0
        self._events_lock = _thread.allocate_lock()
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._port_registered = False
        self._splitter = framing.LineSplitter()
        #: id of the update for which the relay, or the reader of the port, speaks
        self.holder = ""
        self._visitors: dict[int, Visitor] = {}
        self._calls: list[tuple[int, str, dict[str, object], Visitor | None]] = []
        self._calls_ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

    # --- out

    def emit(self, name: str, data: dict[str, object]) -> None:
        """Send an event now, from any thread."""
        with self._events_lock:  # numbers must leave in order
            self._events += 1
            line = framing.encode_event(self._events, name, data)
            self.update.note(name, line)
            self._send(line, droppable=name == "guest-line")

    def _send(self, line: bytes, *, droppable: bool = False) -> None:
        self.port.send(line, droppable=droppable)
        if self.port.has_pending:
            os.eventfd_write(self._wake, 1)

    def _answer(self, line: bytes, visitor: Visitor | None) -> None:
        if visitor is None:
            self._send(line)
        else:
            visitor.send(line)

    # --- start

    def start(self) -> None:
        """Send hello and take over what the previous kernel left; returns at once."""
        recovered, entries = self.handover.recover()
        self.emit(
            "hello",
            {
                "protocol": framing.PROTOCOL,
                "boot_id": host.boot_id(),
                "pid": os.getpid(),
                "generation": host.generation(),
                "recovered": recovered,
                "sessions": list(self.handover.sessions),
            },
        )
        for entry in entries:
            guest = Guest(entry.spec, self.handover.open(), self.network, self.emit, self.watch)
            guest.faults, guest.saved, guest.clock = entry.faults, entry.state, entry.clock
            self.guests[entry.spec.name] = guest
        if not recovered:
            self._adopt()
        elif self.update.lock is not None:
            self.update.watch()
        # a session that could not be retrieved is an event, too
        Task(self._restore if self.handover.sessions else self._tell_init)
        Task(self._serve)

    def _adopt(self) -> None:
        """Take back guests that an earlier agent of this boot left running."""
        from ..update.adopt import STATE_PATH, adopt

        if os.path.exists(STATE_PATH):
            adopt(self)

    def _restore(self) -> None:
        from ..update.adopt import write_state

        try:
            self.handover.restore()
        finally:
            self._tell_init()
        write_state(self)

    def _tell_init(self) -> None:
        """Tell PID 1 that the guests run: it may start the services it held back."""
        if self._ready_fd >= 0:
            os.write(self._ready_fd, b"\n")
            os.close(self._ready_fd)

    # --- the I/O thread

    def loop(self) -> None:
        """Move bytes, without end."""
        self._epoll.register(self._wake, select.EPOLLIN)
        self._handlers[self._wake] = self._woken
        hung_up = is_listening = False
        while True:
            # Without a reader poll() returns at once, every time: look again after a while.
            if not self._port_registered and not hung_up:
                self._register_port()
                if not is_listening and self.port.listener_fd >= 0:
                    is_listening = True
                    self._handle(self.port.listener_fd, self._let_in)
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
                self._take_line(line, None)
            if data:
                return
        self._hang_up()

    def _hang_up(self) -> None:
        # HUP cannot be masked: without a reader the port would be ready for ever
        if self._port_registered:
            self._epoll.unregister(self.port.fd)
        self._port_registered = False
        self.port.hang_up()

    # --- who is at the socket

    def _let_in(self) -> None:
        visitor = self.port.accept()
        if visitor is None:
            return
        fd = visitor.sock.fileno()
        if len(self._visitors) >= VISITORS_MAX:
            visitor.sock.close()
            return
        self._visitors[fd] = visitor
        self._handle(fd, lambda: self._visit(fd, visitor))

    def _visit(self, fd: int, visitor: Visitor) -> None:
        data = visitor.read()
        if not data:
            self._unhandle(fd)
            self._visitors.pop(fd, None)
            visitor.sock.close()
            return
        for line in visitor.splitter.feed(data):
            self._take_line(line, visitor if fd in self._visitors else None)

    def _attach(self, seq: int, args: dict[str, object], visitor: Visitor | None) -> None:
        """Make a visitor the relay. With an id it speaks for that update, which takes the host.

        A visitor that speaks for the update that already has the host replaces a relay whose
        connection may be dead without a sign.

        :raises CallError: another has the host or the connection.
        """
        holder = args.get("id")
        if visitor is None or not isinstance(holder, str):
            raise CallError("args", "only a visitor attaches, with an 'id'")
        held = self.update.lock is not None
        self.update.check(holder)
        if self.port.has_relay and not held:
            raise CallError("busy", "another control host is connected")
        if holder:
            self.update.begin(args)
        self._hang_up()
        fd = visitor.sock.fileno()
        self._unhandle(fd)
        del self._visitors[fd]
        visitor.send(framing.encode_reply(seq, {"boot_id": host.boot_id()}))
        self.holder = holder
        self._splitter = framing.LineSplitter()
        self.port.promote(visitor)
        self._register_port()

    def _take_line(self, line: bytes | None, visitor: Visitor | None) -> None:
        if line is not None and not line.strip():
            return
        try:
            if line is None:
                raise framing.WireError(f"line longer than {framing.MAX_LINE_BYTES} bytes")
            seq, name, args = framing.parse_call(line)
        except framing.WireError as err:
            self._answer(framing.encode_error(err.seq, "protocol", str(err)), visitor)
            return
        try:
            self._take_call(seq, name, args, visitor)
        except CallError as err:
            self._answer(framing.encode_error(seq, err.kind, str(err)), visitor)

    def _take_call(
        self, seq: int, name: str, args: dict[str, object], visitor: Visitor | None
    ) -> None:
        """Queue a call, or carry it out.

        :raises CallError: it is refused.
        """
        if name == "attach":
            self._attach(seq, args, visitor)
        elif visitor is not None and name not in READ_ONLY:
            raise CallError("not-attached", f"'{name}' is for the relay; 'attach' first")
        elif name == "read_ram":
            # not queued: guests are watched this way while another call takes long
            self._send(framing.encode_reply(seq, {"data": self._read_ram(args)}))
        elif len(self._calls) >= CALLS_QUEUED_MAX:
            raise CallError("busy", "too many calls are waiting")
        else:
            self._calls.append((seq, name, args, visitor))
            os.eventfd_write(self._calls_ready, 1)

    def _read_ram(self, args: dict[str, object]) -> str:
        """Return bytes of a guest's RAM in base64, where it cannot be read from outside."""
        from binascii import b2a_base64

        offset, size = args.get("offset"), args.get("bytes")
        guest = self.guests.get(str(args.get("guest")))
        if guest is not None and not guest.running:
            # the content was written before the pause: no sign of life
            raise CallError("paused", f"guest '{guest.spec.name}' is paused")
        if (
            guest is None
            or guest.ram is None
            or not isinstance(offset, int)
            or not isinstance(size, int)
            or not 0 <= offset < guest.spec.memory_bytes
            or not 0 < size <= READ_RAM_MAX
        ):
            raise CallError("args", "no such guest, or not in its RAM")
        try:
            data = os.pread(guest.ram.fd, size, guest.ram.offset + offset)
        except OSError as err:
            raise CallError("os", str(err)) from err
        return b2a_base64(data, newline=False).decode("ascii")

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
        """Follow the payload and the end of a guest's VMM; call it again when either is new."""
        vmm, payload = guest.vmm, guest.vmm.payload
        if payload is not None:
            splitter = framing.LineSplitter(GUEST_LINE_BYTES_MAX)
            self._handle(payload.fileno(), lambda: self._payload(guest, payload, splitter))
        if vmm.pidfd not in self._handlers:
            self._handle(vmm.pidfd, lambda: self._vmm_ended(guest, vmm))

    def _payload(self, guest: Guest, sock: Socket, splitter: framing.LineSplitter) -> None:
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
                guest.heard(text)

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
        from .calls import Calls

        calls = Calls(self)
        while True:
            os.eventfd_read(self._calls_ready)
            seq, name, args, visitor = self._calls.pop(0)
            after = None
            try:
                if name not in READ_ONLY and name != "update_begin":
                    self.update.check(self.holder)
                ok, after = calls.run(name, args)
                line = framing.encode_reply(seq, ok)
            except SpecError as err:
                line = framing.encode_error(seq, "args", str(err))
            except OSError as err:
                kind = errno.errorcode.get(err.errno or 0, "os").lower()
                line = framing.encode_error(seq, kind, str(err))
            except CallError as err:
                line = framing.encode_error(seq, err.kind, str(err))
            except Exception as err:
                kind = getattr(err, "kind", "internal")
                line = framing.encode_error(seq, kind, f"{type(err).__name__}: {err}")
            self._answer(line, visitor)
            if after is not None:
                try:
                    after()
                except Exception as err:
                    self.emit("agent-error", {"call": name, "message": repr(err)})


def main() -> int:
    """Run the agent; returns only when it cannot start."""
    try:
        ready_fd = int(os.environ.pop(READY_FD_ENV, "-1"))
        os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)
        if ready_fd >= 0:
            os.set_inheritable(ready_fd, False)  # not for VMMs
        agent = Agent(Port(), ready_fd)
    except (OSError, ValueError) as err:
        print(f"liveupdate agent: {err}", file=sys.stderr)
        return 1
    agent.start()
    agent.loop()
    return 0
