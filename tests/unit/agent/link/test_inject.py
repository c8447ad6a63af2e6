# SPDX-License-Identifier: Apache-2.0
"""The agent's part of a fault: what is asked for, and what it is done to."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from liveupdate.agent.base.names import CallError
from liveupdate.agent.link import inject as module
from liveupdate.agent.link.inject import inject
from liveupdate.agent.link.main import Agent

FAULTS = Path(__file__).parents[4] / "liveupdate" / "faults"


#: above every pid_max
NO_PID = 1 << 23


def make_agent() -> Agent:
    """An agent with a guest and a device, which note what is done to them."""
    done: list[str] = []
    told: list[dict[str, object]] = []
    vmm = SimpleNamespace(
        pid=NO_PID,
        kill=lambda: done.append("kill"),
        reset=lambda: done.append("reset"),
        query_status=lambda: "running",
        wait_reset=lambda: "RESET",
    )
    guest = SimpleNamespace(
        vmm=vmm,
        faults=[],
        spec=SimpleNamespace(pages=8),
        tell=lambda event, **data: tell(event, data),
    )

    def tell(event: str, data: dict[str, object]) -> None:
        assert event == "struck"
        told.append(data)

    device = SimpleNamespace(
        spec=SimpleNamespace(fault=""),
        map_unpreserved=lambda: done.append("map"),
        release_page=lambda: done.append("release"),
    )
    mechanism = SimpleNamespace(
        mislead=lambda: done.append("mislead"), next_words=lambda: f"word={len(done)}"
    )
    handover = SimpleNamespace(faults=[], devices={"nic0": device}, open=lambda: mechanism)
    agent = SimpleNamespace(
        guests={"vm0": guest}, handover=handover, done=done, told=told, emit=tell
    )
    return cast(Agent, agent)


def test_every_request_of_a_fault_is_known_to_the_agent() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FAULTS.glob("*.py"))
    asked = set(re.findall(r'ask_agent\(\s*bed,\s*"([a-z-]+)"', text))
    assert len(asked) > 8
    assert asked <= set(module._FAULTS)


@pytest.mark.parametrize(
    ("request_", "done"),
    [
        ({"fault": "reset-guest", "args": {"guest": "vm0"}}, ["reset"]),
        ({"fault": "kill-vmm", "guest": "vm0"}, ["kill"]),
        ({"fault": "map-unpreserved", "args": {"device": "nic0"}}, ["map"]),
        ({"fault": "release-page", "args": {"device": "nic0"}}, ["release"]),
        ({"fault": "wrong-pointer"}, ["mislead"]),
    ],
)
def test_what_is_done_at_once_or_after_the_reply(
    request_: dict[str, object], done: list[str]
) -> None:
    agent = make_agent()
    after = inject(agent, request_)
    if after is not None:
        assert agent.done == []  # type: ignore[attr-defined]
        after()
    assert agent.done == done  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"fault": "reset-guest", "guest": "vm0"}, ("its VMM's monitor", "running", "RESET")),
        ({"fault": "kill-vmm", "guest": "vm0"}, (f"process {NO_PID}", "gone", "gone")),
        (
            {"fault": "wrong-pointer"},
            ("words for the incoming kernel's command line", "word=0", "word=1"),
        ),
    ],
)
def test_what_was_struck_is_told_as_it_was_read_before_and_after(
    request_: dict[str, object], told: tuple[str, str, str]
) -> None:
    agent = make_agent()
    after = inject(agent, request_)
    if after is not None:
        after()
    (report,) = agent.told  # type: ignore[attr-defined]
    assert report["fault"] == request_["fault"]
    assert (report["where"], report["before"], report["after"]) == told


def test_what_comes_later_is_noted_with_its_details() -> None:
    agent = make_agent()
    for request in (
        {"fault": "refuse-state", "args": {"guest": "vm0"}},
        {"fault": "move-page", "args": {"guest": "vm0", "page": 7}},
        {"fault": "kill-vmm", "guest": "vm0", "when": "resumed"},
        {"fault": "reset-device", "args": {"device": "nic0"}},
    ):
        assert inject(agent, dict(request)) is None
    assert agent.handover.faults == [{"fault": "refuse-state", "guest": "vm0"}]
    assert agent.guests["vm0"].faults == [
        {"fault": "move-page", "guest": "vm0", "page": 7},
        {"fault": "kill-vmm", "guest": "vm0", "when": "resumed"},
    ]
    assert agent.handover.devices["nic0"].spec.fault == "reset-device"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"fault": "no-such"}, "no fault 'no-such'"),
        ({"fault": "spin", "args": 3}, "must be an object"),
        ({"fault": "close-session", "args": {"guest": "vm9"}}, "no guest 'vm9'"),
        ({"fault": "move-page", "args": {"guest": "vm0", "page": 8}}, "must be below 8"),
        ({"fault": "reset-device", "args": {"device": "nic9"}}, "no device 'nic9'"),
    ],
)
def test_request_that_makes_no_sense_is_refused(request_: dict[str, object], said: str) -> None:
    with pytest.raises(CallError, match=said):
        inject(make_agent(), request_)
