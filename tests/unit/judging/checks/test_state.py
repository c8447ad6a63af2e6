# SPDX-License-Identifier: Apache-2.0
"""handover.state is green for one thing only: the same VM state in every view of it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from liveupdate.judging.judge import judge
from liveupdate.model.evidence import Evidence, Incident, SessionFacts
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import GuestSpec
from liveupdate.model.verdict import Check, Outcome
from liveupdate.model.vm_state import StateFacts, StateSeen, StateSum
from tests.support import evidence_builder as make
from tests.support.evidence_builder import SECOND
from tests.support.mutants import mutants

CHECK = "handover.state"
GOOD = make.make_state(1)
OTHER = "f" * 32
assert GOOD.saved and GOOD.freeze and GOOD.boot and GOOD.read and GOOD.hello_ns
LONG = replace(GOOD.saved, state_bytes=20480)
LOST = Incident(kind="restore-failed", hop=1, guest="vm0", text="it was not loaded")


def check_of(evidence: Evidence, plan: Plan | None = None) -> Check:
    verdict = judge(plan or make.make_plan(), evidence)
    return next(check for check in verdict.checks if check.id == CHECK)


def spoil(*incidents: Incident, plan: Plan | None = None, **changes: Any) -> Check:
    """Judge one hop with other facts of the state."""
    evidence = make.with_memory(make.make_evidence(), state=replace(GOOD, **changes))
    return check_of(replace(evidence, incidents=incidents), plan)


def differ(of: StateSum | StateSeen | None) -> Any:
    assert of is not None
    return replace(of, state_digest=OTHER)


def test_the_same_state_from_both_sides_passes() -> None:
    check = check_of(make.make_evidence(hops=2), make.make_plan(hops=2))
    assert check.status is Outcome.PASS
    assert "16384 bytes" in check.reason and "seen from outside" in check.reason


def test_without_a_view_from_outside_both_agents_are_compared() -> None:
    plan = replace(make.make_plan(), target="ssh")
    check = spoil(freeze=None, boot=None, hello_ns=None, plan=plan)
    assert check.status is Outcome.PASS
    assert "not seen from outside" in check.reason
    assert spoil(read=differ(GOOD.read), plan=plan).status is Outcome.FAIL


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"read": differ(GOOD.read)}, ("digest", OTHER, f"saved was {1:032x}")),
        ({"saved": LONG}, ("length is 16384 bytes", "saved was 20480 bytes")),
        ({"read": replace(GOOD.read, state_bytes=0)}, ("length is 0 bytes",)),
        # both: of the length, the digest is only a consequence
        ({"read": StateSum(state_bytes=4096, state_digest=OTHER)}, ("length is 4096 bytes",)),
    ],
)
def test_a_state_that_came_over_otherwise_fails_and_says_what(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    check = spoil(LOST, **changes)
    assert check.status is Outcome.FAIL
    assert all(word in check.reason for word in words), check.reason
    assert check.observed and check.expected and check.evidence


def test_a_state_that_no_agent_got_is_judged_by_what_lay_in_memory() -> None:
    """The mechanism refuses what fails its own checksum, so the agent never reads it."""
    check = spoil(LOST, read=None, boot=differ(GOOD.boot))
    assert check.status is Outcome.FAIL
    assert "as seen from outside after the kexec its digest" in check.reason
    # the same with the place unknown: nothing is known of the state, and its guest is lost
    assert spoil(LOST, read=None, freeze=None, boot=None).status is Outcome.SKIP
    # what was seen at the freeze was not the state: nothing follows from what is there now
    places = {"freeze": differ(GOOD.freeze), "boot": differ(GOOD.boot)}
    assert spoil(LOST, read=None, **places).status is Outcome.SKIP


def test_one_guest_fails_and_the_reason_names_it() -> None:
    names = ("vm0", "vm1")
    guests = tuple(
        GuestSpec(name=name, memory_bytes=make.GUEST_BYTES, pattern_bytes=make.GUEST_BYTES // 2)
        for name in names
    )
    evidence = make.make_evidence(guests=names)
    state = replace(GOOD, read=differ(GOOD.read))
    check = check_of(
        make.with_memory(evidence, 1, "vm1", state=state), make.make_plan(guests=guests)
    )
    assert check.status is Outcome.FAIL
    assert "hop 1, vm1:" in check.reason and "vm0" not in check.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"saved": None}, "at the freeze"),
        ({"read": None}, "before it was loaded"),
        ({"freeze": None}, "from outside at the freeze"),
        ({"boot": None}, "from outside after the kexec"),
        ({"hello_ns": None}, "hello"),
        ({"saved": replace(GOOD.saved, state_digest="")}, "is empty"),
        ({"freeze": differ(GOOD.freeze)}, "contradict"),
        ({"boot": differ(GOOD.boot)}, "contradict"),
        ({"boot": replace(GOOD.boot, state_bytes=1)}, "contradict"),
        ({"hello_ns": GOOD.boot.ended_ns - 1}, "too little CPU time"),
        ({"hello_ns": GOOD.hello_ns + 9 * SECOND}, "out of order"),
        ({"freeze": replace(GOOD.freeze, began_ns=1)}, "out of order"),
        ({"boot": replace(GOOD.boot, began_ns=GOOD.freeze.began_ns)}, "out of order"),
    ],
)
def test_what_was_not_seen_or_cannot_be_is_an_error(changes: dict[str, Any], words: str) -> None:
    check = spoil(**changes)
    assert check.status is Outcome.ERROR
    assert words in check.reason


def test_no_evidence_at_all_is_an_error() -> None:
    assert check_of(make.with_memory(make.make_evidence(), state=None)).status is Outcome.ERROR
    assert check_of(make.with_hop(make.make_evidence(), memory=())).status is Outcome.ERROR
    unpaused = make.with_hop(make.make_evidence(), paused_ns={})
    assert check_of(unpaused).status is Outcome.ERROR


def test_a_state_that_was_lost_with_its_session_or_kernel_is_skipped() -> None:
    lost = SessionFacts(name="lu.guest.vm0", error="gone", tokens=0, retrieve_ns=0)
    evidence = make.with_hop(make.make_evidence(), sessions=(lost,))
    evidence = make.with_memory(evidence, state=replace(GOOD, read=None))
    assert check_of(evidence).status is Outcome.SKIP
    panic = Incident(kind="panic", hop=1, text="no init")
    assert spoil(panic, read=None).status is Outcome.SKIP


def test_a_hop_that_was_rolled_back_has_nothing_to_compare() -> None:
    evidence = replace(make.make_evidence(), rolled_back=True)
    assert check_of(evidence).status is Outcome.SKIP


def test_a_run_of_a_version_without_the_check_is_skipped_and_says_so() -> None:
    plan = replace(make.make_plan(), state_digests=UNSET)
    check = check_of(make.with_memory(make.make_evidence(), state=None), plan)
    assert check.status is Outcome.SKIP
    assert "no digest of the VM state" in check.reason
    # not by the evidence: a run that was to take digests and has none is an error
    assert spoil(saved=None).status is Outcome.ERROR


def test_no_field_of_a_state_can_be_altered_in_a_pass() -> None:
    plan, evidence = make.make_plan(), make.make_evidence()
    # the plain fields of a state only: the others have tests of their own
    bare = replace(
        make.make_evidence().hops[0],
        memory=(replace(evidence.hops[0].memory[0], freeze=None, boot=None),),
    )
    done = {
        (place, what): mutant
        for place, what, mutant in mutants(replace(evidence, hops=(bare,)))
        if ".state." in place or place.endswith(".state")
    }
    assert len(done) > 30
    fields = {place.rpartition(".")[2] for place, _ in done}
    assert fields >= {*StateSum.__struct_fields__, *StateSeen.__struct_fields__, "hello_ns"}
    for (place, what), mutant in done.items():
        assert check_of(mutant, plan).status is not Outcome.PASS, (place, what)
    assert isinstance(GOOD, StateFacts)
