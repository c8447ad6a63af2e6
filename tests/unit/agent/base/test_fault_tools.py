# SPDX-License-Identifier: Apache-2.0
"""Memory and CPUs that fail on request."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from liveupdate.agent.base import fault_tools
from liveupdate.agent.base.fault_tools import process_state, report, spin


def test_report_is_text() -> None:
    told = report("f", "what", "where", 3, None)
    assert told == {
        "fault": "f", "what": "what", "where": "where", "before": "3", "after": "None",
    }  # fmt: skip


def test_state_of_a_process_is_a_letter_or_gone() -> None:
    assert process_state(os.getpid()) == "R"
    assert process_state(1 << 23) == "gone"


class Spinning(Exception):
    """Raised in the place of a loop without end."""


def test_host_that_is_to_hang_tells_how_its_loops_are_scheduled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies: dict[int, int] = {}
    pinned: list[tuple[int, set[int]]] = []
    child = os.posix_spawn("/bin/sleep", ["sleep", "60"], dict(os.environ))
    monkeypatch.setattr(fault_tools, "write_text", lambda *what: None)
    monkeypatch.setattr(fault_tools, "_spin_child", lambda cpu: child)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda *what: pinned.append(what))
    monkeypatch.setattr(
        os, "sched_setscheduler", lambda pid, policy, param: policies.update({pid: policy})
    )
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: policies.get(pid, os.SCHED_OTHER))

    def tell(told: dict[str, Any]) -> None:
        assert told["where"] == "CPU 4, CPU 5"
        assert told["before"] == "SCHED_OTHER, SCHED_OTHER"
        assert told["after"] == "SCHED_FIFO, SCHED_FIFO"
        raise Spinning

    try:
        with pytest.raises(Spinning):
            spin("spin-at-jump", tell)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert pinned == [(0, {4})] and set(policies) == {0, child}


def test_child_that_spins_is_pinned_to_its_cpu() -> None:
    cpu = max(os.sched_getaffinity(0))
    pid = fault_tools._spin_child(cpu)
    try:
        until = time.monotonic() + 10
        while os.sched_getaffinity(pid) != {cpu} and time.monotonic() < until:
            time.sleep(0.01)
        assert os.sched_getaffinity(pid) == {cpu}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
