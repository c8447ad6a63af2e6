# SPDX-License-Identifier: Apache-2.0
"""device.dma-continuity is green for one thing only, and red for everything else."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from liveupdate.formats import qemu_trace
from liveupdate.formats.pci_config import COMMAND
from liveupdate.judging.judge import judge
from liveupdate.model import slots
from liveupdate.model.evidence import (
    DeviceFacts,
    DeviceTrace,
    Evidence,
    FrameAccount,
    FrameSent,
    Incident,
    IommuEvidence,
)
from liveupdate.model.iommu_samples import DeviceEvent, UnitSample
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import DeviceSpec
from liveupdate.model.verdict import Check, Metric, Outcome
from liveupdate.report.text import render_text
from tests.support import evidence_builder as make
from tests.support.device_evidence import FROZEN, LANDED, account, make_facts, make_frames
from tests.support.evidence_builder import MS, SECOND

CHECK = "device.dma-continuity"
SKIPS = tuple(item for item in make.make_plan().skips if item[0] != CHECK)


def make_plan(hops: int = 1) -> Plan:
    plan = make.make_plan(hops=hops, skips=SKIPS)
    return replace(plan, devices=(DeviceSpec(name="nic0", rate=100),))


def make_evidence(hops: int = 1) -> Evidence:
    evidence = make.make_evidence(hops=hops)
    for hop in range(1, hops + 1):
        trace = DeviceTrace(facts=make_facts(hop), frames=make_frames(hop))
        evidence = make.with_hop(evidence, hop, devices={"nic0": trace})
    return evidence


def spoil(facts: DeviceFacts | None = None, frames: tuple[FrameSent, ...] | None = None) -> Check:
    """Judge one hop with other facts or other frames."""
    trace = DeviceTrace(
        facts=facts or make_facts(), frames=make_frames() if frames is None else frames
    )
    return check_of(make.with_hop(make_evidence(), devices={"nic0": trace}))


def check_of(evidence: Evidence, plan: Plan | None = None) -> Check:
    verdict = judge(plan or make_plan(), evidence)
    return next(check for check in verdict.checks if check.id == CHECK)


def test_all_frames_received_is_a_pass_with_its_numbers() -> None:
    check = check_of(make_evidence())
    assert check.status is Outcome.PASS
    assert "800 frames sent, 800 received" in check.reason
    assert "400 of them landed during the blackout" in check.reason
    assert judge(make_plan(), make_evidence()).outcome is Outcome.PASS


def test_every_hop_counts_its_own() -> None:
    assert check_of(make_evidence(3), make_plan(3)).status is Outcome.PASS
    lost = replace(
        make_facts(3), after=account(2398, missing=2, expected=2400, gaps=((2000, 2001),))
    )
    trace = DeviceTrace(facts=lost, frames=make_frames(3))
    check = check_of(make.with_hop(make_evidence(3), 3, devices={"nic0": trace}), make_plan(3))
    assert check.status is Outcome.FAIL
    assert "hop 3, nic0: of 800 frames 2 missing (number 2000-2001)" in check.reason


def test_without_a_device_it_is_skipped() -> None:
    plan = replace(make_plan(), devices=())
    assert check_of(make.make_evidence(), plan).status is Outcome.SKIP


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (account(795, missing=5, expected=800, gaps=((200, 204),)), "5 missing (number 200-204)"),
        (account(790), "10 missing (number 790-799)"),
        (account(800, duplicate=1), "1 received twice"),
        (account(799, missing=1, reordered=1, expected=800, gaps=((7, 7),)), "1 out of order"),
        (account(799, missing=1, damaged=1, expected=800, gaps=((9, 9),)), "1 damaged"),
    ],
)
def test_any_frame_that_is_not_right_fails(after: FrameAccount, said: str) -> None:
    check = spoil(replace(make_facts(), after=after))
    assert check.status is Outcome.FAIL
    assert said in check.reason
    assert check.evidence == (slots.DEVICE.path(1, "nic0"), slots.FRAMES.path(1, "nic0"))


# --- devices that work for their driver, and are sent nothing


def judge_own(facts: DeviceFacts) -> Check:
    trace = DeviceTrace(facts=facts, frames=())
    plan = replace(make_plan(), devices=(DeviceSpec(name="nic0", kind="nvme"),))
    return check_of(make.with_hop(make_evidence(), devices={"nic0": trace}), plan)


def test_transfers_in_flight_that_landed_are_a_pass() -> None:
    check = judge_own(make_facts())
    assert check.status is Outcome.PASS
    assert "800 transfers of its own, whole and in order; 400 in flight" in check.reason
    assert "300 came after it" in check.reason


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (account(798, damaged=2), "of 798 transfers 2 damaged"),
        (account(799, foreign=1), "1 damaged"),
        (account(799, missing=1, expected=800), "1 missing"),
        (account(800, duplicate=1), "1 twice"),
        (account(FROZEN + LANDED), "nothing was transferred after"),
    ],
)
def test_transfer_that_is_not_right_fails(after: FrameAccount, said: str) -> None:
    check = judge_own(replace(make_facts(), after=after))
    assert check.status is Outcome.FAIL
    assert said in check.reason


def test_first_to_land_need_not_be_the_oldest() -> None:
    """A controller completes its queue in any order."""
    facts = make_facts()
    assert facts.landed is not None
    assert facts.frozen is not None
    later = replace(facts.landed, first=facts.frozen.expected + 5)
    assert judge_own(replace(facts, landed=later)).status is Outcome.PASS


def test_transfer_that_did_not_land_by_itself_fails() -> None:
    landed = make_facts().landed
    assert landed is not None
    for late in (replace(landed, found=0, first=None, last=None), replace(landed, first=7)):
        check = judge_own(replace(make_facts(), landed=late))
        assert check.status is Outcome.FAIL
        assert "landed during the blackout, the first is" in check.reason


def test_device_that_does_nothing_more_says_why() -> None:
    check = judge_own(replace(make_facts(), adopted_ns=None, error="the controller is not ready"))
    assert check.status is Outcome.FAIL
    assert "DMA did not continue: the controller is not ready" in check.reason
    assert check.expected == "every transfer done"


def test_transfers_that_nobody_counted_are_an_error() -> None:
    for missing in ({"frozen": None}, {"landed": None}, {"after": None}):
        facts = replace(make_facts(), **missing)
        assert judge_own(facts).status is Outcome.ERROR


def test_account_that_lost_its_memory_fails() -> None:
    facts = replace(make_facts(2), after=account(5))
    trace = DeviceTrace(facts=facts, frames=make_frames(2))
    evidence = make.with_hop(make_evidence(2), 2, devices={"nic0": trace})
    check = check_of(evidence, make_plan(2))
    assert check.status is Outcome.FAIL
    assert "ran backwards" in check.reason


def test_frames_that_came_only_after_the_blackout_fail() -> None:
    landed = make_facts().landed
    assert landed is not None
    for late in (
        replace(landed, found=0, first=None, last=None),
        replace(landed, found=150, last=FROZEN + 149),
    ):
        check = spoil(replace(make_facts(), landed=late))
        assert check.status is Outcome.FAIL
        assert "had not landed" in check.reason


def lose(first: int, last: int, *, ring: int = 401, refused: range = range(0)) -> Check:
    """Judge a hop in which frames are missing, with a ring that is full at frame 500."""
    landed = make_facts().landed
    assert landed is not None
    missing = last + 1 - first
    facts = replace(
        make_facts(),
        landed=replace(landed, is_full=True),
        after=account(800 - missing, missing=missing, expected=800, gaps=((first, last),)),
    )
    frames = tuple(
        replace(frame, sent_ns=None) if frame.number in refused else frame
        for frame in make_frames()
    )
    trace = DeviceTrace(facts=facts, frames=frames)
    plan = replace(make_plan(), devices=(DeviceSpec(name="nic0", rate=100, ring=ring),))
    return check_of(make.with_hop(make_evidence(), devices={"nic0": trace}), plan)


def test_ring_that_was_too_small_is_an_error_that_says_what_to_do() -> None:
    check = lose(500, 503)
    assert check.status is Outcome.ERROR
    assert "the ring of 401 was full" in check.reason
    assert "set the device's 'rate' below 49" in check.reason


def test_frames_that_the_wire_did_not_take_are_an_error() -> None:
    check = lose(500, 620, refused=range(500, 621))
    assert check.status is Outcome.ERROR
    assert "121 were never taken by the wire" in check.reason


@pytest.mark.parametrize(
    ("first", "last", "ring", "refused"),
    [
        (499, 503, 401, range(0)),
        (500, 503, 4096, range(0)),
        (500, 510, 401, range(0)),
        (700, 700, 401, range(500, 600)),
    ],
    ids=["ring-had-room", "ring-is-larger", "driver-was-back", "another-was-refused"],
)
def test_frame_that_was_on_the_wire_fails_whatever_else_was_wrong(
    first: int, last: int, ring: int, refused: range
) -> None:
    assert lose(first, last, ring=ring, refused=refused).status is Outcome.FAIL


def test_holes_in_what_landed_fail() -> None:
    landed = make_facts().landed
    assert landed is not None
    assert spoil(replace(make_facts(), landed=replace(landed, found=399))).status is Outcome.FAIL


def test_device_that_was_not_adopted_fails_and_says_why() -> None:
    facts = replace(
        make_facts(), adopted_ns=None, keep=None, after=None, error="was reset", not_kept="too old"
    )
    check = spoil(facts)
    assert check.status is Outcome.FAIL
    assert "was reset" in check.reason
    assert "too old" in check.reason
    assert spoil(replace(make_facts(), adopted_ns=None)).status is Outcome.FAIL


def test_what_stopped_the_dma_is_named_in_order_of_time() -> None:
    facts = replace(make_facts(), adopted_ns=None, after=None, error="was reset")
    assert facts.frozen_ns is not None
    at = facts.frozen_ns
    seen = IommuEvidence(
        events=(
            DeviceEvent(at - SECOND, qemu_trace.CONFIG_WRITE, facts.bdf, COMMAND, 0x3, "igb"),
            DeviceEvent(at + 50 * MS, qemu_trace.CONFIG_WRITE, "0000:00:01.0", COMMAND, 0x3, ""),
            DeviceEvent(at + 100 * MS, qemu_trace.CONFIG_WRITE, facts.bdf, COMMAND, 0x3, "igb"),
        ),
        samples=(
            UnitSample(at + 200 * MS, 0xC7000000, 0, 0, ""),
            UnitSample(at + 300 * MS, 0x47000000, 0, 0, ""),
        ),
    )
    trace = DeviceTrace(facts=facts, frames=make_frames())
    check = check_of(make.with_hop(make_evidence(), devices={"nic0": trace}, iommu=seen))
    assert check.status is Outcome.FAIL
    assert (
        "bus mastering went off 100 ms after the last look, translation went off 300 ms after"
        in check.reason
    )


@pytest.mark.parametrize("field", ["before", "after", "landed", "frozen", "frozen_ns"])
def test_missing_fact_is_an_error(field: str) -> None:
    check = spoil(replace(make_facts(), **{field: None}))
    assert check.status is Outcome.ERROR


def test_missing_trace_facts_or_frames_are_errors() -> None:
    assert check_of(make.make_evidence()).status is Outcome.ERROR
    nothing = DeviceTrace(facts=None, frames=make_frames())
    evidence = make.with_hop(make_evidence(), devices={"nic0": nothing})
    assert check_of(evidence).status is Outcome.ERROR
    assert spoil(frames=()).status is Outcome.ERROR
    assert spoil(frames=make_frames()[1:]).status is Outcome.ERROR
    assert spoil(frames=make_frames()[:50] + make_frames()[51:]).status is Outcome.ERROR


def test_no_frame_in_the_blackout_proves_nothing() -> None:
    facts = make_facts()
    assert facts.frozen_ns is not None
    assert facts.landed is not None
    short = replace(facts.landed, host_ns=facts.frozen_ns + MS)
    assert spoil(replace(facts, landed=short)).status is Outcome.ERROR


def rest(**changes: object) -> Check:
    """Judge one hop of a device of tier quiesce, which nobody could count through the blackout."""
    plan = replace(make_plan(), devices=(DeviceSpec(name="nic0", tier="quiesce"),))
    facts = replace(replace(make_facts(), landed=None, keep=None), **changes)
    trace = DeviceTrace(facts=facts, frames=make_frames())
    return check_of(make.with_hop(make_evidence(), devices={"nic0": trace}), plan)


def test_device_that_rests_on_purpose_is_a_skip_that_says_for_how_long() -> None:
    check = rest()
    assert check.status is Outcome.SKIP
    assert "stopped DMA on purpose for 4.05 s; 700 received since" in check.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"error": "no such group"}, "did not start it again: no such group"),
        ({"adopted_ns": None}, "did not start it again"),
        ({"after": account(FROZEN)}, "nothing was received after the update"),
    ],
    ids=["failed", "silent", "dead"],
)
def test_device_that_does_not_come_back_fails(changes: dict[str, object], said: str) -> None:
    check = rest(**changes)
    assert check.status is Outcome.FAIL
    assert said in check.reason


@pytest.mark.parametrize("field", ["frozen", "frozen_ns", "after"])
def test_missing_fact_of_a_device_that_rests_is_an_error(field: str) -> None:
    assert rest(**{field: None}).status is Outcome.ERROR


@pytest.mark.parametrize("path", [slots.DEVICE.path(1, "nic0"), slots.FRAMES.path(1, "nic0")])
def test_unreadable_evidence_is_an_error(path: str) -> None:
    evidence = replace(make_evidence(), unreadable={path: "altered"})
    check = check_of(evidence)
    assert check.status is Outcome.ERROR
    assert path in check.reason


def test_rolled_back_update_asks_for_no_continuity() -> None:
    incident = Incident(kind="freeze-refused", hop=1, text="refused")
    evidence = replace(make_evidence(), rolled_back=True, incidents=(incident,))
    assert check_of(evidence).status is Outcome.SKIP


def test_report_says_what_was_counted() -> None:
    plan, evidence = make_plan(), make_evidence()
    verdict = judge(plan, evidence)
    assert "nic0: frames: 800 sent, 800 received, 400 landed" in render_text(
        plan, evidence, verdict
    )
    metric = Metric(
        name="frames.landed", value=400.0, unit="frames", labels={"hop": "1", "device": "nic0"}
    )
    assert metric in verdict.metrics
