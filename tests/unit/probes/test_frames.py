# SPDX-License-Identifier: Apache-2.0
"""The frame sender: every number once, on schedule, and the truth about what the wire took."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.formats.frames import FRAME_BYTES, build_frame
from liveupdate.probes.frames import PATIENCE_S, FrameSender


class FakeWire:
    """Takes what it is told to take."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.patience: list[float] = []
        self.is_stuck = False

    def send_within(self, frame: bytes, patience_s: float) -> int | None:
        self.patience.append(patience_s)
        if self.is_stuck:
            return None
        self.frames.append(frame)
        return time.monotonic_ns()


def build(number: int) -> bytes:
    return number.to_bytes(8, "little")


def wait_for(done: Callable[[], bool]) -> None:
    """Other work on the machine may keep the sender's thread waiting."""
    wait_until(lambda: done() or None, Deadline.after(10.0, "the sender"), interval_s=0.002)


def test_every_number_goes_out_once_and_in_order() -> None:
    wire = FakeWire()
    with FrameSender("nic0", wire.send_within, build, 1000) as sender:
        sender.resume()
        wait_for(lambda: sender.next_number > 10)
        first = sender.pause()
        time.sleep(0.05)
        assert sender.next_number == first  # a pause is one
        sender.resume()
        wait_for(lambda: sender.next_number > first)
        last = sender.pause()
        sent = sender.take()
    assert 0 < first < last
    assert [frame.number for frame in sent] == list(range(last))
    assert wire.frames == [build(number) for number in range(last)]
    assert all(frame.sent_ns is not None and frame.sent_ns >= frame.due_ns for frame in sent)
    assert sender.take() == ()
    assert sender.error is None


def test_schedule_does_not_drift() -> None:
    with FrameSender("nic0", FakeWire().send_within, build, 500) as sender:
        sender.resume()
        wait_for(lambda: sender.next_number > 10)
        sender.pause()
        sent = sender.take()
    steps = {after.due_ns - before.due_ns for before, after in pairwise(sent)}
    assert steps == {2_000_000}


def test_stuck_wire_is_waited_for_once_and_its_frames_are_not_said_to_be_sent() -> None:
    wire = FakeWire()
    wire.is_stuck = True
    with FrameSender("nic0", wire.send_within, build, 1000) as sender:
        sender.resume()
        wait_for(lambda: len(wire.patience) > 2)
        wire.is_stuck = False
        wait_for(lambda: len(wire.frames) > 2)
        sender.pause()
        sent = sender.take()
    assert sent[0].sent_ns is None
    assert sent[-1].sent_ns is not None
    assert wire.patience[:2] == [PATIENCE_S, 0.0]
    assert wire.patience[-1] == PATIENCE_S


def test_lost_frames_are_noted_as_sent() -> None:
    wire = FakeWire()
    with FrameSender("nic0", wire.send_within, build, 1000) as sender:
        sender.lost = frozenset({3, 4})
        sender.resume()
        while sender.next_number < 8:
            time.sleep(0.005)
        sender.pause()
        sent = sender.take()
    assert all(frame.sent_ns is not None for frame in sent)
    assert build(3) not in wire.frames
    assert len(wire.frames) == len(sent) - 2
    assert sender.dropped == tuple(frame for frame in sent if frame.number in (3, 4))


def test_failure_is_kept_and_a_pause_still_returns() -> None:
    def fail(number: int) -> bytes:
        raise ValueError("no frame")

    with FrameSender("nic0", FakeWire().send_within, fail, 1000) as sender:
        sender.resume()
        wait_for(lambda: sender.error is not None)
        sender.pause()
    assert isinstance(sender.error, ValueError)


def test_frame_has_its_size_and_refuses_a_bad_address() -> None:
    macs = {"destination": "52:54:00:40:00:00", "source": "52:54:00:30:00:01"}
    frame = build_frame(**macs, stream=1, number=2)
    assert len(frame) == FRAME_BYTES
    assert frame[:6].hex(":") == macs["destination"]
    assert frame[12:14] == b"\x88\xb5"
    with pytest.raises(ValueError, match="hex"):
        build_frame(destination="x", source="y", stream=1, number=2)
