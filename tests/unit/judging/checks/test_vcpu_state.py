# SPDX-License-Identifier: Apache-2.0
"""guest.vcpu-state: what makes it red, what makes it an error, and what may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from liveupdate.judging.checks.vcpu_state import MAY_DIFFER
from liveupdate.judging.judge import judge
from liveupdate.model import slots
from liveupdate.model.evidence import Evidence, Incident, Phase
from liveupdate.model.plan import Plan
from liveupdate.model.vcpu_state import VcpuState
from liveupdate.model.verdict import Check, Outcome
from tests.support import evidence_builder as make
from tests.support.evidence_builder import MS, SECOND
from tests.support.vcpus import KHZ, TSC, TSC_AUX, make_vcpu

BASE = 100 * SECOND
BEFORE_NS = BASE + make.PAUSED_NS + 20 * MS
AFTER_NS = BASE + make.RESUMED_NS - 20 * MS
PATH = slots.VCPUS.path(1, "vm0")


def before(vcpu: int = 0, **more: Any) -> VcpuState:
    return make_vcpu("before", BEFORE_NS, vcpu, **more)


def after(vcpu: int = 0, **more: Any) -> VcpuState:
    return make_vcpu("after", AFTER_NS, vcpu, **more)


def make_plan(vcpus: int = 1) -> Plan:
    plan = make.make_plan()
    return replace(plan, guests=tuple(replace(guest, vcpus=vcpus) for guest in plan.guests))


def make_evidence(*rows: VcpuState) -> Evidence:
    return make.with_trace(make.make_evidence(), vcpus=rows)


def check_of(evidence: Evidence, plan: Plan | None = None) -> Check:
    checks = judge(plan or make_plan(), evidence).checks
    return next(check for check in checks if check.id == "guest.vcpu-state")


def test_same_registers_of_every_vcpu_pass() -> None:
    rows = (before(0), before(1), after(0), after(1))
    check = check_of(make_evidence(*rows), make_plan(vcpus=2))
    assert check.status is Outcome.PASS
    assert "vCPU 0: " in check.reason and "vCPU 1: " in check.reason
    assert "2 of them MSRs" in check.reason
    assert check.evidence == (PATH,)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({("regs", 128): b"\x01"}, "regs.rip 0x0 → 0x1"),
        ({("xsave", 160): b"\x01"}, "xsave.xmm0 0x0 → 0x1"),
        ({("xsave", 0xA80): b"\x01"}, "xsave.0xa80 0x0 → 0x1"),
        ({("lapic", 0x330): b"\x01"}, "lapic.330 0x0 → 0x1"),
        ({("events", 14): b"\x01"}, "events.nmi.masked 0x0 → 0x1"),
        ({("debugregs", 40): b"\x01"}, "debugregs.dr7 0x0 → 0x1"),
        ({("mp_state", 0): b"\x03"}, "mp_state.state 0x0 → 0x3"),
        ({("xcrs", 16): b"\x07"}, "xcrs.xcr[0].value 0x0 → 0x7"),
        ({("tsc_khz", 0): b"\x01"}, "tsc_khz.khz"),
    ],
)
def test_register_that_differs_fails_and_is_named(
    change: Mapping[tuple[str, int], bytes], named: str
) -> None:
    check = check_of(make_evidence(before(), after(changes=change)))
    assert check.status is Outcome.FAIL
    assert named in check.reason
    assert "hop 1, vm0: vCPU 0" in check.reason


def test_msr_that_differs_fails() -> None:
    check = check_of(make_evidence(before(), after(msrs={TSC_AUX: 5})))
    assert check.status is Outcome.FAIL
    assert f"msr.{TSC_AUX} 0x0 → 0x5" in check.reason


def test_only_the_vcpu_that_differs_is_named() -> None:
    rows = (before(0), before(1), after(0), after(1, changes={("regs", 0): b"\x01"}))
    check = check_of(make_evidence(*rows), make_plan(vcpus=2))
    assert check.status is Outcome.FAIL
    assert "vCPU 1: regs.rax" in check.reason and "vCPU 0" not in check.reason


@pytest.mark.parametrize("register", MAY_DIFFER)
def test_what_may_differ_has_a_reason_and_passes(register: str) -> None:
    places = {
        "xsave.mxcsr_mask": ("xsave", 28), "events.interrupt.shadow": ("events", 11),
        "clock.clock": ("clock", 0), "clock.flags": ("clock", 8), "clock.realtime": ("clock", 16),
        "clock.host_tsc": ("clock", 24), "tsc_offset.cycles": ("tsc_offset", 0),
        "lapic.390": ("lapic", 0x390),
    }  # fmt: skip
    if register.startswith("msr."):
        index = register.removeprefix("msr.")
        rows = (before(msrs={index: 1}), after(msrs={index: 2}))
    else:
        rows = (before(), after(changes={places[register]: b"\x09"}))
    assert check_of(make_evidence(*rows)).status is Outcome.PASS
    assert len(MAY_DIFFER[register].split()) > 3


@pytest.mark.parametrize(
    ("ahead_ns", "status"),
    [
        (0, Outcome.PASS),
        (AFTER_NS - BEFORE_NS, Outcome.PASS),
        (-19 * MS, Outcome.PASS),
        (-21 * MS, Outcome.FAIL),
        (2 * (AFTER_NS - BEFORE_NS), Outcome.FAIL),
        (1 << 40, Outcome.FAIL),
    ],
)
def test_tsc_goes_on_from_the_moment_of_the_stop_and_no_faster_than_time(
    ahead_ns: int, status: Outcome
) -> None:
    tsc = max(0, TSC + ahead_ns * KHZ // 10**6)
    check = check_of(make_evidence(before(), after(msrs={"10": tsc})))
    assert check.status is status
    assert ("the TSC went from" in check.reason) is (status is Outcome.FAIL)


def test_vcpu_may_have_stopped_as_early_as_it_was_told_to() -> None:
    back = after(msrs={"10": TSC - 50 * MS * KHZ // 10**6})
    evidence = make_evidence(before(), back)
    assert check_of(evidence).status is Outcome.FAIL
    began = BASE + make.PAUSED_NS - 40 * MS
    pause = Phase(hop=1, name="pause", guest="vm0", began_ns=began, ended_ns=BASE + make.PAUSED_NS)
    phases = (*evidence.hops[0].phases, pause)
    assert check_of(make.with_hop(evidence, phases=phases)).status is Outcome.PASS


def test_number_of_an_exception_counts_only_while_there_is_one() -> None:
    stale = after(changes={("events", 1): b"\xff", ("events", 9): b"\xff"})
    assert check_of(make_evidence(before(), stale)).status is Outcome.PASS
    for flag in (0, 3):
        there = {("events", flag): b"\x01"}
        rows = (before(changes=there), after(changes={**there, ("events", 1): b"\xff"}))
        check = check_of(make_evidence(*rows))
        assert check.status is Outcome.FAIL
        assert "events.exception.nr 0x0 → 0xff" in check.reason


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ((), "no evidence of the state of vCPUs"),
        ((before(),), "no evidence of the state of vCPUs after the update"),
        ((after(),), "no evidence of the state of vCPUs before the update"),
        ((before(), after(), after()), "states of vCPUs [0, 0] after the update"),
        ((before(), after(1)), "states of vCPUs [1] after the update"),
        ((after(), before()), "not in the order in which they came"),
        (
            (make_vcpu("before", BASE, 0), after()),
            "its state was not read between pause and resume",
        ),
        (
            (before(), make_vcpu("after", BASE + make.RESUMED_NS + 1, 0)),
            "its state was not read between pause and resume",
        ),
        ((before(msrs={"11": 0}), after()), "msr.11 known before the update only"),
    ],
)
def test_state_that_is_missing_or_odd_is_an_error(rows: Sequence[VcpuState], reason: str) -> None:
    check = check_of(make_evidence(*rows))
    assert check.status is Outcome.ERROR
    assert reason in check.reason


@pytest.mark.parametrize("name", ["regs", "xsave", "lapic", "tsc_khz"])
def test_no_whole_class_is_exempt(name: str) -> None:
    rows = tuple(
        replace(row, classes={k: v for k, v in row.classes.items() if k != name},
                refused={name: "EINVAL"})
        for row in (before(), after())
    )  # fmt: skip
    check = check_of(make_evidence(*rows))
    assert check.status is Outcome.ERROR
    assert f"{name} was not read: EINVAL" in check.reason


def test_msr_that_only_the_incoming_kernel_knows_is_no_difference() -> None:
    check = check_of(make_evidence(before(refused={"msr 11": "not read"}), after(msrs={"11": 5})))
    assert check.status is Outcome.PASS
    assert "1 MSRs that the outgoing KVM does not know" in check.reason


def test_flags_of_a_segment_that_is_unusable_do_not_count_its_base_does() -> None:
    unusable = {("sregs2", 24 + 22): b"\x01"}
    typed = {**unusable, ("sregs2", 24 + 14): b"\x01"}
    assert check_of(make_evidence(before(changes=unusable), after(changes=typed))).status is (
        Outcome.PASS
    )
    moved = {**unusable, ("sregs2", 24): b"\x01"}
    check = check_of(make_evidence(before(changes=unusable), after(changes=moved)))
    assert check.status is Outcome.FAIL
    assert "sregs2.ds.base 0x0 → 0x1" in check.reason


@pytest.mark.parametrize(
    ("cycles", "status"), [(0, Outcome.PASS), (KHZ, Outcome.PASS), (2 * KHZ, Outcome.FAIL)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_tscs_of_two_vcpus_stay_as_far_apart_as_they_were(
    cycles: int, sign: int, status: Outcome
) -> None:
    def offset(value: int) -> dict[tuple[str, int], bytes]:
        return {("tsc_offset", 0): (value % (1 << 64)).to_bytes(8, "little")}

    rows = (
        before(0, changes=offset(-50)),
        before(1, changes=offset(-70)),
        after(0, changes=offset(-900)),
        after(1, changes=offset(-920 + sign * cycles)),
    )
    check = check_of(make_evidence(*rows), make_plan(vcpus=2))
    assert check.status is status
    assert ("vCPU 1: its TSC moved by" in check.reason) is (status is Outcome.FAIL)


def test_class_of_another_length_is_an_error() -> None:
    odd = replace(after(), classes={**after().classes, "regs": "00"})
    check = check_of(make_evidence(before(), odd))
    assert check.status is Outcome.ERROR
    assert "class 'regs' has 1 bytes" in check.reason


def test_vcpus_without_a_tsc_are_an_error() -> None:
    rows = [replace(row, msrs={}) for row in (before(), after())]
    check = check_of(make_evidence(*rows))
    assert check.status is Outcome.ERROR
    assert "its TSC was not read" in check.reason


def test_moments_that_are_not_known_are_an_error() -> None:
    evidence = make.with_hop(make_evidence(before(), after()), paused_ns={})
    assert check_of(evidence).status is Outcome.ERROR


def test_file_that_cannot_be_read_is_an_error_that_names_it() -> None:
    evidence = replace(make_evidence(before(), after()), unreadable={PATH: "altered"})
    check = check_of(evidence)
    assert check.status is Outcome.ERROR
    assert PATH in check.reason


def test_guest_that_was_lost_is_no_failure_here() -> None:
    lost = Incident(kind="restore-failed", hop=1, text="the VMM ended", guest="vm0")
    check = check_of(replace(make_evidence(before()), incidents=(lost,)))
    assert check.status is Outcome.SKIP


def test_guest_that_was_rolled_back_went_on() -> None:
    refused = Incident(kind="freeze-refused", hop=1, text="refused")
    evidence = replace(make_evidence(before()), incidents=(refused,), rolled_back=True)
    assert check_of(evidence).status is Outcome.SKIP


def test_runs_of_an_earlier_version_and_runs_without_it_are_skipped() -> None:
    for left_out in (UNSET, False):
        plan = replace(make.make_plan(), vcpu_state=left_out)
        assert check_of(make_evidence(), plan).status is Outcome.SKIP


def test_registers_that_may_differ_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[4] / "docs" / "judging.md").read_text(encoding="utf-8")
    for register, reason in MAY_DIFFER.items():
        assert f"| `{register}` | {reason} |" in text
