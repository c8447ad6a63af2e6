# SPDX-License-Identifier: Apache-2.0
"""What every QMP monitor shares, whatever carries its commands: answers, HMP, the log of events.

Must not know how commands and events travel.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LostMachine, RemoteError

_EVENTS_KEPT = 10_000


class QmpRefused(RemoteError):
    """QEMU understood a command and refused it; ``kind`` is the QMP error class."""

    def __init__(self, command: str, kind: str, message: str) -> None:
        super().__init__(command, kind, message)
        self.message = f"QEMU refused '{command}' ({kind}): {message}"
        self.args = (self.message,)


@dataclass(frozen=True, slots=True, kw_only=True)
class QmpEvent:
    """One event; ``at_ns`` is CLOCK_MONOTONIC of this host when it arrived."""

    name: str
    at_ns: int
    data: Mapping[str, object] = field(default_factory=dict)


class Commands(ABC):
    """What executes QMP commands."""

    @abstractmethod
    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        deadline: Deadline | None = None,
    ) -> object:
        """Execute a command and return its result.

        :raises QmpRefused: QEMU refused the command.
        :raises OutcomeUnknown: the connection ended before the answer.
        :raises LostMachine: the connection was gone before the command was sent, or the answer was
            not valid.
        :raises DeadlineExceeded: no answer in time; whether the command was carried out is unknown.
        """

    def hmp(self, command_line: str, deadline: Deadline | None = None) -> str:
        """Execute a human monitor command; its output is text and errors are part of it."""
        answer = self.execute("human-monitor-command", {"command-line": command_line}, deadline)
        if not isinstance(answer, str):
            raise LostMachine(f"no text in answer to '{command_line}'", how="garbled")
        return answer


class Monitor(Commands):
    """A monitor with a log of events. Threads may add to it while others read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[QmpEvent] = deque(maxlen=_EVENTS_KEPT)

    @property
    @abstractmethod
    def lost(self) -> str | None:
        """Why the connection is gone, or None while it lives."""

    @abstractmethod
    def connect(self, deadline: Deadline) -> Mapping[str, object]:
        """Connect, and return what ``query-version`` would return.

        :raises LostMachine: no process listens, or it does not speak QMP.
        :raises DeadlineExceeded: no greeting in time.
        """

    @abstractmethod
    def drop(self) -> None:
        """Cut the connection without closing it properly; for the fault tests."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection. Idempotent."""

    def quit(self, deadline: Deadline) -> None:
        """Ask QEMU to end; a connection that ends with it is success."""
        self.execute("quit", None, deadline)

    def events(self) -> tuple[QmpEvent, ...]:
        """Return what arrived so far; of very many events, the newest."""
        with self._lock:
            return tuple(self._events)

    def _keep(self, name: str, data: object) -> None:
        """Add an event that has just arrived; data that is not an object counts as none."""
        event = QmpEvent(
            name=name, at_ns=time.monotonic_ns(), data=data if isinstance(data, dict) else {}
        )
        with self._lock:
            self._events.append(event)


def take_answer(command: str, answer: object) -> object:
    """Return the value of QEMU's answer.

    :raises QmpRefused: QEMU refused the command.
    :raises LostMachine: this is no QMP answer.
    """
    match answer:
        case {"return": value}:
            return value
        case {"error": {"class": str(kind), "desc": str(message)}}:
            raise QmpRefused(command, kind, message)
        case _:
            said = str(answer)[:80]
            raise LostMachine(f"nonsense in answer to '{command}': {said}", how="garbled")
