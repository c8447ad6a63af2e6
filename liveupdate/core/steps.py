# SPDX-License-Identifier: Apache-2.0
"""Step events: the one source of the terminal view, the event log and the report's timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from liveupdate.core.deadline import check_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One event; ``kind`` is start, stop, failed or note. Times: CLOCK_MONOTONIC."""

    kind: str
    name: str
    at_ns: int
    elapsed_s: float | None = None
    fields: Mapping[str, object] = field(default_factory=dict)


Subscriber = Callable[[StepEvent], None]


class Steps:
    """Sends step events to subscribers; knows nothing about rendering."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a subscriber, which gets every later event."""
        self._subscribers.append(subscriber)

    def _emit(self, event: StepEvent) -> None:
        for subscriber in self._subscribers:
            subscriber(event)

    def note(self, name: str, **fields: object) -> None:
        """Report an observation that has no duration."""
        self._emit(StepEvent(kind="note", name=name, at_ns=time.monotonic_ns(), fields=fields))

    @contextmanager
    def step(self, name: str, **fields: object) -> Iterator[None]:
        """Bracket a piece of work; an exception leaves a ``failed`` event and passes through.

        :raises DeadlineExceeded: the time of the whole is up, see
            :func:`~liveupdate.core.deadline.whole`.
        """
        began = time.monotonic_ns()

        def end(kind: str, **more: object) -> None:
            now = time.monotonic_ns()
            seconds = (now - began) / 1e9
            self._emit(
                StepEvent(
                    kind=kind, name=name, at_ns=now, elapsed_s=seconds, fields={**fields, **more}
                )
            )

        self._emit(StepEvent(kind="start", name=name, at_ns=began, fields=fields))
        try:
            check_whole()
            yield
        except BaseException as error:
            end("failed", error=str(error) or type(error).__name__)
            raise
        end("stop")
