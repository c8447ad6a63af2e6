# SPDX-License-Identifier: Apache-2.0
"""Each kind of contradiction is found and named, and makes a run an ERROR that would pass."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from liveupdate.judging import contradictions
from liveupdate.judging.context import Context
from liveupdate.judging.contradictions import find_contradictions
from liveupdate.judging.judge import judge
from liveupdate.model.evidence import (
    AgentPing,
    Evidence,
    HopEvidence,
    IommuEvidence,
    SessionFacts,
    Watched,
)
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Outcome
from tests.support import evidence_builder as make
from tests.support import iommu_evidence as seen
from tests.support.evidence_builder import MS, SECOND

PLAN, GOOD = make.make_plan(), make.make_evidence()
SEEN_PLAN, SEEN = seen.make_plan(), seen.make_evidence()
FAR = 1000 * SECOND


def find(plan: Plan, evidence: Evidence) -> list[str]:
    return [finding.reason for finding in find_contradictions(Context(plan, evidence))]


def origin(**changes: object) -> Evidence:
    assert GOOD.provenance is not None
    return replace(GOOD, provenance=replace(GOOD.provenance, **changes))


def first(evidence: Evidence = GOOD) -> HopEvidence:
    return evidence.hops[0]


def before(**changes: object) -> Evidence:
    facts = first().before
    assert facts is not None
    return make.with_hop(GOOD, before=replace(facts, **changes))


def each(name: str, change: Callable[[Any], Any], evidence: Evidence = GOOD) -> Evidence:
    """Change all rows of a series of the guest."""
    return make.with_trace(evidence, **{name: change(getattr(first(evidence).guests[0], name))})


def nth(name: str, at: int, **changes: Any) -> Evidence:
    """Change one row of a series of the guest."""
    rows = list(getattr(first().guests[0], name))
    rows[at] = replace(rows[at], **changes)
    return make.with_trace(GOOD, **{name: tuple(rows)})


def session(**changes: object) -> Evidence:
    agents, *rest = first().sessions
    return make.with_hop(GOOD, sessions=(replace(agents, **changes), *rest))


def phase(**changes: object) -> Evidence:
    one, *rest = first().phases
    return make.with_hop(GOOD, phases=(replace(one, **changes), *rest))


def table(name: str, **changes: object) -> Evidence:
    return make.with_memory(GOOD, **{name: replace(getattr(first().memory[0], name), **changes)})


def iommu() -> IommuEvidence:
    found = first(SEEN).iommu
    assert found is not None
    return found


def watch(**changes: object) -> Evidence:
    found = iommu().watch
    assert found is not None
    return seen.spoil(SEEN, watch=replace(found, **changes))


def sample(**changes: object) -> Evidence:
    rows = list(iommu().samples)
    rows[3] = replace(rows[3], **changes)
    return seen.spoil(SEEN, samples=tuple(rows))


def binding(**changes: object) -> Evidence:
    one, *rest = iommu().bindings
    return seen.spoil(SEEN, bindings=(replace(one, **changes), *rest))


def mapping(**changes: object) -> Evidence:
    one, *rest = iommu().mappings
    return seen.spoil(SEEN, mappings=(replace(one, **changes), *rest))


def scan(name: str, **changes: object) -> Evidence:
    return make.with_trace(GOOD, **{name: replace(make.make_scan(1000), **changes)})


WATCHED = Watched(began_ns=100 * SECOND, ended_ns=108 * SECOND, longest_hole_ns=8 * MS)
TWO_HOPS = make.make_evidence(hops=2)

#: the start of a message, and what it is about; of the default plan and of one with a device
DEFAULT: tuple[tuple[str, Evidence], ...] = (
    ("provenance.json names other images", origin(images={"outgoing": "aa"})),
    ("the plan says 'tcg', the machine ran under 'kvm'", origin(accel="kvm", kvm_enabled=True)),
    ("'tcg' and query-kvm do not fit", origin(kvm_enabled=True)),
    ("provenance.json does not say what the machine was", origin(qemu_version="")),
    ("QEMU's command line has no 'tcg'", origin(qemu_argv=("qemu", "-accel", "kvm"))),
    ("provenance.json does not say what was run", origin(started_utc="")),
    ("the hops are not those of the plan", TWO_HOPS),
    ("a fault 'flip-bit' struck", make.with_hop(GOOD, struck=(make.make_struck("flip-bit"),))),
    ("hop 1: the outgoing kernel has no boot id", before(boot_id="")),
    ("hop 1: the outgoing kernel was not started with 'console=ttyS0'", before(cmdline="quiet")),
    ("hop 1: generation 1 and whether KHO", make.with_after(GOOD, kho_found=False)),
    ("hop 1: the outgoing kernel has no /dev/liveupdate", before(liveupdate=False)),
    ("hop 1: the outgoing kernel does not say what memory", before(scratch_bytes=None)),
    ("hop 1: the incoming kernel has nothing preserved", make.with_after(GOOD, preserved_bytes=0)),
    ("hop 1: a kernel's TSC rate is not known", before(tsc_khz=None)),
    ("hop 1: the outgoing kernel has 0 bytes of free memory", before(mem_free_bytes=0)),
    ("hop 1: the outgoing kernel has preserved -1 bytes", before(preserved_bytes=-1)),
    ("hop 1: the outgoing kernel's TSC has 0 kHz", before(tsc_khz=0)),
    ("hop 1: guest vm0 is there twice", make.with_hop(GOOD, guests=first().guests * 2)),
    ("hop 1: there is no session 'lu.agent'", make.with_hop(GOOD, sessions=first().sessions[1:])),
    ("hop 1: session 'lu.agent' has 0 tokens", session(tokens=0)),
    ("hop 1: session 'lu.agent' took longer than", session(retrieve_ns=5 * SECOND)),
    ("hop 1: phase 'prepare' is of hop 2, ''", phase(hop=2)),
    ("hop 1: phase 'prepare' ended before it began", phase(began_ns=FAR)),
    ("hop 1: 'vm0' was resumed before", make.with_hop(GOOD, paused_ns={"vm0": FAR})),
    ("hop 1, vm0: the table of freeze is in another file", table("freeze", pages=9)),
    ("hop 1, vm0: the table of boot has 9 pages", table("boot", pages=9)),
    ("hop 1, vm0: the pass of boot ended before it began", table("boot", began_ns=FAR)),
    (
        "hop 1, vm0: it was watched for less than nothing",
        make.with_trace(GOOD, watched=replace(WATCHED, longest_hole_ns=9 * SECOND)),
    ),
    ("hop 1, vm0: a tick is out of order", each("ticks", lambda rows: rows[::-1])),
    ("hop 1, vm0: a tick is from outside the time", nth("ticks", -1, host_ns=FAR)),
    ("hop 1, vm0: a journal sample is out of order", each("journal", lambda rows: rows[::-1])),
    ("hop 1, vm0: a journal sample is from outside", nth("journal", -1, host_ns=FAR)),
    (
        "hop 1, vm0: a answer is out of order",
        make.with_trace(GOOD, agent_pings=(AgentPing(host_ns=1, realtime_ns=1),) * 2),
    ),
    ("hop 1, vm0: a echo is out of order", each("echoes", lambda rows: rows[::-1])),
    ("hop 1, vm0: a echo is from outside", nth("echoes", -1, sent_ns=FAR, received_ns=FAR)),
    ("hop 1, vm0: echoes are missing", each("echoes", lambda rows: (*rows[:5], *rows[6:]))),
    ("hop 1, vm0: echo 10003 was answered before", nth("echoes", 3, received_ns=1)),
    ("hop 1, vm0: echoes come from another boot", nth("echoes", 3, boot=77)),
    ("hop 1, vm0: the journal had a record that its first", scan("journal_before", first_seq=1001)),
    ("hop 1, vm0: the journal was not looked at", each("journal", lambda rows: rows[-9:])),
    ("hop 1, vm0: the newest record of the journal became", nth("journal", 9, seq=1)),
    ("hop 1, vm0: the journal had a record that its last", nth("journal", -1, seq=1 << 20)),
    ("hop 1, vm0: a scan of the journal has more records", scan("journal_after", records=1001)),
)

WITH_DEVICE: tuple[tuple[str, Evidence], ...] = (
    ("hop 1: the IOMMU is 'amd', planned was 'intel'", watch(unit="amd")),
    ("hop 1: 9 samples of the IOMMU were taken, 350 are there", watch(samples=9)),
    (
        "hop 1: samples of the IOMMU are farther apart",
        seen.spoil(SEEN, samples=(*iommu().samples[:100], *iommu().samples[110:])),
    ),
    ("hop 1: the IOMMU was watched for less than nothing", watch(cpu_ns=-1)),
    ("hop 1: QEMU's trace has more events than lines", watch(trace_lines=1)),
    ("hop 1: a sample of the IOMMU is out of order", sample(host_ns=1)),
    ("hop 1: a register of the IOMMU has more bits", sample(gsts=1 << 40)),
    ("hop 1: a sample of the IOMMU cannot be", sample(rtaddr=0)),
    ("hop 1: a requester was watched that is none of", binding(requester="0000:09:00.0")),
    ("hop 1: 0000:01:00.0: page tables at 0x0 with 4 levels", binding(top=0)),
    ("hop 1: a binding of the IOMMU is out of order", binding(host_ns=FAR)),
    ("hop 1: a event of the IOMMU", seen.spoil(SEEN, events=iommu().events[::-1])),
    ("hop 1: tables or configuration spaces are from another time", mapping(taken_ns=0)),
    ("hop 1: nic0 is there twice", seen.spoil(SEEN, devices=iommu().devices * 2)),
    (
        "hop 1: configuration spaces are not those of",
        seen.spoil(SEEN, configs=iommu().configs[1:2]),
    ),
    ("hop 1: a table of mappings is in another file", mapping(runs=b"")),
    ("hop 1: a walk of the tables took longer", mapping(took_ns=FAR)),
)


def test_what_is_true_has_no_contradiction() -> None:
    assert find(PLAN, GOOD) == [] and find(SEEN_PLAN, SEEN) == []
    assert find(make.make_plan(hops=2), TWO_HOPS) == []


@pytest.mark.parametrize(("said", "evidence"), DEFAULT, ids=[said for said, _ in DEFAULT])
def test_contradiction_is_named(said: str, evidence: Evidence) -> None:
    wanted = f"the evidence contradicts itself: {said}"
    assert any(reason.startswith(wanted) for reason in find(PLAN, evidence)), find(PLAN, evidence)


@pytest.mark.parametrize(("said", "evidence"), WITH_DEVICE, ids=[said for said, _ in WITH_DEVICE])
def test_contradiction_of_what_was_seen_of_a_device_is_named(said: str, evidence: Evidence) -> None:
    wanted = f"the evidence contradicts itself: {said}"
    found = find(SEEN_PLAN, evidence)
    assert any(reason.startswith(wanted) for reason in found), found


def test_hop_that_begins_in_another_boot_than_the_last_ended_in_is_named() -> None:
    facts = TWO_HOPS.hops[1].before
    assert facts is not None
    evidence = make.with_hop(TWO_HOPS, 2, before=replace(facts, boot_id="elsewhere"))
    (found,) = find(make.make_plan(hops=2), evidence)
    assert found.endswith("hop 2 begins in another boot than hop 1 ended in")


def test_every_message_has_a_case() -> None:
    """Each message begins with words that some case above looks for."""
    messages: list[str] = []
    for node in ast.walk(ast.parse(inspect.getsource(contradictions))):
        value = node.value if isinstance(node, ast.Yield) else None
        if isinstance(value, ast.Constant):
            messages.append(str(value.value))
        elif isinstance(value, ast.JoinedStr):
            texts = [part.value for part in value.values if isinstance(part, ast.Constant)]
            messages.append(max((str(text) for text in texts), key=len))
    asked = [said for said, _ in (*DEFAULT, *WITH_DEVICE)]
    asked.append("hop 2 begins in another boot than hop 1 ended in")
    assert len(messages) > 45
    reached = [
        reason
        for plan, cases in ((PLAN, DEFAULT), (SEEN_PLAN, WITH_DEVICE))
        for _, evidence in cases
        for reason in find(plan, evidence)
    ]
    reached += asked
    assert [text for text in messages if not any(text in reason for reason in reached)] == []


@pytest.mark.parametrize(
    "evidence",
    [
        origin(accel="kvm", kvm_enabled=True, qemu_argv=("qemu", "-accel", "kvm")),
        before(cmdline="quiet"),
    ],
)
def test_what_contradicts_a_pass_is_an_error(evidence: Evidence) -> None:
    verdict = judge(PLAN, evidence)
    assert verdict.outcome is Outcome.ERROR
    assert "the evidence contradicts itself" in verdict.reason


def test_echoes_from_another_boot_than_the_ticks_are_no_pass() -> None:
    other = each("echoes", lambda rows: tuple(replace(row, boot=row.boot and 77) for row in rows))
    verdict = judge(PLAN, other)
    assert verdict.outcome is Outcome.FAIL
    assert "replies come from another boot of the guest" in verdict.reason


def test_session_of_a_device_that_was_not_retrieved_is_a_loss() -> None:
    lost = SessionFacts(name="lu.device.nic0", error="EIO", tokens=1, retrieve_ns=1)
    verdict = judge(SEEN_PLAN, make.with_hop(SEEN, sessions=(*first(SEEN).sessions, lost)))
    assert verdict.outcome is Outcome.FAIL
    assert "session 'lu.device.nic0' was not retrieved: EIO" in verdict.reason


def test_records_that_are_gone_between_two_hops_are_a_loss() -> None:
    late = make.make_scan(1400)
    evidence = make.with_trace(TWO_HOPS, 2, "vm0", journal_before=late)
    evidence = make.with_trace(evidence, 1, "vm0", journal_after=make.make_scan(2000))
    assert judge(make.make_plan(hops=2), evidence).outcome is not Outcome.PASS
