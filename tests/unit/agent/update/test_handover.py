# SPDX-License-Identifier: Apache-2.0
"""What the host refuses in ``prepare`` leaves nothing preserved, and its guests running."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import cast

import pytest

from liveupdate.agent.guest.guests import Guest
from liveupdate.agent.update import handover as handovers
from liveupdate.agent.update.handover import Handover, HandoverError
from liveupdate.agent.update.lock_record import Update


class FakeGuest:
    def __init__(self, name: str, *, refused: bool = False) -> None:
        self.spec = SimpleNamespace(name=name, pages=1, memory_bytes=4096, session=f"lu.{name}")
        self.error: str | None = None
        self.running, self.preserved, self._refused = True, False, refused

    def prepare(self) -> int:
        if self._refused:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), self.spec.name)
        self.preserved = True
        return 1

    def release(self) -> None:
        self.preserved = False


class FakeSession:
    def __init__(self) -> None:
        self.open = True

    def preserve(self, fd: int, token: int) -> None:
        pass

    def let_go(self) -> None:
        self.open = False


class FakeCarrier:
    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []

    def create(self, _name: str) -> FakeSession:
        self.sessions.append(FakeSession())
        return self.sessions[-1]


@pytest.fixture
def mechanism(monkeypatch: pytest.MonkeyPatch) -> FakeCarrier:
    made = FakeCarrier()
    monkeypatch.setattr(handovers, "open_mechanism", lambda: made)
    return made


def make_handover(*guests: FakeGuest) -> Handover:
    table = {guest.spec.name: cast(Guest, guest) for guest in guests}
    return Handover(table, lambda _name, _data: None, lambda _s: None, Update(table))


def test_a_host_out_of_memory_in_preserve_has_nothing_preserved_and_its_guests_run(
    mechanism: FakeCarrier,
) -> None:
    guests = [FakeGuest("vm0"), FakeGuest("vm1", refused=True)]
    handover = make_handover(*guests)
    with pytest.raises(HandoverError, match="Cannot allocate memory: 'vm1'"):
        handover.prepare()
    assert handover.state == "idle" and handover.preserved_bytes == 0
    assert [guest.preserved for guest in guests] == [False, False]
    assert all(guest.running for guest in guests)
    assert [session.open for session in mechanism.sessions] == [False]
    # and it may be tried again
    guests[1]._refused = False
    handover.prepare()
    assert handover.state == "prepared"
    handover.abandon()


def test_a_lost_guest_is_refused_before_anything_is_preserved(mechanism: FakeCarrier) -> None:
    guests = [FakeGuest("vm0"), FakeGuest("vm1")]
    guests[1].error = "VMM ended with status 1"
    with pytest.raises(HandoverError, match="guest 'vm1' is lost"):
        make_handover(*guests).prepare()
    assert mechanism.sessions == []


@pytest.mark.parametrize(
    ("record", "order"),
    [
        (-1, ["seal", "jumping"]),  # from the word on, nothing is written to what is carried
        (99, ["jumping", "save", "seal"]),  # the record has the word itself
    ],
)
def test_the_bundle_is_sealed_when_all_is_in_it(record: int, order: list[str]) -> None:
    done: list[str] = []
    handover = Handover({}, lambda name, _data: done.append(name), lambda _s: None, Update({}))
    handover._session = SimpleNamespace(is_open=True, seal=lambda: done.append("seal"))  # type: ignore[assignment]
    handover._record = record
    handover._update.save = lambda fd: done.append("save")  # type: ignore[method-assign]
    handover._take_leave()
    assert done == order


def test_a_bundle_that_a_fault_has_closed_is_not_sealed() -> None:
    handover = make_handover()
    sealed: list[str] = []
    closed = SimpleNamespace(is_open=False, seal=lambda: sealed.append("seal"))
    handover._session = closed  # type: ignore[assignment]
    handover._take_leave()
    assert sealed == []
