# SPDX-License-Identifier: Apache-2.0
"""A guest's own devices: they stop, are used again, and what is on a disk is whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from liveupdate.judging.judge import judge
from liveupdate.model import codec, layout
from liveupdate.model.evidence import DeviceFacts, DeviceTrace, Evidence, Incident
from liveupdate.model.guest_device_use import GuestUse, JournalFacts
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import DeviceSpec
from liveupdate.model.verdict import Check, Outcome
from liveupdate.report.text import render_text
from tests.unit import evidence_builder as make
from tests.unit.evidence_builder import MS, SECOND

CONTINUITY, STORAGE = "device.dma-continuity", "guest.storage"
SKIPS = tuple(item for item in make.make_plan().skips if item[0] != CONTINUITY)
BASE = 100 * SECOND
DISK = DeviceSpec(name="disk0", kind="nvme", guest="vm0", tier="quiesce")
NIC = DeviceSpec(name="nic0", kind="igb", guest="vm0", tier="quiesce")
JOURNAL = JournalFacts(
    boot=make.BOOT, first_seq=1, last_seq=100, records=100, missing=(), corrupt=0, foreign=0
)
LATER = replace(JOURNAL, last_seq=160, records=160)
USE = GuestUse(
    guest="vm0",
    before=20,
    asleep_ns=BASE + SECOND + 300 * MS,
    awake_ns=BASE + 5 * SECOND,
    first_ns=BASE + 5 * SECOND + 100 * MS,
    after=60,
)


def make_plan() -> Plan:
    return replace(make.make_plan(skips=SKIPS), devices=(DISK, NIC))


def trace(spec: DeviceSpec, use: GuestUse | None) -> DeviceTrace:
    facts = DeviceFacts(
        device=spec.name,
        bdf="0000:01:00.0",
        before=None,
        frozen=None,
        frozen_ns=None,
        landed=None,
        adopted_ns=None,
        keep=None,
        after=None,
        use=use,
    )
    return DeviceTrace(facts=facts, frames=())


def make_evidence(disk: dict[str, object] | None = None, **nic: object) -> Evidence:
    """Evidence of one good hop, with these changes to the use of either device."""
    journals = replace(USE, journal_before=JOURNAL, journal_after=LATER)
    devices = {
        "disk0": trace(DISK, replace(journals, **disk or {})),  # type: ignore[arg-type]
        "nic0": trace(NIC, replace(USE, **nic)),  # type: ignore[arg-type]
    }
    return make.with_hop(make.make_evidence(), devices=devices)


def check_of(check_id: str, evidence: Evidence) -> Check:
    (check,) = [each for each in judge(make_plan(), evidence).checks if each.id == check_id]
    return check


def test_devices_that_stopped_and_are_used_again_are_a_skip_that_says_for_how_long() -> None:
    check = check_of(CONTINUITY, make_evidence())
    assert check.status is Outcome.SKIP
    assert "DMA stopped, as vm0 slept, until it was seen again 3.80 s later" in check.reason
    assert "60 records written since" in check.reason
    assert "60 echoes answered since" in check.reason
    assert check_of(STORAGE, make_evidence()).status is Outcome.PASS


def test_report_says_for_how_long() -> None:
    plan, evidence = make_plan(), make_evidence()
    assert "nic0: DMA stopped for 3.80 s" in render_text(plan, evidence, judge(plan, evidence))


@pytest.mark.parametrize(
    ("awake_ns", "said"),
    [(1, "is awake, but was not seen to use it again"), (None, "did not wake up")],
)
def test_device_that_is_not_used_again_fails(awake_ns: int | None, said: str) -> None:
    dead = make_evidence(first_ns=None, after=0, awake_ns=awake_ns)
    check = check_of(CONTINUITY, dead)
    assert check.status is Outcome.FAIL
    assert said in check.reason


@pytest.mark.parametrize("changes", [{"before": 0}, {"asleep_ns": None}], ids=str)
def test_use_that_was_not_seen_proves_nothing(changes: dict[str, object]) -> None:
    assert check_of(CONTINUITY, make_evidence(None, **changes)).status is Outcome.ERROR


def test_missing_use_is_an_error() -> None:
    devices = {"disk0": trace(DISK, None), "nic0": trace(NIC, None)}
    evidence = make.with_hop(make.make_evidence(), devices=devices)
    assert check_of(CONTINUITY, evidence).status is Outcome.ERROR
    assert check_of(STORAGE, evidence).status is Outcome.ERROR


def test_unreadable_use_is_an_error() -> None:
    path = layout.device(1, "disk0")
    evidence = make.with_hop(make.make_evidence(), devices={"nic0": trace(NIC, USE)})
    check = check_of(STORAGE, replace(evidence, unreadable={path: "altered"}))
    assert check.status is Outcome.ERROR
    assert path in check.reason


def test_lost_guest_explains_a_device_that_is_not_used() -> None:
    incident = Incident(kind="restore-failed", hop=1, guest="vm0", text="no VMM")
    evidence = replace(make_evidence(first_ns=None, after=0), incidents=(incident,))
    check = check_of(CONTINUITY, evidence)
    assert check.status is Outcome.SKIP
    assert "no VMM" in check.reason


def test_rolled_back_update_asks_for_no_use() -> None:
    incident = Incident(kind="freeze-refused", hop=1, text="refused")
    evidence = replace(make_evidence(), rolled_back=True, incidents=(incident,))
    assert check_of(CONTINUITY, evidence).status is Outcome.SKIP


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (replace(LATER, missing=(7,), records=159), "1 records are missing, first 7"),
        (replace(LATER, corrupt=2), "2 records are corrupt"),
        (replace(JOURNAL, last_seq=90, records=90), "record 100 was durable, the newest now is 90"),
        (replace(LATER, boot=1), "of another boot"),
    ],
    ids=["missing", "corrupt", "gone", "boot"],
)
def test_damaged_journal_on_an_own_disk_fails(after: JournalFacts, said: str) -> None:
    check = check_of(STORAGE, make_evidence({"journal_after": after}))
    assert check.status is Outcome.FAIL
    assert "disk0" in check.reason
    assert said in check.reason


def test_journal_that_was_never_scanned_is_an_error() -> None:
    for field in ("journal_before", "journal_after"):
        assert check_of(STORAGE, make_evidence({field: None})).status is Outcome.ERROR


def test_use_survives_the_disk() -> None:
    facts = trace(DISK, replace(USE, journal_before=JOURNAL)).facts
    assert codec.decode(DeviceFacts, codec.encode(facts), "device") == facts
