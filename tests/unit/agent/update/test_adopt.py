# SPDX-License-Identifier: Apache-2.0
"""For how long an incoming agent looks at its guests by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from liveupdate.agent.guest.guests import Guest
from liveupdate.agent.update import lock_record

SECOND = 1_000_000_000


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 0
        monkeypatch.setattr(lock_record, "now_ns", lambda: self.at)


def _looking_s(monkeypatch: pytest.MonkeyPatch, boot: int, running_at_s: int | None) -> int:
    """Return after how many seconds it stops, when the guest runs from ``running_at_s`` on."""
    clock = Clock(monkeypatch)
    guest = SimpleNamespace(running=False)
    held = lock_record.Update({"vm0": cast(Guest, guest)})
    held.begin({"id": "1", "owner": "me", "watch": {"vm0": 0}})
    held.boot = boot
    held._watching = True
    watched = lock_record._Watched()
    for second in range(1000):
        guest.running = running_at_s is not None and second >= running_at_s
        clock.at = second * SECOND
        watched.add(clock.at)
        if not held._is_watching(watched):
            return second
    return -1


@pytest.mark.parametrize(
    ("running_at_s", "ends_at_s"),
    [(0, 30), (45, 75), (119, 149), (None, 120)],
)
def test_guests_that_come_back_late_are_looked_at_as_long_as_others(
    running_at_s: int | None, ends_at_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _looking_s(monkeypatch, 1, running_at_s) == ends_at_s


def test_before_the_jump_it_looks_until_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _looking_s(monkeypatch, 0, 0) == -1
