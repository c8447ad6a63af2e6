# SPDX-License-Identifier: Apache-2.0
"""The agent's channel: JSON lines over a unix socket that outlives the kernel on the other side.

Calls carry sequence numbers that are never used twice, so an answer that a kexec delayed cannot be
taken for another. A ``hello`` is a new boot: the calls that were pending then end as
:class:`OutcomeUnknown`. Nothing that arrives is trusted: lines are bounded; a line that is not of
the protocol is counted and dropped (kexec cuts a line anywhere). Must not know what calls and
events mean, except ``hello``.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LostMachine, OutcomeUnknown, RemoteError
from liveupdate.transport.unix import SocketReader, Watch, check_watch

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_LINE_BYTES = 8 << 20
_READ_BYTES = 256 * 1024
_EVENTS_KEPT = 20_000
#: as they came; digests of a guest's pages may take 12 bytes of each
_EVENT_BYTES_KEPT = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """One event. ``at_ns``: CLOCK_MONOTONIC here at arrival; ``t_ns``: CLOCK_BOOTTIME on the host.

    ``boot`` counts the ``hello``\\ s of this connection, from 1; 0: sent by an agent that said
    hello before this connection existed.
    """

    name: str
    n: int
    boot: int = 0
    at_ns: int = 0
    t_ns: int
    data: Mapping[str, object] = field(default_factory=dict)
    #: of its line
    size_bytes: int = 0

    @property
    def guest(self) -> str:
        """The guest that the event is about, or ""."""
        guest = self.data.get("guest")
        return guest if isinstance(guest, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: ``ok`` is None when it is an error."""

    re: int
    ok: Mapping[str, object] | None
    kind: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbled:
    """A line that is not of the protocol; ``head`` is its beginning."""

    why: str
    head: bytes


class LineBuffer:
    """Cuts a byte stream into lines of bounded length. No I/O."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._partial = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | Garbled]:
        """Yield each complete line without its newline; a line that is too long is yielded once,
        as garbled.
        """
        for index, piece in enumerate(data.split(b"\n")):
            if index > 0:
                # a newline stood before this piece
                if not self._skipping:
                    yield bytes(self._partial)
                self._partial.clear()
                self._skipping = False
            if not self._skipping:
                self._partial += piece
            if len(self._partial) > self._max_bytes:
                self._skipping = True
                head = bytes(self._partial[:80])
                self._partial.clear()
                yield Garbled(why=f"longer than {self._max_bytes} bytes", head=head)


def parse_line(line: bytes) -> Reply | AgentEvent | Garbled | None:
    """Parse one line; None for an empty one, with which the agent resynchronises.

    An event has neither boot nor time of arrival yet.
    """
    if not line.strip():
        return None
    try:
        value = json.loads(line)
        if b"\\ud" in line.lower():
            # A lone surrogate is JSON, but can be written to no file.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return Garbled(why=f"not JSON: {error}", head=line[:80])
    if not isinstance(value, dict):
        return Garbled(why="not an object", head=line[:80])
    match value:
        case {"re": int(number), "ok": dict(answer)}:
            return Reply(re=number, ok=answer)
        case {"re": int(number), "error": {"kind": str(kind), "message": str(message)}}:
            return Reply(re=number, ok=None, kind=kind, message=message)
        case {"n": int(number), "event": str(name), "t_ns": int(t_ns), "data": dict(data)} if (
            0 <= number < 1 << 63 and 0 <= t_ns < 1 << 63
        ):
            return AgentEvent(name=name, n=number, t_ns=t_ns, data=data, size_bytes=len(line))
        case _:
            return Garbled(why="neither reply nor event", head=line[:80])


class AgentLink(SocketReader):
    """The connection, its reader thread, and what arrived. Safe to use from several threads.

    It is to QEMU's end. That it is there says nothing about the agent: wait for ``hello`` for that.
    """

    def __init__(self, path: Path, *, watch: Watch | None = None) -> None:
        """
        :param path: unix socket of the virtio-serial port.
        :param watch: asked while waiting; what it returns is raised (machine ended, panic).
        """
        super().__init__(path, watch)
        self._sending = threading.Lock()
        self._seq = 0
        #: calls under way: None until answered; an exception when a hello cut them off
        self._pending: dict[int, Reply | OutcomeUnknown | None] = {}
        self._events: list[AgentEvent] = []
        self._kept_bytes = 0
        self._dropped = 0
        self._boot = 0
        self._resync = True
        self._lost: str | None = None
        #: lines not understood
        self.garbled_lines = 0

    def close(self) -> None:
        """Disconnect; pending calls fail. Idempotent."""
        self._end("closed on this side")
        with self._sending:
            super().close()

    # --- calls

    def call(
        self, name: str, args: Mapping[str, object] | None = None, deadline: Deadline | None = None
    ) -> Mapping[str, object]:
        """Call the agent and return its ``ok`` object.

        :raises RemoteError: the agent refused.
        :raises OutcomeUnknown: the connection ended, or a new boot began, before the answer.
        :raises LostMachine: the call could not be sent, or what ``watch`` said.
        :raises DeadlineExceeded: no answer in time.
        """
        deadline = deadline or Deadline.after(30.0, f"the agent's answer to '{name}'")
        with self._changed:
            if self._lost or self._socket is None:
                why = self._lost or "not connected"
                raise LostMachine(
                    f"the agent's channel is gone: {why}; wanted '{name}'", how="no-answer"
                )
            self._seq += 1
            seq = self._seq
            self._pending[seq] = None
        request = {"seq": seq, "call": name, "args": dict(args or {})}
        try:
            self._send(json.dumps(request, separators=(",", ":")).encode(), deadline, name)

            def is_answered() -> bool:
                if self._pending[seq] is None:
                    check_watch(self._watch)
                return self._pending[seq] is not None

            wait_until(
                is_answered,
                deadline,
                describe=lambda: f"no answer to '{name}'",
                sleep=self._sleep,
            )
        finally:
            with self._changed:
                answer = self._pending.pop(seq)
        assert answer is not None
        if isinstance(answer, OutcomeUnknown):
            raise answer
        if answer.ok is None:
            raise RemoteError(name, answer.kind, answer.message)
        return answer.ok

    # --- events

    def mark(self) -> int:
        """Return the position after the newest event, for ``since``."""
        with self._changed:
            return self._dropped + len(self._events)

    def events(self, since: int = 0) -> tuple[AgentEvent, ...]:
        """Return what arrived so far, from position ``since``."""
        with self._changed:
            return tuple(self._events[max(0, since - self._dropped) :])

    def wait_event(self, name: str, deadline: Deadline) -> AgentEvent:
        """Wait for an event of that name; errors as :meth:`wait_for`."""
        return self.wait_for(lambda event: event.name == name, deadline, what=f"'{name}'")

    def wait_for(
        self,
        wanted: Callable[[AgentEvent], bool],
        deadline: Deadline,
        *,
        what: str,
        since: int = 0,
    ) -> AgentEvent:
        """Wait for the first event that is ``wanted``; events from position ``since`` count.

        :raises LostMachine: the channel ended without it, or what ``watch`` said.
        :raises DeadlineExceeded: with the names of the last events seen.
        """
        position = since

        def look() -> AgentEvent | None:
            nonlocal position
            with self._changed:
                lost, fresh = self._lost, self.events(position)
                position = self.mark()
            found = next(filter(wanted, fresh), None)
            if found is not None:
                return found
            check_watch(self._watch)
            if lost:
                raise LostMachine(
                    f"the agent's channel ended before {what}: {lost}", how="no-answer"
                )
            return None

        def describe() -> str:
            names = ", ".join(event.name for event in self.events(since)[-5:]) or "no event"
            return names + (f", {self.garbled_lines} garbled" if self.garbled_lines else "")

        return wait_until(look, deadline, describe=describe, sleep=self._sleep)

    # --- inside

    def _send(self, line: bytes, deadline: Deadline, name: str) -> None:
        """Write a whole line or raise; a dead guest stops reading at some point."""
        with self._sending:
            link = self._socket
            # The host may hold half a line that an earlier kernel, or a deadline, cut off.
            data = memoryview((b"\n" if self._resync else b"") + line + b"\n")
            self._resync = False
            while data:
                if link is None or self._lost:
                    raise LostMachine(
                        f"the agent's channel ended; wanted '{name}'", how="no-answer"
                    )
                try:
                    data = data[link.send(data, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    select.select([], [link], [], min(0.05, deadline.remaining_s))
                except OSError as error:
                    raise LostMachine(
                        f"the agent's channel ended; wanted '{name}': {error}", how="no-answer"
                    ) from error
                if data and deadline.expired:
                    self._resync = True
                    raise deadline.exceeded(f"the host does not read; wanted '{name}'")
                if data:
                    check_watch(self._watch)

    def _read(self, link: socket.socket) -> None:
        buffer = LineBuffer()
        why = "QEMU closed it"
        while True:
            try:
                data = link.recv(_READ_BYTES)
            except OSError as error:
                why = str(error)
                break
            at_ns = time.monotonic_ns()
            if not data:
                break
            for line in buffer.feed(data):
                self._take(line if isinstance(line, Garbled) else parse_line(line), at_ns)
        self._end(why)

    def _take(self, item: Reply | AgentEvent | Garbled | None, at_ns: int) -> None:
        with self._changed:
            match item:
                case Garbled():
                    log.debug("agent: garbled line (%s): %r", item.why, item.head)
                    self.garbled_lines += 1
                case Reply():
                    if self._pending.get(item.re, item) is None:
                        self._pending[item.re] = item
                case AgentEvent():
                    self._take_event(item, at_ns)
            self._changed.notify_all()

    def _take_event(self, event: AgentEvent, at_ns: int) -> None:
        if event.name == "hello":
            self._boot += 1
            self._resync = True
            self._cut_off("a new boot began")
        self._events.append(replace(event, boot=self._boot, at_ns=at_ns))
        self._kept_bytes += event.size_bytes
        while len(self._events) > _EVENTS_KEPT or self._kept_bytes > _EVENT_BYTES_KEPT:
            self._dropped += 1
            self._kept_bytes -= self._events.pop(0).size_bytes

    def _cut_off(self, why: str) -> None:
        for seq, answer in self._pending.items():
            if answer is None:
                self._pending[seq] = OutcomeUnknown(f"{why} before the agent answered call {seq}")

    def _end(self, why: str) -> None:
        with self._changed:
            self._lost = self._lost or why
            self._cut_off(f"the agent's channel ended ({why})")
            self._changed.notify_all()
