# SPDX-License-Identifier: Apache-2.0
"""What a strike returns was read before and read back, and is nothing when nothing was seen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from liveupdate.faults.base import ask_agent
from liveupdate.faults.lab import read_state
from liveupdate.faults.table import FAULTS
from liveupdate.formats import tickpage
from liveupdate.model.evidence import Struck
from liveupdate.run.testbed import Testbed
from liveupdate.transport.agent_link import AgentEvent

TOLD = {"fault": "kill-vmm", "what": "the VMM", "where": "process 9", "before": "S", "after": "Z"}


class Agent:
    """An agent with events of its own choice."""

    def __init__(self) -> None:
        self.log: list[AgentEvent] = []

    def mark(self) -> int:
        return len(self.log)

    def events(self, since: int) -> list[AgentEvent]:
        return self.log[since:]

    def say(self, name: str, **data: object) -> None:
        self.log.append(AgentEvent(name=name, n=1, t_ns=0, data=data, at_ns=77))


def test_agent_reports_what_it_struck_later() -> None:
    agent = Agent()
    agent.say("struck", **TOLD)  # of an earlier time
    bed = SimpleNamespace(host=SimpleNamespace(agent=agent), call=lambda *args, **more: {})
    later = ask_agent(cast(Testbed, bed), "kill-vmm", guest="vm0")
    assert later() is None
    agent.say("resumed", guest="vm0")
    agent.say("struck", **{**TOLD, "fault": "move-page"})
    assert later() is None
    agent.say("struck", **TOLD)
    assert later() == Struck(
        what="the VMM", where="process 9", before="S", after="Z", at_ns=77, view="inside"
    )


@pytest.mark.parametrize("missing", ["what", "where", "before", "after"])
def test_report_without_a_part_is_none(missing: str) -> None:
    agent = Agent()
    bed = SimpleNamespace(host=SimpleNamespace(agent=agent), call=lambda *args, **more: {})
    later = ask_agent(cast(Testbed, bed), "kill-vmm")
    agent.say("struck", **{**TOLD, missing: None})
    assert later() is None


def test_state_of_a_process_is_read_past_its_name() -> None:
    assert read_state(b"12 (a) b) S 1 2 3\n") == "S"
    assert read_state(Path("/proc/self/stat").read_bytes()) == "R"
    assert read_state(b"") == "gone"


class Ticking:
    """A testbed with a guest whose tick page is read."""

    def __init__(self) -> None:
        self.seq, self.ahead_ns, self.stopped = 10, 0, False
        self.machine = object()
        self.first_guest = SimpleNamespace(spec=SimpleNamespace(name="vm0"))

    def call(self, name: str, args: dict[str, dict[str, str]], *, timeout_s: float) -> None:
        command = args["command"]
        self.stopped |= command["cmd"] == "dead-timer"
        self.ahead_ns += int(command.get("ns", 0))

    def read_tick_page(self, guest: object) -> bytes:
        self.seq += not self.stopped
        return tickpage.encode_tick(
            tickpage.TickPage(
                lock=0, boot=1, seq=self.seq, tsc=1, monotonic_ns=5, boottime_ns=5,
                realtime_ns=5 + self.ahead_ns, seed=0, pattern_pages=0, pattern_bad=0,
                journal_seq=0, echo_count=0,
            )
        )  # fmt: skip


def strike(name: str, bed: Ticking) -> Struck:
    function = FAULTS[name].strike
    assert function is not None
    done = function(cast(Testbed, bed))
    assert isinstance(done, Struck)
    return done


def test_timers_that_stop_are_seen_to_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liveupdate.faults.guest.STILL_S", 0.01)
    done = strike("guest-dead-timer", Ticking())
    assert (done.before, done.after) == ("tick 11, then 12", "tick 12, the same 0.01 s later")


def test_clock_is_seen_before_and_after_its_step() -> None:
    done = strike("clock-jump", Ticking())
    assert (done.before, done.after) == ("0 ns", "30000000000 ns")
