# SPDX-License-Identifier: Apache-2.0
"""See a guest tick, right now: one that is dead before the update says nothing about it."""

from __future__ import annotations

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded, LostMachine
from liveupdate.formats import tickpage
from liveupdate.run.testbed import GuestHandle, Testbed


class GuestStopped(LostMachine):
    """A guest does not tick, before anything has been done to it that is under test.

    ``seq`` is the last tick that was seen, -1: none was.
    """

    def __init__(self, guest: str, seq: int) -> None:
        super().__init__(f"guest '{guest}' does not tick any more, at tick {seq}", how="no-answer")
        self.seq = seq


def see_ticks(
    bed: Testbed, guest: GuestHandle, count: int, timeout_s: float, *, interval_s: float = 0.02
) -> None:
    """See the guest's payload tick on by ``count``.

    Seen under TCG before the host was told that its TSC is constant (docs/adr/0006): timers that
    never came, in a guest that QEMU called running.

    :raises GuestStopped: it does not.
    """
    first = seen = -1

    def has_ticked() -> bool:
        nonlocal first, seen
        seq = _read_seq(bed, guest)
        if seq is None:
            return False
        first = seq if first < 0 else first
        seen = seq
        return seen >= first + count

    deadline = Deadline.after(timeout_s, f"guest '{guest.spec.name}' to tick")
    try:
        wait_until(has_ticked, deadline, interval_s=interval_s)
    except DeadlineExceeded as error:
        raise GuestStopped(guest.spec.name, seen) from error


def _read_seq(bed: Testbed, guest: GuestHandle) -> int | None:
    """Read the tick, or None: a guest that lost its CPU within a write leaves the page torn."""
    try:
        return tickpage.read_tick(lambda: bed.read_tick_page(guest)).seq
    except tickpage.TornTickError:
        return None
    except tickpage.TickPageError:
        if bed.machine is not None:
            raise
        # the host could not be asked; it may the next time
        return None
