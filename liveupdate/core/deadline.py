# SPDX-License-Identifier: Apache-2.0
"""Deadlines on the monotonic clock, and the one way to poll."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from liveupdate.core.errors import DeadlineExceeded

Clock = Callable[[], float]
T = TypeVar("T")

#: what is waited for when the time of the whole is up: what was begun may be cleaned up
_GRACE_S = 5.0
_whole: ContextVar[Deadline | None] = ContextVar("whole", default=None)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock that callers pass down; it is never restarted on the way."""

    what: str
    timeout_s: float
    expires_at: float
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, timeout_s: float, what: str, clock: Clock = time.monotonic) -> Deadline:
        """Make a deadline ``timeout_s`` seconds from now for ``what``; it comes earlier when the
        :func:`whole` has less time left, and then says so.
        """
        now, limit = clock(), _whole.get()
        if limit is not None and clock is limit.clock and now + timeout_s > limit.expires_at:
            timeout_s = max(limit.expires_at - now, min(timeout_s, _GRACE_S))
            what = f"{what}, within {limit.what}"
        return cls(what=what, timeout_s=timeout_s, expires_at=now + timeout_s, clock=clock)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.expires_at - self.clock())

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.clock() >= self.expires_at

    def exceeded(self, last: str | None = None) -> DeadlineExceeded:
        """Make the error that names the wait; the caller raises it."""
        return DeadlineExceeded(self.what, self.timeout_s, last)


@contextmanager
def whole(deadline: Deadline) -> Iterator[None]:
    """Let no wait that this thread begins in the block last longer than ``deadline``."""
    token = _whole.set(deadline)
    try:
        yield
    finally:
        _whole.reset(token)


def check_whole() -> None:
    """Raise when the deadline of the :func:`whole` has passed.

    :raises DeadlineExceeded: it has.
    """
    limit = _whole.get()
    if limit is not None and limit.expired:
        raise limit.exceeded()


def wait_until(
    probe: Callable[[], T | None],
    deadline: Deadline,
    *,
    interval_s: float = 0.02,
    describe: Callable[[], str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Poll ``probe`` until it returns something other than ``None`` or ``False``.

    :raises DeadlineExceeded: with what ``describe`` says was last seen.
    """
    while True:
        value = probe()
        if value is not None and value is not False:
            return value
        if deadline.expired:
            raise deadline.exceeded(describe() if describe else None)
        sleep(min(interval_s, deadline.remaining_s or interval_s))
