# SPDX-License-Identifier: Apache-2.0
"""Sends numbered frames to one device at a set rate, and notes when QEMU took each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from liveupdate.model.evidence import FrameSent

#: A link that is blocked for so long belongs to a device that receives nothing, or to a machine
#: too busy to be measured; until a frame gets through again, sending does not wait.
PATIENCE_S = 1.0


Send = Callable[[bytes, float], int | None]
"""Sends one frame within so many seconds; returns when it was taken (ns), or None."""


class FrameSender:
    """A thread that sends from :meth:`resume` to :meth:`pause`, any number of times.

    The schedule is fixed at the resume: a late frame delays no other, and none is left out. The
    first exception is kept in :attr:`error`.
    """

    def __init__(self, name: str, send: Send, build: Callable[[int], bytes], rate: float) -> None:
        """
        :param send: :meth:`liveupdate.transport.guest_network.Wire.send_within`.
        :param build: makes the frame of a number.
        :param rate: frames per second.
        """
        self.name = name
        self.error: BaseException | None = None
        #: numbers that are dropped on purpose, for the fault ``drop-frames``
        self.lost: frozenset[int] = frozenset()
        #: those that were
        self.dropped: tuple[FrameSent, ...] = ()
        self._send = send
        self._build = build
        self._interval_ns = round(1e9 / rate)
        self._changed = threading.Condition()
        self._is_wanted = self._is_busy = self._is_left = False
        #: of the next frame to send
        self.next_number = 0
        self._frames: list[FrameSent] = []
        self._thread = threading.Thread(target=self._run, name=f"frames-{name}", daemon=True)

    def __enter__(self) -> FrameSender:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._is_left = True
            self._is_wanted = False
            self._changed.notify_all()
        self._thread.join()

    def resume(self) -> None:
        """Start sending, beginning with :attr:`next_number`."""
        with self._changed:
            self._is_wanted = True
            self._changed.notify_all()

    def pause(self) -> int:
        """Stop sending and return the number of the next frame; all before it have been sent."""
        with self._changed:
            self._is_wanted = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_busy, timeout=2 * PATIENCE_S)
        return self.next_number

    def take(self) -> tuple[FrameSent, ...]:
        """Return the frames that were sent since the last call."""
        with self._changed:
            frames, self._frames = self._frames, []
        return tuple(frames)

    def _run(self) -> None:
        while self.error is None and self._wait_wanted():
            try:
                self._send_paced()
            except Exception as error:
                self.error = error
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    def _wait_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_wanted or self._is_left)
            self._is_busy = self._is_wanted
            return not self._is_left

    def _send_paced(self) -> None:
        due_ns = time.monotonic_ns()
        patience_s = PATIENCE_S
        while self._is_wanted:
            ahead_ns = due_ns - time.monotonic_ns()
            if ahead_ns > 0:
                time.sleep(ahead_ns / 1e9)
            number = self.next_number
            frame = self._build(number)
            if number in self.lost:
                sent_ns: int | None = time.monotonic_ns()
            else:
                sent_ns = self._send(frame, patience_s)
                patience_s = 0.0 if sent_ns is None else PATIENCE_S
            row = FrameSent(number, due_ns, sent_ns)
            if number in self.lost:
                self.dropped += (row,)
            with self._changed:
                self._frames.append(row)
                self.next_number = number + 1
            due_ns += self._interval_ns
