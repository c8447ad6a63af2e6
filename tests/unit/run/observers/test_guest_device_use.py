# SPDX-License-Identifier: Apache-2.0
"""What a guest does with a device of its own: which uses count as before, and which as after."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from liveupdate.core.steps import Steps
from liveupdate.model.evidence import Echo
from liveupdate.model.scenario import DeviceSpec, Observation
from liveupdate.run.observers import guest_device_use
from liveupdate.run.observers.guest_device_use import GuestUseWatch
from liveupdate.run.testbed import Testbed
from liveupdate.transport.agent_link import AgentEvent
from tests.support import evidence_builder as make

NIC = DeviceSpec(name="nic0", guest="vm0", tier="quiesce")


def event(name: str, at_ns: int, guest: str = "vm0") -> AgentEvent:
    return AgentEvent(name=name, n=1, boot=1, at_ns=at_ns, t_ns=0, data={"guest": guest})


class FakeEchoes:
    """A wire on which one request after the other is answered, at times given ahead."""

    answers: list[int] = []  # noqa: RUF012 - shared on purpose: each look makes a new one
    made: list[FakeEchoes] = []  # noqa: RUF012

    def __init__(self, wire: object, macs: dict[str, str], *rest: object) -> None:
        assert (wire, macs) == ("wire of nic0", {"vm0": "52:54:00:40:00:00"})
        self.sender = self.receiver = self
        self.entered = 0
        FakeEchoes.made.append(self)

    def __enter__(self) -> FakeEchoes:
        self.entered += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self.entered -= 1

    def take(self, guest: str) -> tuple[Echo, ...]:
        assert guest == "vm0"
        if not self.answers:
            return (Echo(seq=0, sent_ns=1, received_ns=None, boot=None),)
        at = self.answers.pop(0)
        return (Echo(seq=at, sent_ns=at - 1, received_ns=at, boot=1),)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[AgentEvent]:
    monkeypatch.setattr(guest_device_use, "EchoWatcher", FakeEchoes)
    monkeypatch.setattr(guest_device_use, "_FIRST_USE_S", 30.0)
    monkeypatch.setattr(guest_device_use, "_PAUSE_S", 0.001)
    FakeEchoes.answers, FakeEchoes.made = [], []
    return []


def make_watch(events: list[AgentEvent]) -> GuestUseWatch:
    agent = SimpleNamespace(mark=lambda: 0, events=lambda since: tuple(events[since:]))
    bed = SimpleNamespace(
        host=SimpleNamespace(agent=agent),
        own_machine=SimpleNamespace(feeds={"nic0": "wire of nic0"}, namespaces={}),
        plan=replace(make.make_plan(observe=Observation(echo_interval_s=0.01)), devices=(NIC,)),
    )
    return GuestUseWatch(cast(Testbed, bed), NIC, "vm0", Steps())


def test_uses_before_the_sleep_and_after_the_load_are_told_apart(events: list[AgentEvent]) -> None:
    watch = make_watch(events)
    FakeEchoes.answers = [10, 20, 30, 40, 50]
    watch.begin()
    assert FakeEchoes.made[0].entered == 0, "the wire is silent while the guest sleeps"
    events += [event("asleep", 100), event("asleep", 15, "vm1"), event("loaded", 200)]
    FakeEchoes.answers = [210, 220, 230, 240, 250]
    watch.resumed()
    events.append(event("awake", 205))
    watch.end()
    use = watch.facts()
    assert (use.guest, use.before, use.after) == ("vm0", 5, 5)
    assert (use.asleep_ns, use.awake_ns, use.first_ns) == (100, 205, 210)
    assert (use.journal_before, use.journal_after) == (None, None)
    assert [each.entered for each in FakeEchoes.made] == [0, 0]


def test_what_is_not_used_again_is_told_as_such(
    events: list[AgentEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = make_watch(events)
    FakeEchoes.answers = [10, 20, 30, 40, 50]
    watch.begin()
    events += [event("asleep", 100), event("loaded", 200), event("awake", 205)]
    watch.resumed()
    monkeypatch.setattr(guest_device_use, "_FIRST_USE_S", 0.01)
    watch.end()
    use = watch.facts()
    assert (use.before, use.first_ns, use.after) == (5, None, 0)


def test_an_answer_that_came_before_the_new_vmm_let_the_guest_go_is_no_use_after(
    events: list[AgentEvent],
) -> None:
    watch = make_watch(events)
    FakeEchoes.answers = [10, 20, 30, 40, 150]
    watch.begin()
    events += [event("asleep", 100), event("loaded", 200)]
    use = watch.facts()
    assert (use.before, use.after, use.awake_ns) == (4, 0, None)


def test_hop_that_never_came_to_sleep_has_uses_before_only(events: list[AgentEvent]) -> None:
    watch = make_watch(events)
    FakeEchoes.answers = [10, 20, 30, 40, 50]
    watch.begin()
    watch.close()
    use = watch.facts()
    assert (use.before, use.asleep_ns, use.first_ns, use.after) == (5, None, None, 0)
