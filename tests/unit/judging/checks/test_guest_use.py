# SPDX-License-Identifier: Apache-2.0
"""A guest's own devices: they stop, are used again, what is on a disk is whole; it sleeps."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from liveupdate.judging.judge import judge
from liveupdate.model import codec, slots
from liveupdate.model.evidence import DeviceFacts, DeviceTrace, Evidence, Incident
from liveupdate.model.guest_device_use import GuestUse, JournalFacts
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import DeviceSpec
from liveupdate.model.verdict import Check, Outcome
from liveupdate.report.text import render_text
from tests.support import evidence_builder as make
from tests.support.evidence_builder import MS, SECOND

CONTINUITY, STORAGE, CLOCK = "device.dma-continuity", "guest.storage", "guest.clock"
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
        "disk0": trace(DISK, replace(journals, **disk or {})),
        "nic0": trace(NIC, replace(USE, **nic)),
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
    path = slots.DEVICE.path(1, "disk0")
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


# --- clocks over a sleep

#: a guest's clocks stand still over the whole pause of the evidence builder
PAUSE_NS = make.RESUMED_NS - make.PAUSED_NS
COUNT_SLEEP = ("boottime_ns", "realtime_ns")


def wake(evidence: Evidence, gain_ns: int, clocks: tuple[str, ...] = COUNT_SLEEP) -> Evidence:
    """Have these clocks count the whole pause and ``gain_ns`` more."""
    ticks = tuple(
        replace(tick, **{clock: getattr(tick, clock) + PAUSE_NS + gain_ns for clock in clocks})
        if tick.host_ns > BASE + make.RESUMED_NS
        else tick
        for tick in make.make_ticks()
    )
    return make.with_trace(evidence, ticks=ticks)


def awake_evidence() -> Evidence:
    """Evidence of a guest whose VMM never said that it sleeps."""
    return make_evidence({"asleep_ns": None}, asleep_ns=None)


@pytest.mark.parametrize("gain_ms", [113, 999, -113, -999])
def test_clocks_of_a_guest_that_slept_may_be_off_by_a_second_of_the_rtc(gain_ms: int) -> None:
    check = check_of(CLOCK, wake(make_evidence(), gain_ms * MS))
    assert check.status is Outcome.PASS
    named = [clock for clock in ("monotonic", "boottime", "realtime") if said_rtc(check, clock)]
    assert named == (["boottime", "realtime"] if gain_ms > 0 else [])


def said_rtc(check: Check, clock: str) -> bool:
    (part,) = [each for each in check.reason.split("; ") if f"{clock} step" in each]
    return "it slept, and its host's clock comes from an RTC that counts seconds" in part


def test_clocks_of_a_guest_that_slept_may_gain_no_more_than_that() -> None:
    check = check_of(CLOCK, wake(make_evidence(), 1500 * MS))
    assert check.status is Outcome.FAIL
    assert "boottime clock jumped forward: +1.50 s" in check.reason
    assert "realtime clock jumped forward: +1.50 s" in check.reason
    assert check.expected.endswith("and +1.00 s")


@pytest.mark.parametrize("clock", COUNT_SLEEP)
def test_either_clock_that_counts_sleep_is_judged(clock: str) -> None:
    check = check_of(CLOCK, wake(make_evidence(), 1500 * MS, (clock,)))
    assert check.status is Outcome.FAIL
    assert f"{clock.removesuffix('_ns')} clock jumped forward" in check.reason


def test_clocks_of_a_guest_that_slept_may_lose_no_more_than_the_blackout() -> None:
    """The kernel adds what it slept or nothing, so no second is allowed downwards."""
    check = check_of(CLOCK, wake(make_evidence(), -PAUSE_NS - 500 * MS, ("boottime_ns",)))
    assert check.status is Outcome.FAIL
    assert "boottime clock went back" in check.reason


def test_monotonic_clock_does_not_count_sleep_and_gains_nothing() -> None:
    check = check_of(CLOCK, wake(make_evidence(), 113 * MS, ("monotonic_ns",)))
    assert check.status is Outcome.FAIL
    assert "monotonic clock jumped forward: +113 ms" in check.reason


def test_clocks_of_a_guest_that_was_not_asleep_gain_nothing() -> None:
    check = check_of(CLOCK, wake(awake_evidence(), 113 * MS))
    assert check.status is Outcome.FAIL
    assert "boottime clock jumped forward: +113 ms" in check.reason
    assert check.expected.endswith("and 0")


def test_clocks_of_a_guest_beside_one_that_slept_gain_nothing() -> None:
    plan = replace(make_plan(), devices=tuple(replace(d, guest="vm1") for d in (DISK, NIC)))
    (check,) = [
        each for each in judge(plan, wake(make_evidence(), 113 * MS)).checks if each.id == CLOCK
    ]
    assert check.status is Outcome.FAIL


def test_gain_is_an_error_when_nothing_says_whether_the_guest_slept() -> None:
    devices = {"disk0": trace(DISK, None), "nic0": trace(NIC, None)}
    evidence = make.with_hop(make.make_evidence(), devices=devices)
    check = check_of(CLOCK, wake(evidence, 113 * MS))
    assert check.status is Outcome.ERROR
    assert "whether it slept" in check.reason
    assert check_of(CLOCK, wake(evidence, 1500 * MS)).status is Outcome.FAIL
    assert check_of(CLOCK, wake(evidence, 0)).status is Outcome.PASS


def test_gain_is_an_error_when_the_file_that_says_so_was_altered() -> None:
    path = slots.DEVICE.path(1, "disk0")
    evidence = make.with_hop(make.make_evidence(), devices={})
    check = check_of(CLOCK, replace(wake(evidence, 113 * MS), unreadable={path: "altered"}))
    assert check.status is Outcome.ERROR
    assert path in check.reason


def restart_tsc(evidence: Evidence, count: int = 0) -> Evidence:
    """Let the TSC count from a value again in the first tick after the blackout."""
    ticks = make.make_ticks()
    first = next(i for i, tick in enumerate(ticks) if tick.host_ns > BASE + make.RESUMED_NS)
    less = ticks[first].tsc - count
    late = [replace(tick, tsc=tick.tsc - less) for tick in ticks[first:]]
    return make.with_trace(evidence, ticks=(*ticks[:first], *late))


def test_tsc_of_a_guest_that_slept_may_count_from_zero_again() -> None:
    """QEMU resets a CPU when it wakes from S3, as hardware does."""
    assert check_of(CLOCK, restart_tsc(make_evidence())).status is Outcome.PASS


def test_tsc_of_a_guest_that_slept_goes_back_to_nothing_but_zero() -> None:
    ticks = make.make_ticks()
    before = max(t.tsc for t in ticks if t.host_ns < BASE + make.PAUSED_NS)
    check = check_of(CLOCK, restart_tsc(make_evidence(), before - 1))
    assert check.status is Outcome.FAIL
    assert f"the TSC went back from {before} to {before - 1}" in check.reason


def test_tsc_of_a_guest_that_was_not_asleep_never_goes_back() -> None:
    check = check_of(CLOCK, restart_tsc(awake_evidence()))
    assert check.status is Outcome.FAIL
    assert "the TSC went back" in check.reason


def test_tsc_that_went_back_is_an_error_when_nothing_says_whether_the_guest_slept() -> None:
    devices = {"disk0": trace(DISK, None), "nic0": trace(NIC, None)}
    evidence = make.with_hop(make.make_evidence(), devices=devices)
    check = check_of(CLOCK, restart_tsc(evidence))
    assert check.status is Outcome.ERROR
    assert "whether it slept" in check.reason
