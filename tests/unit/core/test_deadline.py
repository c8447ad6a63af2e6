# SPDX-License-Identifier: Apache-2.0
"""The deadline of the whole bounds every wait that is begun under it."""

from __future__ import annotations

import threading

import pytest

from liveupdate.core.deadline import Deadline, check_whole, whole
from liveupdate.core.errors import DeadlineExceeded
from liveupdate.core.steps import StepEvent, Steps


def test_no_wait_is_longer_than_the_whole_and_it_says_why() -> None:
    with whole(Deadline.after(10.0, "the run")):
        short, long = Deadline.after(1.0, "a line"), Deadline.after(60.0, "a kernel")
    assert (short.what, short.timeout_s) == ("a line", 1.0)
    assert long.what == "a kernel, within the run"
    assert 5.0 < long.timeout_s <= 10.0
    assert Deadline.after(60.0, "a kernel").timeout_s == 60.0


def test_what_is_cleaned_up_after_the_time_is_up_gets_some_seconds() -> None:
    with whole(Deadline.after(0.0, "the run")):
        assert 0.0 < Deadline.after(60.0, "QEMU to end").timeout_s <= 5.0


def test_no_step_begins_when_the_time_is_up() -> None:
    steps, events = Steps(), list[StepEvent]()
    steps.subscribe(events.append)
    check_whole()
    with (
        whole(Deadline.after(0.0, "the run")),
        pytest.raises(DeadlineExceeded, match="the run"),
        steps.step("prepare"),
    ):
        raise AssertionError("the step was made")
    assert [(each.kind, each.name) for each in events] == [
        ("start", "prepare"),
        ("failed", "prepare"),
    ]


def test_threads_that_watch_are_not_bound() -> None:
    seen: list[float] = []
    with whole(Deadline.after(0.0, "the run")):
        thread = threading.Thread(target=lambda: seen.append(Deadline.after(9.0, "x").timeout_s))
        thread.start()
        thread.join()
    assert seen == [9.0]
