# SPDX-License-Identifier: Apache-2.0
"""What every QMP monitor shares, whatever carries its commands: the log of events, and HMP.

Must not know how commands and events travel.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LostMachine
from liveupdate.transport.unix import Watch, check_watch

_EVENTS_KEPT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QmpEvent:
    """One event; ``at_ns`` is CLOCK_MONOTONIC of this host when it arrived."""

    name: str
    at_ns: int
    data: Mapping[str, object] = field(default_factory=dict)


class Monitor(ABC):
    """A monitor with a log of events. Threads may add to it while others wait."""

    #: name of the connection in messages about its end
    WHO = "QMP"

    def __init__(self, watch: Watch | None) -> None:
        """:param watch: called while waiting; what it returns is raised (the machine has ended)."""
        self._watch = watch
        self._changed = threading.Condition()
        self._events: list[QmpEvent] = []
        self._dropped = 0

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

    def quit(self, deadline: Deadline) -> None:
        """Ask QEMU to end; a connection that ends with it is success."""
        self.execute("quit", None, deadline)

    def events(self, since: int = 0) -> tuple[QmpEvent, ...]:
        """Return what arrived so far, from position ``since`` (see :meth:`mark`)."""
        with self._changed:
            return tuple(self._events[max(0, since - self._dropped) :])

    def mark(self) -> int:
        """Return the position after the newest event, for ``since``."""
        with self._changed:
            return self._dropped + len(self._events)

    def wait_event(
        self,
        name: str,
        deadline: Deadline,
        *,
        where: Mapping[str, object] | None = None,
        since: int = 0,
    ) -> QmpEvent:
        """Wait for an event whose data has all of ``where``; events from position ``since`` count.

        :raises LostMachine: the connection ended without it, or what ``watch`` said.
        :raises DeadlineExceeded: the event did not arrive.
        """

        def look() -> QmpEvent | None:
            for event in self.events(since):
                if event.name == name and all(
                    event.data.get(key) == value for key, value in (where or {}).items()
                ):
                    return event
            check_watch(self._watch)
            if self.lost:
                raise LostMachine(f"{self.WHO} ended before '{name}': {self.lost}", how="no-answer")
            return None

        def describe() -> str:
            return ", ".join(event.name for event in self.events(since)[-5:]) or "no event at all"

        return wait_until(look, deadline, describe=describe, sleep=self._sleep)

    def _keep(self, name: str, data: object) -> None:
        """Add an event that has just arrived; data that is not an object counts as none."""
        event = QmpEvent(
            name=name, at_ns=time.monotonic_ns(), data=data if isinstance(data, dict) else {}
        )
        with self._changed:
            self._events.append(event)
            if len(self._events) > _EVENTS_KEPT:
                self._dropped += len(self._events) - _EVENTS_KEPT
                del self._events[:-_EVENTS_KEPT]
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait(seconds)
