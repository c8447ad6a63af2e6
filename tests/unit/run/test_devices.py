# SPDX-License-Identifier: Apache-2.0
"""A device through a hop: events and accounts become facts, and facts survive the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from liveupdate.core.errors import LostMachine
from liveupdate.core.steps import StepEvent, Steps
from liveupdate.evidence import RunDir
from liveupdate.model import slots
from liveupdate.model.evidence import DeviceFacts, FrameSent, Landed
from liveupdate.model.scenario import DeviceSpec
from liveupdate.probes.frames import FrameSender
from liveupdate.run.devices import DeviceHop, stop_devices
from liveupdate.run.testbed import Testbed
from liveupdate.transport.agent_link import AgentEvent
from tests.support import evidence_builder as make
from tests.support.device_evidence import account, make_facts, make_frames

ACCOUNT = {
    "received": 3, "missing": 0, "duplicate": 0, "reordered": 0, "damaged": 0, "foreign": 0,
    "first": 0, "expected": 3, "gaps": [],
}  # fmt: skip
LANDED = {"found": 2, "first": 3, "last": 4, "is_full": False, "keep": "incoming", "command": 7}


def event(name: str, at_ns: int, **data: object) -> AgentEvent:
    fields = {"device": "nic0", **data}
    return AgentEvent(name=name, n=1, boot=1, at_ns=at_ns, t_ns=0, data=fields)


class FakeSender:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def resume(self) -> None:
        self.calls.append("resume")

    def pause(self) -> int:
        self.calls.append("pause")
        return 3

    def take(self) -> tuple[FrameSent, ...]:
        return (FrameSent(0, 1, 2),)


class FakeBed:
    """As much of a testbed as a device's hop asks for."""

    def __init__(self, *events: AgentEvent, error: str | None = None) -> None:
        self.status = {
            "bdf": "0000:01:00.0",
            "driver": "vfio-pci",
            "keep": "adopted",
            "error": error,
            "account": ACCOUNT,
        }
        self.plan = replace(make.make_plan(), devices=(DeviceSpec(name="nic0"),))
        self.host = SimpleNamespace(
            agent=SimpleNamespace(mark=lambda: 0, events=lambda since: events)
        )
        self.frames: list[FrameSent] = []
        self.facts: list[DeviceFacts] = []
        self.record = SimpleNamespace(
            add=lambda slot, frames, hop, name: self.frames.extend(frames),
            put=lambda slot, facts, hop, name: self.facts.append(facts),
        )

    def call(self, name: str, timeout_s: float = 0) -> Mapping[str, object]:
        assert name == "device_status"
        return {"nic0": self.status}


def walk(bed: FakeBed, sender: FakeSender | None = None) -> DeviceFacts:
    senders = {"nic0": cast(FrameSender, sender or FakeSender())}
    hop = DeviceHop(cast(Testbed, bed), 1, senders, Steps())
    hop.begin()
    hop.end()
    hop.store()
    assert len(bed.facts) == 1
    return bed.facts[0]


def test_events_of_a_hop_become_facts() -> None:
    sender = FakeSender()
    bed = FakeBed(
        event("device-frozen", 10, account=ACCOUNT),
        event("device-landed", 20, **LANDED),
        event("device-adopted", 30, keep="adopted"),
        event("device-landed", 25, device="other", **LANDED),
    )
    facts = walk(bed, sender)
    assert facts.frozen == facts.before == facts.after == account(3)
    assert (facts.frozen_ns, facts.adopted_ns, facts.keep) == (10, 30, "adopted")
    assert facts.landed == Landed(
        host_ns=20, found=2, first=3, last=4, is_full=False, keep="incoming", command=7
    )
    assert facts.error is None
    assert bed.frames == [FrameSent(0, 1, 2)]
    assert sender.calls == ["resume", "pause", "pause"]


def test_failure_of_the_device_is_a_fact() -> None:
    facts = walk(FakeBed(event("device-failed", 5, message="was reset"), error="was reset"))
    assert (facts.error, facts.landed, facts.adopted_ns) == ("was reset", None, None)


def test_garbled_event_is_no_evidence() -> None:
    bed = FakeBed(event("device-landed", 20, **{**LANDED, "found": "many"}))
    hop = DeviceHop(cast(Testbed, bed), 1, {"nic0": cast(FrameSender, FakeSender())}, Steps())
    hop.begin()
    hop.store()
    assert bed.facts == []


def test_hop_that_never_began_leaves_no_facts() -> None:
    bed = FakeBed()
    hop = DeviceHop(cast(Testbed, bed), 1, {"nic0": cast(FrameSender, FakeSender())}, Steps())
    hop.store()
    assert bed.facts == []
    assert bed.frames


def test_machine_that_is_gone_gives_nothing_back_and_that_is_said() -> None:
    def call(name: str, timeout_s: float = 0) -> Mapping[str, object]:
        raise LostMachine("gone", how="exited")

    said: list[StepEvent] = []
    steps = Steps()
    steps.subscribe(said.append)
    plan = replace(make.make_plan(), devices=(DeviceSpec(name="nic0"),))
    bed = SimpleNamespace(plan=plan, call=call)
    stop_devices(cast(Testbed, bed), steps)
    assert said[-1].name == "devices-not-given-back"


def stored(tmp_path: Path) -> RunDir:
    record = RunDir.create(tmp_path, plan=make.make_plan(), scenario="")
    record.put(slots.DEVICE, make_facts(), 1, "nic0")
    record.add(slots.FRAMES, make_frames(), 1, "nic0")
    record.close()
    return record


def test_what_is_stored_of_a_device_is_read_back(tmp_path: Path) -> None:
    evidence = RunDir.open(stored(tmp_path).path).load_evidence()
    trace = evidence.hops[0].devices["nic0"]
    assert trace.facts == make_facts()
    assert trace.frames == make_frames()
    assert {artifact.path for artifact in trace.artifacts} == {
        slots.DEVICE.path(1, "nic0"),
        slots.FRAMES.path(1, "nic0"),
    }
    assert replace(evidence, hops=()).unreadable == {}


@pytest.mark.parametrize("path", [slots.DEVICE.path(1, "nic0"), slots.FRAMES.path(1, "nic0")])
def test_one_altered_byte_is_noticed(tmp_path: Path, path: str) -> None:
    record = stored(tmp_path)
    file = record.path / path
    raw = file.read_bytes()
    at = raw.rindex(b"1")
    file.write_bytes(raw[:at] + b"2" + raw[at + 1 :])
    assert path in RunDir.open(record.path).load_evidence().unreadable
