# SPDX-License-Identifier: Apache-2.0
"""Every check goes red when it must, and is never green without evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, structs
from msgspec.structs import replace

from liveupdate.core.units import MIB
from liveupdate.judging import judge as judging
from liveupdate.judging.context import Finding
from liveupdate.judging.judge import judge
from liveupdate.judging.table import CHECK_IDS, CHECKS
from liveupdate.model import slots
from liveupdate.model.evidence import (
    AgentPing,
    Echo,
    Evidence,
    HopEvidence,
    Incident,
    PatternFacts,
    SessionFacts,
    Struck,
    Tick,
    Watched,
)
from liveupdate.model.plan import Expected, FaultPlan, Plan
from liveupdate.model.scenario import Budget, GuestSpec, Observation
from liveupdate.model.verdict import Check, ExitCode, Outcome, Verdict
from tests.support import evidence_builder as make
from tests.support.evidence_builder import MS, SECOND

GOOD = make.make_evidence()
PLAN = make.make_plan()
BASE = 100 * SECOND


def check_of(verdict: Verdict, check_id: str) -> Check:
    return next(check for check in verdict.checks if check.id == check_id)


def status_of(verdict: Verdict, check_id: str) -> str:
    return check_of(verdict, check_id).status.value


def with_incident(evidence: Evidence, kind: str, hop: int = 1, guest: str = "") -> Evidence:
    incident = Incident(kind=kind, hop=hop, text=f"the {kind} text", guest=guest)
    return replace(evidence, incidents=(*evidence.incidents, incident))


NO_WITNESS = replace(PLAN, witnesses=(), skips=(*PLAN.skips, ("handover.generation", "no KHO")))


def without_kho(evidence: Evidence) -> Evidence:
    return make.with_after(
        evidence, kho_found=False, generation=0, luo_number=None, liveupdate=False
    )


# --- green


def test_kernel_need_not_bear_witness_to_a_handover_that_it_took_no_part_in() -> None:
    verdict = judge(NO_WITNESS, without_kho(GOOD))
    assert verdict.exit_code is ExitCode.PASS
    assert status_of(verdict, "handover.kho") == "PASS"
    assert status_of(verdict, "handover.session") == "PASS"
    assert status_of(verdict, "handover.generation") == "SKIP"
    assert status_of(judge(PLAN, without_kho(GOOD)), "handover.session") == "FAIL"


def test_evidence_that_is_not_there_is_an_error_without_kho_too() -> None:
    verdict = judge(NO_WITNESS, make.with_hop(without_kho(GOOD), memory=(), sessions=()))
    assert status_of(verdict, "handover.session") == "ERROR"
    assert status_of(verdict, "memory.content") == "ERROR"
    same_boot = make.with_after(without_kho(GOOD), boot_id="boot-0")
    assert status_of(judge(NO_WITNESS, same_boot), "handover.kho") == "FAIL"


def test_what_the_agent_refused_to_take_over_fails_and_explains_what_is_missing() -> None:
    refusal = SessionFacts(name="lu.agent", error="checksum", tokens=0, retrieve_ns=1)
    lost = make.with_hop(without_kho(GOOD), sessions=(refusal,), memory=(), guests=())
    verdict = judge(NO_WITNESS, lost)
    assert check_of(verdict, "handover.session").reason == "hop 1: nothing was taken over: checksum"
    assert status_of(verdict, "handover.session") == "FAIL"
    assert status_of(verdict, "memory.content") == "SKIP"
    assert verdict.exit_code is ExitCode.FAIL


def test_good_run_passes_and_says_so_in_every_check() -> None:
    verdict = judge(make.make_plan(hops=5), make.make_evidence(hops=5))
    assert verdict.outcome is Outcome.PASS
    assert verdict.exit_code is ExitCode.PASS
    assert [check.id for check in verdict.checks] == list(CHECK_IDS)
    assert verdict.reason == ""
    assert {check.id: check.reason for check in verdict.checks if not check.reason} == {}


def test_two_guests_pass_and_one_bad_one_is_named() -> None:
    guests = tuple(
        GuestSpec(name=name, memory_bytes=make.GUEST_BYTES, pattern_bytes=MIB)
        for name in ("vm0", "vm1")
    )
    plan = make.make_plan(guests=guests)
    evidence = make.make_evidence(guests=("vm0", "vm1"))
    assert judge(plan, evidence).outcome is Outcome.PASS
    bad = make.with_trace(evidence, 1, "vm1", pattern=PatternFacts(pages=256, bad=3))
    check = check_of(judge(plan, bad), "memory.content")
    assert check.status is Outcome.FAIL
    assert "vm1" in check.reason and "vm0" not in check.reason


# --- red: (what is spoilt, the check, a word of its reason)

Spoil = Callable[[Evidence], Evidence]


def flip_digest(evidence: Evidence) -> Evidence:
    memory = evidence.hops[0].memory[0]
    assert memory.boot is not None
    raw = make.flip(memory.boot.digests, 8 * 77)
    # as if it had been measured so: the recorded digest of the file fits
    artifact = make.make_artifact(memory.boot.artifact.path, raw)
    return make.with_memory(evidence, boot=replace(memory.boot, digests=raw, artifact=artifact))


def late_digests(evidence: Evidence) -> Evidence:
    """The boot digests were still being taken when the guest ran: it may have changed pages."""
    hop = evidence.hops[0]
    assert hop.memory[0].boot is not None
    late = replace(hop.memory[0].boot, ended_ns=max(hop.resumed_ns.values()) + 1)
    return make.with_memory(evidence, boot=late)


def move_page(evidence: Evidence) -> Evidence:
    raw = make.flip(make.make_pfns(), 8 * 5 + 3)
    return make.with_memory(evidence, pfns_after=make.make_frames(raw))


def fewer_pages(evidence: Evidence) -> Evidence:
    freeze = evidence.hops[0].memory[0].freeze
    assert freeze is not None
    return make.with_memory(evidence, freeze=replace(freeze, pages=500))


def spoil_ticks(change: Callable[[Tick], Tick], after_ns: int = 6 * SECOND) -> Spoil:
    def spoil(evidence: Evidence) -> Evidence:
        ticks = tuple(
            change(tick) if tick.host_ns >= BASE + after_ns else tick for tick in make.make_ticks()
        )
        return make.with_trace(evidence, ticks=ticks)

    return spoil


def reboot_echo(echo: Echo) -> Echo:
    is_late = echo.boot is not None and echo.sent_ns > BASE + 6 * SECOND
    return structs.replace(echo, boot=9) if is_late else echo


def dead_after(at_ns: int) -> Callable[[int], bool]:
    return lambda at: make.alive(at) and at < at_ns


def trace(**changes: object) -> Spoil:
    return lambda evidence: make.with_trace(evidence, **changes)


def after(**changes: object) -> Spoil:
    return lambda evidence: make.with_after(evidence, **changes)


def scan(**changes: object) -> Spoil:
    return trace(journal_after=replace(make.make_scan(1100), **changes))


def incident(kind: str, guest: str = "") -> Spoil:
    return lambda evidence: with_incident(evidence, kind, guest=guest)


RED: list[tuple[str, Spoil, str, str]] = [
    ("kho-absent", after(kho_found=False), "handover.kho", "no handover data"),
    ("same-boot", after(boot_id="boot-0"), "handover.kho", "boot_id did not change"),
    ("other-release", after(release="7.3.4-other"), "handover.kho", "7.3.4-other"),
    ("other-build", after(build_id="c" * 40), "handover.kho", "cccccccccccc"),
    ("panic", incident("panic"), "handover.kho", "incoming kernel panicked: the panic text"),
    ("reset", incident("reset"), "handover.kho", "reset instead of kexec"),
    ("refused", incident("freeze-refused"), "handover.session", "freeze-refused"),
    ("generation-stuck", after(generation=0), "handover.generation", "0 → 0"),
    ("generation-skips", after(generation=2), "handover.generation", "0 → 2"),
    ("luo-off", after(liveupdate=False, luo_number=None), "handover.session", "/dev/liveupdate"),
    ("luo-number", after(luo_number=7), "handover.session", "number 7"),
    (
        "session-error",
        lambda e: make.with_hop(
            e,
            sessions=(SessionFacts(name="lu.guest.vm0", error="ENOENT", tokens=0, retrieve_ns=1),),
        ),
        "handover.session",
        "ENOENT",
    ),
    (
        "session-empty",
        lambda e: make.with_hop(
            e, sessions=(SessionFacts(name="lu.guest.vm0", error=None, tokens=0, retrieve_ns=1),)
        ),
        "handover.session",
        "empty",
    ),
    ("bit-flipped", flip_digest, "memory.content", "page 77 at guest-physical 0x000000000004d000"),
    ("pattern-bad", trace(pattern=PatternFacts(pages=256, bad=1)), "memory.content", "1 of 256"),
    ("page-moved", move_page, "memory.placement", "page 5 moved"),
    ("vmm-paused", trace(vmm_status="paused"), "guest.liveness", "'paused'"),
    ("vmm-lost", incident("vmm-lost", "vm0"), "guest.liveness", "did not survive"),
    ("restore-failed", incident("restore-failed", "vm0"), "guest.liveness", "did not survive"),
    (
        "dead-at-resume",
        trace(ticks=make.make_ticks(running=dead_after(2 * SECOND))),
        "guest.liveness",
        "VMM says 'running', but ticks stand still",
    ),
    (
        "dead-later",
        trace(ticks=make.make_ticks(running=dead_after(6 * SECOND))),
        "guest.liveness",
        "stood still for 2.0",
    ),
    (
        "stalled",
        trace(ticks=make.make_ticks(running=lambda at: make.alive(at) and at // SECOND != 6)),
        "guest.liveness",
        "although the VMM says 'running'",
    ),
    (
        "rebooted",
        spoil_ticks(lambda tick: structs.replace(tick, boot=1)),
        "guest.liveness",
        "rebooted",
    ),
    (
        "rewound",
        spoil_ticks(lambda tick: structs.replace(tick, seq=tick.seq - 5000)),
        "guest.liveness",
        "went back in time",
    ),
    (
        "monotonic-back",
        spoil_ticks(lambda t: structs.replace(t, monotonic_ns=t.monotonic_ns - 3 * SECOND)),
        "guest.clock",
        "monotonic clock went back",
    ),
    (
        "realtime-jump",
        spoil_ticks(lambda t: structs.replace(t, realtime_ns=t.realtime_ns + 30 * SECOND)),
        "guest.clock",
        "realtime clock was stepped by +30.00 s",
    ),
    (
        "realtime-jump-at-resume",
        spoil_ticks(
            lambda t: structs.replace(t, realtime_ns=t.realtime_ns + 30 * SECOND),
            5 * SECOND + 25 * MS,
        ),
        "guest.clock",
        "realtime clock",
    ),
    (
        "monotonic-forward",
        spoil_ticks(
            lambda t: structs.replace(t, monotonic_ns=t.monotonic_ns + 9 * SECOND), 3 * SECOND
        ),
        "guest.clock",
        "jumped forward",
    ),
    (
        "realtime-loses-more",
        spoil_ticks(
            lambda t: structs.replace(t, realtime_ns=t.realtime_ns - SECOND // 2), 3 * SECOND
        ),
        "guest.clock",
        "back",
    ),
    ("clock-fast", trace(ticks=make.make_ticks(rate=1.03)), "guest.clock", "+30000 ppm"),
    (
        "no-answers",
        trace(echoes=make.make_echoes(running=dead_after(2 * SECOND))),
        "guest.network",
        "0 answers and 150 questions",
    ),
    (
        "answers-stop",
        trace(echoes=make.make_echoes(running=dead_after(6 * SECOND))),
        "guest.network",
        "silent for",
    ),
    (
        "echo-other-boot",
        trace(echoes=tuple(map(reboot_echo, make.make_echoes()))),
        "guest.network",
        "another boot",
    ),
    ("journal-missing", scan(missing=(1050,), records=1099), "guest.storage", "first 1050"),
    ("journal-corrupt", scan(corrupt=2), "guest.storage", "2 records are corrupt"),
    ("journal-foreign", scan(foreign=1), "guest.storage", "not this guest's"),
    ("journal-short", scan(last_seq=900, records=900), "guest.storage", "record 1000 was durable"),
    ("journal-emptied", scan(first_seq=1001, records=100), "guest.storage", "1 to 1000 are gone"),
    ("journal-count", scan(records=7), "guest.storage", "7 records for"),
    ("journal-other-boot", scan(boot=3), "guest.storage", "another boot"),
    (
        "journal-stops",
        trace(journal=make.make_journal(running=dead_after(6 * SECOND))),
        "guest.storage",
        "stopped growing",
    ),
    (
        "journal-back",
        trace(
            journal=tuple(
                replace(sample, seq=sample.seq - (50 if sample.host_ns > BASE + 6 * SECOND else 0))
                for sample in make.make_journal()
            )
        ),
        "guest.storage",
        "went back",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "check_id", "word"), [case[1:] for case in RED], ids=[case[0] for case in RED]
)
def test_check_goes_red(spoil: Spoil, check_id: str, word: str) -> None:
    verdict = judge(PLAN, spoil(GOOD))
    check = check_of(verdict, check_id)
    assert (check.status, word in check.reason) == (Outcome.FAIL, True), check.reason
    # and what a loss leaves unseen does not turn the exit code from 1 into 3
    assert verdict.exit_code is ExitCode.FAIL, verdict.reason


def test_blackout_over_budget_fails_and_under_it_passes() -> None:
    for limit_s, status in ((3.9, "FAIL"), (4.1, "PASS")):
        plan = make.make_plan(budget=Budget(blackout_s=limit_s))
        check = check_of(judge(plan, GOOD), "budget.blackout")
        assert check.status.value == status
        assert "4.01 s" in check.reason


def test_blackout_counts_the_guests_own_silence() -> None:
    late = make.make_ticks(running=lambda at: make.alive(at) and not 5 <= at / SECOND < 5.8)
    plan = make.make_plan(budget=Budget(blackout_s=4.5))
    assert status_of(judge(plan, make.with_trace(GOOD, ticks=late)), "budget.blackout") == "FAIL"


# --- errors: evidence that is not there


def drop_hop(**changes: object) -> Spoil:
    return lambda evidence: make.with_hop(evidence, **changes)


def no_after(evidence: Evidence) -> Evidence:
    return make.with_hop(evidence, after=None)


MISSING: list[tuple[str, Spoil, str]] = [
    ("hops", lambda e: replace(e, hops=()), "handover.kho"),
    ("before", drop_hop(before=None), "handover.kho"),
    ("after", no_after, "handover.kho"),
    ("after-generation", no_after, "handover.generation"),
    ("ssh-boot", drop_hop(ssh_boot_id=None), "handover.kho"),
    ("ssh-nonce", drop_hop(ssh_nonce_ok=None), "handover.kho"),
    ("ssh-nonce-wrong", drop_hop(ssh_nonce_ok=False), "handover.kho"),
    ("ssh-elsewhere", drop_hop(ssh_boot_id="other"), "handover.kho"),
    ("sessions", drop_hop(sessions=()), "handover.session"),
    ("luo-number", after(luo_number=None), "handover.session"),
    ("memory", drop_hop(memory=()), "memory.content"),
    ("freeze", lambda e: make.with_memory(e, freeze=None), "memory.content"),
    ("boot", lambda e: make.with_memory(e, boot=None), "memory.content"),
    ("fewer-pages", fewer_pages, "memory.content"),
    ("pattern", trace(pattern=None), "memory.content"),
    ("boot-late", lambda e: late_digests(flip_digest(e)), "memory.content"),
    ("boot-late-equal", lambda e: late_digests(e), "memory.content"),
    ("pattern-short", trace(pattern=PatternFacts(pages=9, bad=0)), "memory.content"),
    ("pfns-before", lambda e: make.with_memory(e, pfns_before=None), "memory.placement"),
    ("pfns-after", lambda e: make.with_memory(e, pfns_after=None), "memory.placement"),
    ("guests", drop_hop(guests=()), "guest.liveness"),
    ("vmm-status", trace(vmm_status=None), "guest.liveness"),
    ("watched", trace(watched=None), "guest.liveness"),
    ("ticks", trace(ticks=()), "guest.liveness"),
    ("ticks-clock", trace(ticks=()), "guest.clock"),
    ("paused", drop_hop(paused_ns={}), "guest.liveness"),
    ("resumed", drop_hop(resumed_ns={}), "guest.liveness"),
    ("echoes", trace(echoes=()), "guest.network"),
    ("echoes-after", trace(echoes=make.make_echoes()[:50]), "guest.network"),
    (
        "echoes-before",
        trace(echoes=tuple(echo for echo in make.make_echoes() if echo.sent_ns > BASE + SECOND)),
        "guest.network",
    ),
    (
        "echo-boots",
        trace(echoes=tuple(replace(echo, boot=None) for echo in make.make_echoes())),
        "guest.network",
    ),
    ("journal", trace(journal=()), "guest.storage"),
    ("scan-before", trace(journal_before=None), "guest.storage"),
    ("scan-after", trace(journal_after=None), "guest.storage"),
    (
        "journal-bad-before",
        trace(journal_before=replace(make.make_scan(1000), corrupt=1)),
        "guest.storage",
    ),
    ("provenance", lambda e: replace(e, provenance=None), "handover.kho"),
]


@pytest.mark.parametrize(
    ("spoil", "check_id"), [case[1:] for case in MISSING], ids=[case[0] for case in MISSING]
)
def test_missing_evidence_is_error_not_pass(spoil: Spoil, check_id: str) -> None:
    verdict = judge(PLAN, spoil(GOOD))
    assert status_of(verdict, check_id) == "ERROR"
    assert verdict.exit_code is ExitCode.ERROR
    assert check_of(verdict, check_id).reason


def test_second_hop_that_was_never_seen_is_error() -> None:
    verdict = judge(make.make_plan(hops=2), GOOD)
    assert verdict.outcome is Outcome.ERROR
    assert "hop 2" in check_of(verdict, "handover.kho").reason


def test_blackout_without_marks_is_error_when_there_is_a_budget() -> None:
    plan = make.make_plan(budget=Budget(blackout_s=9.0))
    verdict = judge(plan, make.with_hop(GOOD, resumed_ns={}))
    assert status_of(verdict, "budget.blackout") == "ERROR"


def test_empty_evidence_and_empty_plan_are_errors() -> None:
    nothing = Evidence(provenance=None, hops=())
    assert judge(PLAN, nothing).outcome is Outcome.ERROR
    assert judge(replace(PLAN, hops=()), GOOD).outcome is Outcome.ERROR
    assert judge(replace(PLAN, guests=()), GOOD).outcome is Outcome.ERROR


@pytest.mark.parametrize("kind", ["exited", "lost-agent", "lost-ssh", "lost-qmp", "harness"])
def test_trouble_of_ours_is_error_even_when_all_evidence_is_there(kind: str) -> None:
    verdict = judge(PLAN, with_incident(GOOD, kind))
    assert status_of(verdict, "handover.kho") == "ERROR"
    assert verdict.exit_code is ExitCode.ERROR
    assert f"the {kind} text" in verdict.reason


def test_deadline_is_error_with_the_exit_code_of_a_timeout() -> None:
    verdict = judge(PLAN, with_incident(make.with_hop(GOOD, after=None), "deadline"))
    assert (verdict.outcome, verdict.exit_code) == (Outcome.ERROR, ExitCode.TIMEOUT)
    assert "the deadline text" in check_of(verdict, "handover.generation").reason


def test_panic_explains_the_lost_agent_and_the_deadline_after_it() -> None:
    evidence = replace(make.with_hop(GOOD, after=None, sessions=(), guests=(), resumed_ns={}))
    for kind in ("panic", "exited", "lost-agent", "deadline"):
        evidence = with_incident(evidence, kind)
    verdict = judge(PLAN, evidence)
    assert verdict.exit_code is ExitCode.FAIL
    assert status_of(verdict, "handover.kho") == "FAIL"
    assert status_of(verdict, "guest.liveness") == "FAIL"
    assert status_of(verdict, "guest.clock") == "SKIP"


def test_outgoing_kernel_that_panics_before_the_update_is_error() -> None:
    verdict = judge(PLAN, with_incident(replace(GOOD, hops=()), "panic", hop=0))
    assert verdict.exit_code is ExitCode.ERROR


def test_injected_fault_is_a_note() -> None:
    assert judge(PLAN, with_incident(GOOD, "fault")).outcome is Outcome.PASS


STRUCK = make.make_struck("flip-bit")
FAULT_PLAN = replace(
    PLAN,
    fault=FaultPlan(
        name="flip-bit",
        expected=Expected(check="memory.content", status="FAIL", exit_code=1),
        proves=True,
    ),
)


def test_planned_fault_that_left_its_record_changes_nothing() -> None:
    struck = make.with_hop(GOOD, struck=(STRUCK,))
    assert judge(FAULT_PLAN, struck).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("struck", "said"),
    [
        ((), "fault 'flip-bit' was planned, and no record says that it struck"),
        ((make.make_struck("move-page"),), "no record says that it struck"),
        ((replace(STRUCK, after=STRUCK.before),), "what it struck is as it was before"),
    ],
)
@pytest.mark.parametrize("is_lost", [False, True])
def test_planned_fault_that_is_not_seen_to_have_struck_is_error_whatever_else_is_found(
    struck: tuple[Struck, ...], said: str, is_lost: bool
) -> None:
    evidence = make.with_hop(GOOD, struck=struck)
    if is_lost:
        evidence = with_incident(evidence, "panic")
    verdict = judge(FAULT_PLAN, evidence)
    assert verdict.exit_code is ExitCode.ERROR
    assert status_of(verdict, "handover.kho") == "ERROR" and said in verdict.reason


def test_fault_that_is_not_seen_to_have_struck_was_not_rolled_back_either() -> None:
    given_up = with_incident(replace(GOOD, rolled_back=True), "freeze-refused")
    struck = make.with_hop(given_up, struck=(STRUCK,))
    assert judge(FAULT_PLAN, struck).exit_code is ExitCode.ROLLED_BACK
    assert judge(FAULT_PLAN, given_up).exit_code is ExitCode.ERROR


def test_fault_strikes_in_the_first_hop_and_in_no_other() -> None:
    plan = replace(make.make_plan(hops=2), fault=FAULT_PLAN.fault)
    first, second = make.make_evidence(hops=2).hops
    early = replace(GOOD, hops=(replace(first, struck=(STRUCK,)), second))
    late = replace(GOOD, hops=(first, replace(second, struck=(STRUCK,))))
    assert judge(plan, early).outcome is Outcome.PASS
    assert "no record says that it struck" in judge(plan, late).reason


def test_plan_of_an_earlier_version_demands_no_record_of_its_fault() -> None:
    assert FAULT_PLAN.fault is not None
    plan = replace(PLAN, fault=replace(FAULT_PLAN.fault, proves=UNSET))
    assert judge(plan, GOOD).outcome is Outcome.PASS


def test_fault_that_struck_without_a_plan_is_error() -> None:
    verdict = judge(PLAN, make.with_hop(GOOD, struck=(STRUCK,)))
    assert verdict.exit_code is ExitCode.ERROR
    assert "a fault 'flip-bit' struck that was not planned" in verdict.reason


def test_unreadable_file_is_error_and_named() -> None:
    path = slots.PHASES.path(1)
    verdict = judge(PLAN, replace(GOOD, unreadable={path: "cut short"}))
    assert verdict.outcome is Outcome.ERROR
    assert path in verdict.reason and "cut short" in verdict.reason


# --- evidence that is there but proves nothing


def test_altered_digest_file_is_fail_and_names_the_page() -> None:
    memory = GOOD.hops[0].memory[0]
    assert memory.freeze is not None
    altered = replace(memory.freeze, digests=make.flip(memory.freeze.digests, 8 * 3))
    check = check_of(judge(PLAN, make.with_memory(GOOD, freeze=altered)), "memory.content")
    assert check.status is Outcome.FAIL
    assert "page 3 " in check.reason and "evidence altered" in check.reason


def test_digests_that_are_all_alike_prove_nothing() -> None:
    memory = GOOD.hops[0].memory[0]
    assert memory.freeze is not None and memory.boot is not None
    raw = bytes(make.PAGES * 8)
    same = {
        name: replace(old, digests=raw, artifact=make.make_artifact(old.artifact.path, raw))
        for name, old in (("freeze", memory.freeze), ("boot", memory.boot))
    }
    check = check_of(judge(PLAN, make.with_memory(GOOD, **same)), "memory.content")
    assert check.status is Outcome.ERROR
    assert "something else was hashed" in check.reason


@pytest.mark.parametrize(
    ("moment", "began_ns", "ended_ns"),
    [
        ("freeze", BASE, BASE + 1),
        ("boot", BASE + SECOND + 20 * MS, BASE + 2 * SECOND),
        ("boot", BASE + 4 * SECOND, BASE + 6 * SECOND),
    ],
    ids=["freeze-before-the-pause", "boot-before-freeze-ended", "boot-after-resume"],
)
def test_digests_taken_at_the_wrong_time_prove_nothing(
    moment: str, began_ns: int, ended_ns: int
) -> None:
    memory = GOOD.hops[0].memory[0]
    old = memory.freeze if moment == "freeze" else memory.boot
    assert old is not None
    late = replace(old, began_ns=began_ns, ended_ns=ended_ns)
    verdict = judge(PLAN, make.with_memory(GOOD, **{moment: late}))
    assert status_of(verdict, "memory.content") == "ERROR"


@pytest.mark.parametrize(
    "pfns",
    [bytes(make.PAGES * 8), b"\x01" + bytes(7) + make.make_pfns()[8:-8] + b"\x01" + bytes(7)],
)
def test_page_frames_of_nothing_prove_nothing(pfns: bytes) -> None:
    frames = make.make_frames(pfns)
    verdict = judge(PLAN, make.with_memory(GOOD, pfns_before=frames, pfns_after=frames))
    assert status_of(verdict, "memory.placement") == "ERROR"


def test_silence_while_nobody_looked_is_error_not_fail() -> None:
    ticks = make.make_ticks(running=lambda at: make.alive(at) and at // SECOND != 6)
    watched = Watched(began_ns=BASE, ended_ns=BASE + 8 * SECOND, longest_hole_ns=SECOND)
    check = check_of(
        judge(PLAN, make.with_trace(GOOD, ticks=ticks, watched=watched)), "guest.liveness"
    )
    assert check.status is Outcome.ERROR
    assert "none was looked for in" in check.reason


def test_short_observation_is_error() -> None:
    watched = Watched(began_ns=BASE, ended_ns=BASE + 6 * SECOND, longest_hole_ns=0)
    verdict = judge(PLAN, make.with_trace(GOOD, watched=watched))
    assert status_of(verdict, "guest.liveness") == "ERROR"


def test_guest_that_rebooted_between_two_hops_is_found() -> None:
    evidence = make.make_evidence(hops=2)
    ticks = tuple(replace(tick, boot=5) for tick in make.make_ticks(2))
    verdict = judge(make.make_plan(hops=2), make.with_trace(evidence, 2, ticks=ticks))
    assert "rebooted" in check_of(verdict, "guest.liveness").reason


def test_clock_that_went_on_over_the_blackout_is_as_good_as_one_that_stood() -> None:
    lost = 4 * SECOND - 5 * MS
    ticks = tuple(
        replace(
            tick, realtime_ns=tick.realtime_ns + (lost if tick.host_ns > BASE + 3 * SECOND else 0)
        )
        for tick in make.make_ticks()
    )
    assert judge(PLAN, make.with_trace(GOOD, ticks=ticks)).outcome is Outcome.PASS


def gone_on(by_ns: int, hole_ns: int = 8 * MS) -> Evidence:
    """Clocks that went on through the blackout, but for ``by_ns``."""
    ahead = make.RESUMED_NS - make.PAUSED_NS + by_ns
    ticks = tuple(
        replace(
            tick,
            monotonic_ns=tick.monotonic_ns + ahead,
            boottime_ns=tick.boottime_ns + ahead,
            realtime_ns=tick.realtime_ns + ahead,
        )
        if tick.host_ns > 100 * SECOND + make.RESUMED_NS
        else tick
        for tick in make.make_ticks()
    )
    watched = Watched(
        began_ns=100 * SECOND, ended_ns=100 * SECOND + make.WATCHED_NS, longest_hole_ns=hole_ns
    )
    return make.with_trace(make.make_evidence(), ticks=ticks, watched=watched)


@pytest.mark.parametrize(
    ("by_ns", "hole_ns", "status"),
    [
        (0, 8 * MS, "PASS"),
        (9 * MS, 8 * MS, "PASS"),
        (-9 * MS, 8 * MS, "PASS"),
        (15 * MS, 8 * MS, "FAIL"),
        (-15 * MS, 8 * MS, "FAIL"),
        (-15 * MS, 30 * MS, "ERROR"),
        (-50 * MS, 30 * MS, "FAIL"),
        (make.PAUSED_NS - make.RESUMED_NS, 30 * MS, "FAIL"),
    ],
)
def test_clocks_that_are_to_go_on_are_where_they_would_have_been(
    by_ns: int, hole_ns: int, status: str
) -> None:
    plan = replace(make.make_plan(), clock="continuous")
    verdict = judge(plan, gone_on(by_ns, hole_ns))
    assert status_of(verdict, "guest.clock") == status
    if by_ns > -(10**9):
        assert status_of(judge(make.make_plan(), gone_on(by_ns, hole_ns)), "guest.clock") == "PASS"


def test_clock_of_a_guest_that_was_rolled_back_did_not_have_to_go_on() -> None:
    plan = replace(make.make_plan(), clock="continuous")
    refused = Incident(kind="freeze-refused", hop=1, text="refused")
    evidence = replace(make.make_evidence(), incidents=(refused,), rolled_back=True)
    assert status_of(judge(plan, evidence), "guest.clock") == "PASS"


def test_single_late_readings_are_no_clock_step() -> None:
    ticks = tuple(
        replace(tick, host_ns=tick.host_ns + (7 * MS if index % 17 == 0 else 0))
        for index, tick in enumerate(make.make_ticks())
    )
    assert judge(PLAN, make.with_trace(GOOD, ticks=ticks)).outcome is Outcome.PASS


# --- skips


def test_skips_of_the_plan_are_skips_with_their_reason() -> None:
    plan = make.make_plan(skips=(*PLAN.skips, ("memory.placement", "no pagemap")))
    verdict = judge(plan, make.with_memory(GOOD, pfns_after=None))
    check = check_of(verdict, "memory.placement")
    assert (check.status, check.reason) == (Outcome.SKIP, "no pagemap")
    assert verdict.outcome is Outcome.PASS


def test_expected_check_that_nothing_can_show_is_error() -> None:
    verdict = judge(make.make_plan(skips=()), GOOD)
    assert status_of(verdict, "iommu.mappings") == "ERROR"


def test_everything_skipped_has_its_own_exit_code() -> None:
    plan = make.make_plan(skips=tuple((check_id, "why") for check_id in CHECK_IDS))
    assert judge(plan, GOOD).exit_code is ExitCode.SKIP


def test_skipping_the_check_that_saw_a_loss_does_not_hide_it() -> None:
    plan = make.make_plan(skips=(*PLAN.skips, ("guest.liveness", "not wanted")))
    verdict = judge(plan, with_incident(GOOD, "vmm-lost", guest="vm0"))
    assert verdict.outcome is Outcome.FAIL


def test_memory_that_was_not_observed_is_skipped() -> None:
    plan = make.make_plan(observe=Observation(memory=False))
    verdict = judge(plan, make.with_memory(GOOD, freeze=None, boot=None))
    assert verdict.outcome is Outcome.PASS


# --- users' own images


def pings(*, dead_from: int = 99 * SECOND) -> tuple[AgentPing, ...]:
    return tuple(
        AgentPing(
            host_ns=BASE + at,
            realtime_ns=BASE + at - (4 * SECOND if at >= 5 * SECOND else 0)
            if make.alive(at) and at < dead_from
            else None,
        )
        for at in range(0, 8 * SECOND, SECOND // 4)
    )


AGENT_PLAN = make.make_plan(
    guests=(GuestSpec(name="vm0", memory_bytes=make.GUEST_BYTES, image="x", liveness="agent"),)
)
NETWORK_PLAN = make.make_plan(
    guests=(
        GuestSpec(
            name="vm0",
            memory_bytes=make.GUEST_BYTES,
            image="x",
            liveness="network",
            address="192.0.2.1",
        ),
    )
)


def user_trace(**changes: object) -> Evidence:
    bare: dict[str, object] = {
        "ticks": (),
        "echoes": (),
        "journal": (),
        "journal_before": None,
        "journal_after": None,
        "pattern": None,
    }
    return make.with_trace(GOOD, **{**bare, **changes})


def test_user_image_is_judged_by_its_guest_agent() -> None:
    verdict = judge(AGENT_PLAN, user_trace(agent_pings=pings()))
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert status_of(verdict, "guest.clock") == "PASS"
    assert status_of(verdict, "guest.storage") == "SKIP"
    assert status_of(verdict, "guest.network") == "SKIP"


def test_user_image_whose_agent_falls_silent_fails() -> None:
    verdict = judge(AGENT_PLAN, user_trace(agent_pings=pings(dead_from=6 * SECOND)))
    assert status_of(verdict, "guest.liveness") == "FAIL"


def test_user_image_without_pings_is_error() -> None:
    assert judge(AGENT_PLAN, user_trace()).outcome is Outcome.ERROR


def test_user_image_is_judged_by_its_answers() -> None:
    echoes = tuple(replace(echo, boot=None) for echo in make.make_echoes())
    verdict = judge(NETWORK_PLAN, user_trace(echoes=echoes))
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert status_of(verdict, "guest.clock") == "SKIP"
    silent = make.make_echoes(running=dead_after(6 * SECOND))
    dead = judge(NETWORK_PLAN, user_trace(echoes=silent))
    assert status_of(dead, "guest.liveness") == "FAIL"


SILENCES: list[tuple[str, range | list[int], str]] = [
    ("one-answer-after-the-resume", [5 * SECOND], "FAIL"),
    ("few-answers", [5 * SECOND, 6 * SECOND, 6250 * MS, 7900 * MS], "FAIL"),
    ("late-answers-until-the-end", [*range(6500 * MS, 8 * SECOND, 250 * MS)], "FAIL"),
    ("answers-all-along", range(5 * SECOND, 8 * SECOND, 250 * MS), "PASS"),
]


@pytest.mark.parametrize("kind", ["agent", "network"])
@pytest.mark.parametrize(
    ("answered", "status"), [row[1:] for row in SILENCES], ids=[row[0] for row in SILENCES]
)
def test_users_image_is_silent_for_no_longer_than_its_budget(
    answered: list[int], status: str, kind: str
) -> None:
    before = [*range(0, SECOND, 250 * MS)]
    verdict = judge(*asked_at(kind, [*before, *answered], [*range(0, 8 * SECOND, 50 * MS)]))
    check = check_of(verdict, "guest.liveness")
    assert check.status.value == status, check.reason
    assert "asked 20.0 times a second" in check.reason


@pytest.mark.parametrize("kind", ["agent", "network"])
def test_users_image_that_is_not_asked_is_an_error(kind: str) -> None:
    before, rare = [*range(0, SECOND, 250 * MS)], [5 * SECOND, 6500 * MS, 7900 * MS]
    check = check_of(judge(*asked_at(kind, [*before, *rare], [*before, *rare])), "guest.liveness")
    assert check.status is Outcome.ERROR
    assert "was not asked for 1.50 s" in check.reason
    nothing = check_of(judge(*asked_at(kind, before, before)), "guest.liveness")
    assert nothing.status is Outcome.ERROR
    assert "no evidence of questions" in nothing.reason


@pytest.mark.parametrize("kind", ["agent", "network"])
def test_users_image_that_was_dead_before_the_pause_is_an_error(kind: str) -> None:
    asked = [*range(0, 8 * SECOND, 50 * MS)]
    plan, evidence = asked_at(kind, [100 * MS, *range(5 * SECOND, 8 * SECOND, 250 * MS)], asked)
    late = make.with_hop(evidence, paused_ns={"vm0": BASE + 1500 * MS})
    check = check_of(judge(plan, late), "guest.liveness")
    assert check.status is Outcome.ERROR
    assert "was silent for 1.40 s before the pause" in check.reason


@pytest.mark.parametrize("kind", ["agent", "network"])
def test_blackout_of_a_users_image_is_its_own_silence(kind: str) -> None:
    answered = [*range(0, SECOND, 250 * MS), *range(5700 * MS, 8 * SECOND, 250 * MS)]
    verdict = judge(*asked_at(kind, answered, [*range(0, 8 * SECOND, 50 * MS)]))
    (blackout,) = (each.value for each in verdict.metrics if each.name == "blackout")
    assert blackout == 4950 * MS


def asked_at(kind: str, answered: list[int], asked: list[int]) -> tuple[Plan, Evidence]:
    """A plan with a user's image, and what it answers to questions at these times of the hop."""
    if kind == "network":
        echoes = tuple(
            Echo(
                seq=at,
                sent_ns=BASE + at,
                received_ns=BASE + at if at in answered else None,
                boot=None,
            )
            for at in asked
        )
        return NETWORK_PLAN, user_trace(echoes=echoes)
    found = tuple(
        AgentPing(
            host_ns=BASE + at,
            realtime_ns=BASE + at if at in answered else None,
            asked_ns=BASE + at,
        )
        for at in asked
    )
    return AGENT_PLAN, user_trace(agent_pings=found)


def test_payload_that_was_dead_before_the_pause_is_an_error() -> None:
    evidence = make.with_hop(
        make.with_trace(
            GOOD, ticks=make.make_ticks(running=lambda at: at < 100 * MS or at >= 5 * SECOND)
        ),
        paused_ns={"vm0": BASE + 1500 * MS},
    )
    check = check_of(judge(PLAN, evidence), "guest.liveness")
    assert check.status is Outcome.ERROR
    assert "before the pause" in check.reason


def test_echoes_of_another_boot_than_the_one_that_ticks_fail() -> None:
    echoes = tuple(
        replace(echo, boot=None if echo.boot is None else echo.boot ^ 1)
        for echo in make.make_echoes()
    )
    check = check_of(judge(PLAN, make.with_trace(GOOD, echoes=echoes)), "guest.network")
    assert check.status is Outcome.FAIL
    assert "another boot" in check.reason


def test_journal_that_was_not_looked_at_is_an_error() -> None:
    journal = make.make_journal(running=lambda at: make.alive(at) and at < 6500 * MS)
    evidence = make.with_trace(GOOD, journal=journal)
    assert check_of(judge(PLAN, evidence), "guest.storage").status is Outcome.FAIL
    seen = make.make_trace().watched
    assert seen is not None
    watched = replace(seen, longest_hole_ns=SECOND)
    check = check_of(judge(PLAN, make.with_trace(evidence, watched=watched)), "guest.storage")
    assert check.status is Outcome.ERROR
    assert "control host too busy" in check.reason


# --- rolled back


def rolled_back(**changes: object) -> Evidence:
    evidence = make.with_hop(GOOD, after=None, sessions=(), resumed_ns={}, ssh_boot_id=None)
    evidence = make.with_memory(evidence, boot=None, pfns_after=None)
    evidence = make.with_trace(
        evidence, pattern=None, journal_after=None, vmm_status=None, **changes
    )
    return replace(with_incident(evidence, "freeze-refused"), rolled_back=True)


def test_rolled_back_with_live_guests_has_its_own_exit_code() -> None:
    verdict = judge(PLAN, rolled_back())
    assert verdict.exit_code is ExitCode.ROLLED_BACK, verdict.reason
    assert status_of(verdict, "handover.session") == "FAIL"
    assert status_of(verdict, "guest.liveness") == "PASS"
    assert status_of(verdict, "guest.storage") == "PASS"
    assert status_of(verdict, "memory.content") == "SKIP"


def test_rolled_back_with_a_dead_guest_is_a_failure() -> None:
    ticks = make.make_ticks(running=dead_after(2 * SECOND))
    verdict = judge(PLAN, rolled_back(ticks=ticks))
    assert verdict.exit_code is ExitCode.FAIL


def test_rolled_back_without_a_look_at_the_guests_is_an_error() -> None:
    assert judge(PLAN, rolled_back(ticks=())).exit_code is ExitCode.ERROR


def test_rolled_back_before_the_pause_judges_the_whole_observation() -> None:
    evidence = make.with_hop(rolled_back(), paused_ns={})
    evidence = make.with_trace(
        evidence,
        ticks=make.make_ticks(running=lambda at: True),
        echoes=make.make_echoes(running=lambda at: True),
        journal=make.make_journal(running=lambda at: True),
    )
    assert judge(PLAN, evidence).exit_code is ExitCode.ROLLED_BACK


def test_hop_that_begins_in_another_boot_fails() -> None:
    evidence = make.make_evidence(hops=2)
    before = evidence.hops[1].before
    assert before is not None
    other = make.with_hop(evidence, 2, before=replace(before, boot_id="boot-x"))
    check = check_of(judge(make.make_plan(hops=2), other), "handover.kho")
    assert (check.status, check.observed, check.expected) == (Outcome.FAIL, "boot-x", "boot-1")
    unseen = make.with_hop(other, 2, before=None)
    assert check_of(judge(make.make_plan(hops=2), unseen), "handover.kho").status is Outcome.ERROR


def test_records_that_are_gone_between_two_hops_fail() -> None:
    evidence = make.make_evidence(hops=2)
    lost = make.with_trace(evidence, 2, journal_before=make.make_scan(500))
    check = check_of(judge(make.make_plan(hops=2), lost), "guest.storage")
    assert check.status is Outcome.FAIL
    assert "record 1100 was durable after the hop before" in check.reason
    unseen = make.with_trace(lost, 2, journal_before=None)
    check = check_of(judge(make.make_plan(hops=2), unseen), "guest.storage")
    assert check.status is Outcome.ERROR


# --- leaks and metrics


def leaking(per_hop: int, hops: int) -> tuple[Plan, Evidence]:
    evidence = make.make_evidence(hops=hops)
    for number in range(1, hops + 1):
        free = 500 * MIB - per_hop * number
        evidence = make.with_after(evidence, number, mem_free_bytes=free)
    return make.make_plan(hops=hops), evidence


def test_memory_that_is_lost_in_every_hop_is_a_leak() -> None:
    plan, evidence = leaking(9 * MIB, 4)
    check = check_of(judge(plan, evidence), "handover.session")
    assert check.status is Outcome.FAIL
    assert "9 MiB per hop" in check.reason


@pytest.mark.parametrize("up", [2, 3, 4, 5])
def test_leak_shows_although_free_memory_goes_up_in_one_hop(up: int) -> None:
    plan, evidence = leaking(40 * MIB, 5)
    facts = evidence.hops[up - 1].after
    assert facts is not None
    raised = make.with_after(evidence, up, mem_free_bytes=facts.mem_free_bytes + 45 * MIB)
    check = check_of(judge(plan, raised), "handover.session")
    assert check.status is Outcome.FAIL and "free memory falls by" in check.reason


def test_kernels_of_different_size_are_no_leak() -> None:
    plan, evidence = leaking(0, 5)
    for number in (2, 4):
        evidence = make.with_after(evidence, number, mem_free_bytes=300 * MIB)
    assert judge(plan, evidence).outcome is Outcome.PASS


@pytest.mark.parametrize(("per_hop", "hops"), [(7 * MIB, 5), (9 * MIB, 3), (-20 * MIB, 5)])
def test_small_short_or_rising_series_is_no_leak(per_hop: int, hops: int) -> None:
    plan, evidence = leaking(per_hop, hops)
    verdict = judge(plan, evidence)
    assert verdict.outcome is Outcome.PASS
    slopes = [
        metric.value
        for metric in verdict.metrics
        if metric.name == "leak.bytes_per_hop" and metric.labels["of"] == "mem-free"
    ]
    assert slopes == [per_hop]


def test_metrics_name_gaps_phases_and_guests() -> None:
    metrics = judge(PLAN, GOOD).metrics
    found = {metric.name: metric for metric in metrics}
    assert found["gap.vcpu"].value == 4010 * MS
    assert found["gap.network"].value == 4020 * MS
    assert found["gap.storage"].value == 4050 * MS
    assert found["gap.clock"].value == 4000 * MS
    assert found["blackout"].labels == {"hop": "1", "guest": "vm0"}
    assert {metric.labels["phase"] for metric in metrics if metric.name == "phase"} == {
        "prepare",
        "kernel",
        "load",
    }


# --- properties


@settings(max_examples=60, deadline=None)
@given(
    moment=st.sampled_from(["freeze", "boot"]),
    position=st.integers(0, make.PAGES * 8 - 1),
    bit=st.integers(0, 7),
)
def test_any_flipped_digest_bit_is_fail_and_names_its_page(
    moment: str, position: int, bit: int
) -> None:
    memory = GOOD.hops[0].memory[0]
    old = memory.freeze if moment == "freeze" else memory.boot
    assert old is not None
    bad = replace(old, digests=make.flip(old.digests, position, bit))
    verdict = judge(PLAN, make.with_memory(GOOD, **{moment: bad}))
    check = check_of(verdict, "memory.content")
    assert check.status is Outcome.FAIL
    assert f"page {position // 8} " in check.reason
    assert verdict.exit_code is ExitCode.FAIL


@settings(max_examples=60, deadline=None)
@given(which=st.sampled_from(["before", "after"]), position=st.integers(0, make.PAGES * 8 - 1))
def test_any_flipped_frame_number_is_not_pass(which: str, position: int) -> None:
    good = make.make_frames(make.make_pfns())
    bad = replace(good, pfns=make.flip(good.pfns, position))
    verdict = judge(PLAN, make.with_memory(GOOD, **{f"pfns_{which}": bad}))
    assert status_of(verdict, "memory.placement") == "FAIL"


#: fields whose absence takes nothing from what a check needs
_OPTIONAL = {
    "phases", "agent_pings", "artifacts",
    # the plan has no device
    "devices", "iommu",
    # nor a fault
    "struck",
    # what it costs is measured, not judged, and no check knows what is in no field
    "costs", "more",
}  # fmt: skip


def _emptied(value: object) -> object:
    if isinstance(value, tuple):
        return ()
    return {} if isinstance(value, dict) else None


def _dropped() -> Iterator[tuple[str, Evidence]]:
    hop = GOOD.hops[0]
    for name in HopEvidence.__struct_fields__:
        if name not in {"number", *_OPTIONAL}:
            empty = _emptied(getattr(hop, name))
            yield f"hop.{name}", make.with_hop(GOOD, **{name: empty})
    for name in ("vmm_status", "ticks", "echoes", "journal", "journal_before", "journal_after",
                 "pattern", "watched"):  # fmt: skip
        value = _emptied(getattr(hop.guests[0], name))
        yield f"trace.{name}", make.with_trace(GOOD, **{name: value})
    for name in ("freeze", "boot", "pfns_before", "pfns_after"):
        yield f"memory.{name}", make.with_memory(GOOD, **{name: None})
    yield "provenance", replace(GOOD, provenance=None)


@pytest.mark.parametrize(("name", "evidence"), list(_dropped()), ids=lambda each: str(each)[:30])
def test_dropping_any_field_never_passes(name: str, evidence: Evidence) -> None:
    verdict = judge(PLAN, evidence)
    assert verdict.exit_code is ExitCode.ERROR, name


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_part_of_evidence_may_be_thinned_out_to_pass_a_dead_guest(data: st.DataObject) -> None:
    """Whatever subset of a dead guest's samples survives, the verdict is never PASS."""
    dead = make.make_ticks(running=dead_after(3 * SECOND))
    kept = data.draw(st.lists(st.sampled_from(dead), unique=True, max_size=20))
    verdict = judge(PLAN, make.with_trace(GOOD, ticks=tuple(kept)))
    assert verdict.outcome is not Outcome.PASS


def test_a_check_that_evidence_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(_context: object) -> list[Finding]:
        raise IndexError("tuple index out of range")

    rows = tuple(
        dataclasses.replace(row, judge=break_down) if row.id == "guest.clock" else row
        for row in CHECKS
    )
    monkeypatch.setattr(judging, "CHECKS", rows)
    verdict = judge(PLAN, GOOD)
    assert verdict.exit_code is ExitCode.ERROR
    broken = next(check for check in verdict.checks if check.id == "guest.clock")
    assert broken.status is Outcome.ERROR and "IndexError" in broken.reason


def test_evidence_that_breaks_the_measuring_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(_context: object) -> None:
        raise OverflowError("too large")

    monkeypatch.setattr(judging, "measure", break_down)
    verdict = judge(PLAN, GOOD)
    assert verdict.exit_code is ExitCode.ERROR and "breaks the measuring" in verdict.reason
