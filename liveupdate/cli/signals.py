# SPDX-License-Identifier: Apache-2.0
"""Signals: the first one unwinds with cleanup; the second one ends the process at once.

Children die with this process (PR_SET_PDEATHSIG), so even the second signal leaves none behind.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from liveupdate.model.verdict import ExitCode

#: SIGHUP ends a run like SIGTERM: the terminal is gone, the machines must not stay
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop; raised once, in the main thread."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> ExitCode:
        """The exit status for this signal: 130 for SIGINT, else 143."""
        return ExitCode.SIGINT if self.number == signal.SIGINT else ExitCode.SIGTERM


def _on_signal(number: int, _frame: FrameType | None) -> None:
    for handled in HANDLED:
        signal.signal(handled, _end_now)
    raise Interrupted(number)


def _end_now(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread on the first signal; restore handlers at the
    end.
    """
    # a shell's `&` and nohup ignore signals on purpose; that stays
    previous = {
        number: signal.signal(number, _on_signal)
        for number in HANDLED
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
