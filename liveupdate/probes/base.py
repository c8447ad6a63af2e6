# SPDX-License-Identifier: Apache-2.0
"""What probes share: a thread that samples at an interval until it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from liveupdate.model.evidence import Watched


class Sampler:
    """Calls ``sample`` every ``interval_s`` in a thread of its own, from enter to exit.

    The first exception ends the sampling and is kept in :attr:`error`: a sampler that died must be
    visible, because its silence would look like a dead guest.
    """

    def __init__(self, name: str, interval_s: float, sample: Callable[[], None]) -> None:
        self.name = name
        self.error: BaseException | None = None
        self._interval_s = interval_s
        self._sample = sample
        self._stop = threading.Event()
        self._began_ns = self._looked_ns = time.monotonic_ns()
        self._hole_ns = 0
        self._thread = threading.Thread(target=self._run, name=f"sample-{name}", daemon=True)

    def __enter__(self) -> Sampler:
        self._began_ns = self._looked_ns = time.monotonic_ns()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def take_watched(self) -> Watched:
        """Return the span that was sampled since the last call, and the longest time between two
        samples.
        """
        looked_ns = self._looked_ns
        watched = Watched(
            began_ns=self._began_ns, ended_ns=looked_ns, longest_hole_ns=self._hole_ns
        )
        self._began_ns, self._hole_ns = looked_ns, 0
        return watched

    def _run(self) -> None:
        due = time.monotonic()
        try:
            while not self._stop.is_set():
                self._sample()
                now = time.monotonic_ns()
                self._hole_ns = max(self._hole_ns, now - self._looked_ns)
                self._looked_ns = now
                # A late sample causes no burst: skip to the next slot.
                due = max(due + self._interval_s, time.monotonic())
                self._stop.wait(max(0.0, due - time.monotonic()))
        except Exception as error:
            self.error = error
