# SPDX-License-Identifier: Apache-2.0
"""States of vCPUs from an agent's events; what a hostile host sends is left out."""

from __future__ import annotations

from typing import Any

import pytest

from liveupdate.model.vcpu_state import VCPUS_MAX
from liveupdate.probes.vcpu_state import EVENT, collect_vcpus, find_errors
from liveupdate.transport.agent_link import AgentEvent
from tests.support.vcpus import make_classes

GOOD = {
    "moment": "before", "vcpu": 0, "classes": make_classes(), "msrs": {"10": "5"}, "refused": {},
}  # fmt: skip


def event(guest: str = "vm0", name: str = EVENT, **data: Any) -> AgentEvent:
    return AgentEvent(n=1, t_ns=0, name=name, at_ns=7, data={"guest": guest, **GOOD, **data})


def test_states_of_one_guest_are_taken_in_order() -> None:
    events = [event(), event("vm1"), event(name="paused"), event(moment="after")]
    found = collect_vcpus(events, "vm0", 1)
    assert [row.moment for row in found] == ["before", "after"]
    assert found[0].at_ns == 7 and found[0].msrs == {"10": "5"}


@pytest.mark.parametrize(
    "data",
    [
        {"moment": "now"},
        {"vcpu": -1},
        {"vcpu": VCPUS_MAX},
        {"classes": {"regs": "0"}},
        {"classes": {"regs": "zz"}},
        {"classes": {"regs": "00" * (1 << 17)}},
        {"classes": {str(number): "00" for number in range(99)}},
        {"msrs": {"10": "-1"}},
        {"msrs": {"10": "1" * 17}},
        {"refused": {"regs": 5}},
        {"classes": None, "error": "no such process"},
    ],
)
def test_state_that_follows_no_protocol_is_left_out(data: dict[str, Any]) -> None:
    assert collect_vcpus([event(**data)], "vm0", 1) == ()


def test_no_more_states_are_kept_than_a_guest_can_have() -> None:
    assert len(collect_vcpus([event()] * 9, "vm0", 2)) == 5


def test_what_an_agent_could_not_do_is_said_for_its_guest() -> None:
    events = [
        event(error="EPERM " + 1000 * "x"),
        event("vm1", error="no"),
        event(name="clock-carried", error="late"),
        event(name="clock-carried", ahead_ns=5),
        event(name="paused", error="odd"),
        event(error=5),
    ]
    first, second = find_errors(events, "vm0")
    assert first.startswith("the registers of its vCPUs cannot be read: EPERM ")
    assert len(first) < 400
    assert second == "its clock could not be carried over the blackout: late"
