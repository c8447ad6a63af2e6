# SPDX-License-Identifier: Apache-2.0
"""The runner, the hop engine and the observers on a fake host: what comes after what, what becomes
of an error at any place, what is stored then, and that nothing is left behind.
"""

from __future__ import annotations

import base64
import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from liveupdate.core import deadline
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import (
    DeadlineExceeded,
    EvidenceError,
    LostMachine,
    OutcomeUnknown,
    RemoteError,
)
from liveupdate.evidence import RunDir
from liveupdate.faults.table import FAULTS
from liveupdate.model.evidence import Evidence, Incident
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import Observation, Scenario
from liveupdate.model.verdict import Outcome
from liveupdate.probes.liveness import EchoWatcher, JournalWatcher, TickWatcher
from liveupdate.run.live import LiveHop
from liveupdate.run.runner import RunResult
from liveupdate.run.strikes import Strikes
from liveupdate.target.base import Host
from liveupdate.target.fake.machine import Refusal
from liveupdate.transport.agent_link import AgentLink
from tests.support.fake_run import ACCEL_REASON, ARGV, FakeRun, leftovers, quick_plan

#: long enough to tell the rate of a clock
WHOLE = Observation(before_s=0.5, after_s=0.7)
#: how long an incoming kernel takes that is looked at before its agent has begun
BOOT_S = 0.3
NO_ROOT = "VFS: Unable to mount root fs on unknown-block({})"

#: the calls of one hop in order, and the step that each belongs to
CALLS = (
    ("facts", "observe-before"),
    ("prepare", "brownout"),
    ("costs", "brownout"),
    ("kho_map", "brownout"),
    ("pfns", "brownout"),
    ("load_kernel", "brownout"),
    ("ping", "blackout"),
    ("jump", "blackout"),
    ("set_nonce", "blackout"),
    ("facts", "finish"),
    ("costs", "finish"),
    ("guest_status", "finish"),
    ("pfns", "finish"),
    ("payload", "finish"),
    ("finish", "finish"),
)
HOP_STEPS = ("observe-before", "brownout", "blackout", "observe-after", "finish")
BRING_UP_CALLS = ("set_time", "set_nonce", "start_guests", "pfns")


@pytest.fixture
def made(in_ram: Path) -> Iterator[FakeRun]:
    sockets = in_ram / "s"
    sockets.mkdir()
    run = FakeRun(root=sockets, results=in_ram / "runs")
    before = leftovers(sockets)
    yield run
    # whatever happened in the test
    assert leftovers(sockets) == before


class Answered(Exception):
    """The call is answered with this, and not by the agent."""

    def __init__(self, answer: Mapping[str, object]) -> None:
        super().__init__()
        self.answer = answer


class Strike:
    """Raises at one call of the agent's, the ``nth`` of that name from the first hop on."""

    def __init__(self, name: str, nth: int, error: Callable[[], BaseException]) -> None:
        self.name, self.left, self.error = name, nth, error

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = AgentLink.call

        def call(
            link: AgentLink,
            name: str,
            args: Mapping[str, object] | None = None,
            deadline: Deadline | None = None,
        ) -> Mapping[str, object]:
            if name == self.name:
                self.left -= 1
                if self.left < 0:
                    error = self.error()
                    if isinstance(error, Answered):
                        return error.answer
                    raise error
            return real(link, name, args, deadline)

        monkeypatch.setattr(AgentLink, "call", call)


def strike(monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException]) -> None:
    """Have call number ``at`` of :data:`CALLS` fail, and all of that name after it."""
    name = CALLS[at][0]
    nth = BRING_UP_CALLS.count(name) + [each for each, _ in CALLS[:at]].count(name)
    Strike(name, nth, error).install(monkeypatch)


def kinds(result: RunResult) -> list[tuple[str, int]]:
    return [(each.kind, each.hop) for each in result.evidence.incidents]


def statuses(result: RunResult) -> dict[str, str]:
    return {check.id: check.status.value for check in result.verdict.checks}


def assert_watched(evidence: Evidence, hop: int = 1) -> None:
    """What watches the guests from outside was stored for as long as there was anything to see."""
    trace = evidence.hops[hop - 1].guests[0]
    assert evidence.hops[hop - 1].number == hop
    assert trace.ticks and trace.watched is not None
    # an error right at the beginning leaves no time for these
    assert evidence.hops[hop - 1].before is None or (trace.echoes and trace.journal)


# --- all is well


def test_two_hops_pass_and_their_steps_come_in_order(made: FakeRun) -> None:
    made.plan = quick_plan(hops=2, guests=2, observe=WHOLE)
    # VM states are read from outside before an incoming agent has them, on a busy machine too
    made.script.kernel_s = BOOT_S
    result = made.run()
    assert (result.verdict.reason, result.evidence.incidents) == ("", ())
    assert result.verdict.outcome is Outcome.PASS
    assert made.steps("start") == ["bring-up", "boot-host", "boot-guests", *HOP_STEPS, *HOP_STEPS]
    assert made.steps("failed") == [] and made.steps("note") == []
    expected = [name for name, _ in CALLS for _ in range(2 if name in ("pfns", "payload") else 1)]
    brought = ["set_time", "set_nonce", "start_guests", "pfns", "pfns"]
    assert made.machine.calls == [*brought, *expected, *expected]
    for hop in result.evidence.hops:
        assert set(hop.paused_ns) == set(hop.resumed_ns) == {"vm0", "vm1"}
        names = {phase.name for phase in hop.phases if not phase.guest}
        assert names == {"prepare", "load", "freeze", "outgoing", "kernel", "blackout-host"}
        for memory in hop.memory:
            assert memory.freeze is not None and memory.boot is not None
            assert memory.freeze.ended_ns < memory.boot.began_ns
        for trace in hop.guests:
            names = {phase.name for phase in hop.phases if phase.guest == trace.guest}
            assert names >= {"pause", "save", "retrieve", "load-state", "resume", "first-tick"}
            assert trace.journal_before is not None and trace.journal_after is not None
            assert trace.pattern is not None and trace.pattern.bad == 0
    origin = result.evidence.provenance
    assert origin is not None and (origin.argv, origin.accel_reason) == (ARGV, ACCEL_REASON)
    assert [path.name for path in sorted(result.run_dir.glob("boot-*"))] == [
        "boot-0", "boot-1", "boot-2",
    ]  # fmt: skip


def test_a_host_that_is_not_seen_from_outside_tells_what_it_can(made: FakeRun) -> None:
    made.is_blind = True
    plan = quick_plan(observe=WHOLE)
    unseen = (("guest.network", "no wire"), ("guest.storage", "no disk"))
    made.plan = replace(plan, target="ssh", skips=(*plan.skips, *unseen))
    result = made.run()
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.PASS, "")
    (memory,) = result.evidence.hops[0].memory
    assert memory.freeze is not None and memory.boot is not None
    assert memory.freeze.digests == memory.boot.digests != b""
    assert result.evidence.hops[0].guests[0].echoes == ()
    assert "read_ram" in made.machine.calls


# --- an error at each call

ERRORS: Mapping[str, Callable[[], Exception]] = {
    "deadline": lambda: DeadlineExceeded("the test", 0.1),
    "lost-agent": lambda: LostMachine("the channel ended", how="no-answer"),
    "harness": lambda: OutcomeUnknown("cut off"),
}
#: an agent that refuses these, or a pattern that is not verified, is noted and no end
SOFT = {
    ("costs", "brownout"): "costs-not-told",
    ("kho_map", "brownout"): "handover-not-walked",
    ("costs", "finish"): "costs-not-told",
    ("pfns", "finish"): "",
    ("payload", "finish"): "pattern-not-verified",
    ("finish", "finish"): "",
}


#: the first call of each step with every kind, and every call with one
FIRST = {at for at in range(len(CALLS)) if at == 0 or CALLS[at][1] != CALLS[at - 1][1]}
FAILURES = [
    pytest.param(at, kind, id=f"{CALLS[at][0]}-{CALLS[at][1]}-{kind}")
    for at in range(len(CALLS))
    for number, kind in enumerate(ERRORS)
    if at in FIRST or at % len(ERRORS) == number
]


@pytest.mark.parametrize(("at", "kind"), FAILURES)
def test_an_error_at_any_call_is_an_incident_of_its_hop_and_the_evidence_is_stored(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch, at: int, kind: str
) -> None:
    made.plan = quick_plan(hops=2)
    name, step = CALLS[at]
    strike(monkeypatch, at, ERRORS[kind])
    result = made.run()
    assert_watched(result.evidence)
    if name == "ping" and kind == "deadline":
        kind = "lost-agent"  # a guest that answers no ping is gone
    if name == "payload" and kind != "harness":
        assert "pattern-not-verified" in made.steps("note")
        assert kinds(result) == []
        return
    assert kinds(result) == [(kind, 1)]
    assert [hop.number for hop in result.evidence.hops] == [1]
    assert result.verdict.outcome is not Outcome.PASS
    assert made.steps("failed") == [step]
    assert made.steps("start")[3:] == list(HOP_STEPS[: HOP_STEPS.index(step) + 1])
    # what was seen before
    phases = {phase.name for phase in result.evidence.hops[0].phases}
    assert ("prepare" in phases) == (at > 1)
    assert ("load" in phases) == (at > 5)
    assert ("outgoing" in phases) == (at > 7)
    assert (result.evidence.hops[0].before is not None) == (at > 0)
    assert made.record.load_evidence().incidents == result.evidence.incidents


@pytest.mark.parametrize("at", range(len(CALLS)), ids=[f"{c}-{step}" for c, step in CALLS])
def test_a_refusal_at_any_call_ends_the_run_or_is_noted(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    name, step = CALLS[at]
    strike(monkeypatch, at, lambda: RemoteError(name, "errno", "no"))
    result = made.run()
    assert_watched(result.evidence)
    if CALLS[at] in SOFT:
        assert kinds(result) == []
        assert made.steps("start")[3:] == list(HOP_STEPS)
        assert made.steps("note")[:1] == [SOFT[CALLS[at]]] * bool(SOFT[CALLS[at]])
    else:
        assert kinds(result) == [("harness", 1)]
        assert made.steps("failed") == [step]
        assert "agent refused" in result.evidence.incidents[0].text


@pytest.mark.parametrize("at", range(len(CALLS)), ids=[f"{c}-{step}" for c, step in CALLS])
def test_an_interrupt_at_any_call_passes_and_the_evidence_is_stored(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    strike(monkeypatch, at, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    evidence = made.record.load_evidence()
    assert_watched(evidence)
    assert evidence.unreadable == {} and evidence.incidents == ()
    assert made.steps("failed") == [CALLS[at][1]]
    assert made.machine.returncode is not None


ELSEWHERE = base64.b64encode(zlib.compress(bytes([255] * 8 * 512))).decode()


@pytest.mark.parametrize(
    ("name", "answer", "text"),
    [
        ("facts", {}, "facts: "),
        ("facts", {"boot_id": 7}, "facts"),
        ("pfns", {"pages": 512}, "lacks 'pfns'"),
        ("pfns", {"pages": 512, "pfns": ELSEWHERE}, "is not RAM of this host"),
    ],
)
def test_an_answer_that_is_none_of_the_protocol_is_an_incident(
    made: FakeRun,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    answer: dict[str, object],
    text: str,
) -> None:
    at = [each for each, _ in CALLS].index(name)
    # in place of the error that is raised elsewhere
    strike(monkeypatch, at, lambda: Answered(answer))
    result = made.run()
    # the observer of the guest's ticks may read nonsense, too
    assert set(kinds(result)) == {("harness", 1)}
    assert any(text in each.text for each in result.evidence.incidents)


@pytest.mark.parametrize("at", range(len(CALLS)), ids=[f"{c}-{step}" for c, step in CALLS])
def test_any_exception_is_an_incident_and_gives_a_verdict(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    strike(monkeypatch, at, lambda: OverflowError("int too large to convert to float"))
    result = made.run()
    assert kinds(result) == [("harness", 1)]
    assert "OverflowError: int too large" in result.evidence.incidents[0].text
    assert result.verdict.outcome is Outcome.ERROR


# --- before the first hop


@pytest.mark.parametrize("name", BRING_UP_CALLS)
def test_a_host_that_does_not_come_up_is_an_incident_before_the_first_hop(
    made: FakeRun, name: str
) -> None:
    def refuse(_args: Mapping[str, Any]) -> None:
        raise Refusal("errno", "no")

    made.script.calls[name] = refuse
    result = made.run()
    assert kinds(result) == [("harness", 0)] and result.evidence.hops == ()
    assert result.verdict.outcome is Outcome.ERROR
    assert made.steps("failed")[-1] == "bring-up"


def test_guests_that_do_not_tick_are_found_before_the_first_hop(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liveupdate.run.bringup._TICKS_S", 0.1)
    monkeypatch.setattr("liveupdate.run.bringup._TICKS_SEEN", 1 << 30)
    result = made.run()
    assert kinds(result) == [("lost-agent", 0)]
    assert "does not tick any more" in result.evidence.incidents[0].text


def test_an_interrupt_during_bring_up_leaves_nothing(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_plan: Plan, _record: RunDir) -> Host:
        raise KeyboardInterrupt

    monkeypatch.setattr(made, "take", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.record.load_evidence().hops == ()


# --- what the host does


@pytest.mark.parametrize(
    ("incoming", "kind"),
    [("panic", "panic"), ("reset", "reset"), ("exit", "exited"), ("hang", "deadline")],
)
def test_a_kernel_that_does_not_come_up_is_named_by_what_was_seen(
    made: FakeRun, incoming: str, kind: str
) -> None:
    made.plan = quick_plan(hops=2)
    made.plan = replace(made.plan, timeouts=replace(made.plan.timeouts, jump_s=0.3))
    made.script.incoming = incoming
    result = made.run()
    assert kinds(result) == [(kind, 1)]
    assert made.steps("failed") == ["blackout"]
    (hop,) = result.evidence.hops
    assert hop.paused_ns.keys() == {"vm0"} and hop.resumed_ns == {}
    assert hop.memory[0].freeze is not None and hop.memory[0].boot is None
    assert_watched(result.evidence)


@pytest.mark.parametrize(
    ("own", "why", "kind"),
    [
        (Scenario(next_kernel="bzImage"), NO_ROOT.format("0,0"), "harness"),
        (Scenario(next_kernel_tree="linux"), NO_ROOT.format("0,0"), "harness"),
        (Scenario(next_kernel="bzImage"), NO_ROOT.format("254,0"), "panic"),
        (Scenario(), NO_ROOT.format("0,0"), "panic"),
    ],
    ids=["no-driver", "tree-without-driver", "disk-seen", "shipped-kernel"],
)
def test_a_users_kernel_without_a_driver_for_the_disk_is_no_loss(
    made: FakeRun, own: Scenario, why: str, kind: str
) -> None:
    made.scenario = own
    made.script.incoming, made.script.panic = "panic", why
    result = made.run()
    assert kinds(result) == [(kind, 1)]
    assert result.verdict.outcome is (Outcome.ERROR if kind == "harness" else Outcome.FAIL)
    assert (kind == "harness") == ("CONFIG_VIRTIO_BLK=y" in result.evidence.incidents[0].text)


@pytest.mark.parametrize("step", ["blackout", "bring-up"])
def test_a_run_ends_when_its_time_is_up_and_names_the_step(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    total_s = 0.0 if step == "bring-up" else 600.0
    made.plan = quick_plan(hops=2)
    made.plan = replace(
        made.plan, timeouts=replace(made.plan.timeouts, jump_s=60.0, total_s=total_s)
    )
    made.script.incoming = "hang"
    real = LiveHop.see_jump

    def see_jump(hop: LiveHop) -> None:
        # the run's own time is up now, however long a busy machine took to get here
        limit = deadline._whole.get()
        object.__setattr__(limit, "expires_at", time.monotonic() + 0.3)
        real(hop)

    monkeypatch.setattr(LiveHop, "see_jump", see_jump)
    result = made.run()
    assert result.verdict.outcome is Outcome.ERROR
    texts = [each.text for each in result.evidence.incidents if each.kind == "deadline"]
    assert f"it ended in step '{step}'" in texts[-1]
    assert "timeouts.total" in texts[-1]


def test_a_kernel_that_recovers_nothing_is_observed_to_the_end(made: FakeRun) -> None:
    made.script.incoming = "empty"
    result = made.run()
    assert "nothing-recovered" in made.steps("note")
    assert kinds(result) == [("vmm-lost", 1)]
    assert made.steps("start")[3:] == list(HOP_STEPS)
    (session,) = result.evidence.hops[0].sessions
    assert session.error == "nothing was left"
    assert statuses(result)["handover.session"] == statuses(result)["guest.liveness"] == "FAIL"


@pytest.mark.parametrize("fault", [None, "freeze-refused"])
def test_a_freeze_that_is_refused_is_rolled_back_and_the_guests_seen(
    made: FakeRun, fault: str | None
) -> None:
    made.plan = quick_plan(hops=2, fault=fault, observe=WHOLE)
    if fault is None:
        made.script.refuse_freeze = "the VMM's state was refused"
    result = made.run()
    expected = [("freeze-refused", 1)]
    assert kinds(result) == ([("fault", 1), *expected] if fault else expected)
    assert result.evidence.rolled_back and int(result.verdict.exit_code) == 5
    told = [each.after for each in result.evidence.hops[0].struck]
    assert told == ([] if fault is None else ["taken"])
    assert made.machine.calls[-2:] == ["jump", "abandon"]
    assert made.steps("start")[-1] == "roll-back"


def test_a_host_that_refuses_to_leave_after_the_freeze_is_rolled_back(made: FakeRun) -> None:
    made.script.incoming = "hang"
    made.script.calls["jump"] = lambda _args: None
    host = made
    real = LiveHop._wait_boot

    def wait_boot(hop: LiveHop, *args: Any) -> Any:
        host.machine.emit("freeze-failed", guest="", message="reboot(KEXEC): EIO")
        host.machine._call_cont_guests({})
        return real(hop, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveHop, "_wait_boot", wait_boot)
        result = made.run()
    assert kinds(result) == [("freeze-refused", 1)] and result.evidence.rolled_back


def test_a_guest_that_does_not_come_back_is_said_and_the_others_are_observed(
    made: FakeRun,
) -> None:
    made.plan = quick_plan(guests=2)
    made.script.lost = frozenset({"vm1"})
    result = made.run()
    failed, gone = result.evidence.incidents
    assert failed == Incident(kind="restore-failed", hop=1, guest="vm1", text="the VMM ended")
    assert (gone.kind, gone.guest) == ("vmm-lost", "vm1")
    (hop,) = result.evidence.hops
    assert hop.resumed_ns.keys() == {"vm0"}
    traces = {trace.guest: trace for trace in hop.guests}
    assert traces["vm0"].pattern is not None and traces["vm1"].pattern is None
    assert statuses(result)["guest.liveness"] == "FAIL"


def test_ssh_that_does_not_come_back_is_an_incident_and_no_end(made: FakeRun) -> None:
    made.script.is_ssh_up = False
    result = made.run()
    assert kinds(result) == [("lost-ssh", 1)]
    assert made.steps("start")[3:] == list(HOP_STEPS)


# --- faults, at their moments


@pytest.mark.parametrize(
    ("fault", "check"), [("flip-bit", "memory.content"), ("guest-disk-lost", "guest.storage")]
)
def test_a_fault_of_the_blackout_strikes_in_the_first_hop_alone(
    made: FakeRun, fault: str, check: str
) -> None:
    made.plan = quick_plan(hops=2, fault=fault)
    result = made.run()
    assert kinds(result) == [("fault", 1)]
    assert statuses(result)[check] == "FAIL"
    first, second = result.evidence.hops
    (struck,) = first.struck
    assert second.struck == ()
    assert (struck.fault, struck.view) == (fault, "outside")
    assert struck.before != struck.after
    assert first.paused_ns["vm0"] < struck.at_ns < first.resumed_ns["vm0"]
    if fault == "flip-bit":
        (before,), (after,) = first.memory, second.memory
        assert before.freeze is not None and before.boot is not None and after.freeze is not None
        # it struck between the two passes: afterwards the page stays as it is
        assert before.freeze.digests != before.boot.digests
        assert first.guests[0].pattern is not None and first.guests[0].pattern.bad == 1


def test_a_fault_whose_effect_is_not_seen_is_an_error_and_no_finding(made: FakeRun) -> None:
    # the fake does not do what it is asked: both kernels have booted with the same words
    made.plan = quick_plan(fault="kho-off")
    result = made.run()
    assert result.verdict.outcome is Outcome.ERROR
    assert "'kho-off' was planned, and what it struck is as it was before" in result.verdict.reason


def test_a_fault_without_a_record_is_an_error(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.plan = quick_plan(fault="flip-bit")
    monkeypatch.setattr(Strikes, "_put", lambda *_: None)
    result = made.run()
    assert result.verdict.outcome is Outcome.ERROR
    assert "'flip-bit' was planned, and no record says that it struck" in result.verdict.reason
    assert statuses(result)["memory.content"] == "FAIL"


def test_a_fault_whose_effect_cannot_be_read_is_an_error(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> None:
        raise EvidenceError("it is gone")

    later = dataclasses.replace(FAULTS["flip-bit"], strike=lambda _bed: look)
    monkeypatch.setattr("liveupdate.run.strikes.FAULTS", {"flip-bit": later})
    made.plan = quick_plan(fault="flip-bit")
    result = made.run()
    assert result.verdict.outcome is Outcome.ERROR
    texts = [each.text for each in result.evidence.incidents if each.kind == "harness"]
    assert texts == ["what fault 'flip-bit' changed cannot be read: it is gone"]


@pytest.mark.parametrize("fault", ["flip-state", "cut-state"])
def test_a_vm_state_that_changed_is_refused_for_its_guest_alone(made: FakeRun, fault: str) -> None:
    made.plan = quick_plan(guests=2, fault=fault, observe=WHOLE)
    made.script.kernel_s = BOOT_S
    result = made.run()
    assert kinds(result)[-1] == ("vmm-lost", 1)
    (refused,) = [each for each in result.evidence.incidents if each.kind == "restore-failed"]
    assert refused.guest == "vm0"
    (check,) = [check for check in result.verdict.checks if check.id == "handover.state"]
    assert check.status is Outcome.FAIL
    assert "hop 1, vm0: " in check.reason and "vm1" not in check.reason
    assert ("digest" if fault == "flip-state" else "length") in check.reason
    (hop,) = result.evidence.hops
    assert hop.resumed_ns.keys() == {"vm1"}
    fine = {memory.guest: memory.state for memory in hop.memory}["vm1"]
    assert fine is not None and fine.saved == fine.read
    (struck,) = hop.struck
    assert struck.fault == fault and struck.before != struck.after
    (told,) = [str(event.fields["what"]) for event in made.events if event.name == "struck"]
    assert told == struck.what and ("seed " in told) == (fault == "flip-state")


def test_a_state_whose_place_is_not_known_is_noted_and_an_error(made: FakeRun) -> None:
    made.plan = quick_plan(observe=WHOLE)
    made.script.is_placed = False
    result = made.run()
    assert statuses(result)["handover.state"] == "ERROR"
    assert made.steps("note") == ["state-not-found"]


def test_a_fault_instead_of_the_jump_is_found_by_what_was_seen(made: FakeRun) -> None:
    made.plan = quick_plan(fault="cold-reset")
    result = made.run()
    assert kinds(result) == [("fault", 1), ("reset", 1)]
    assert "jump" not in made.machine.calls
    (struck,) = result.evidence.hops[0].struck
    assert struck.after == "SHUTDOWN, host-qmp-system-reset"


def test_a_monitor_that_is_lost_is_an_incident_and_no_end(made: FakeRun) -> None:
    made.plan = quick_plan(fault="qmp-drop")
    result = made.run()
    assert kinds(result) == [("fault", 1), ("lost-qmp", 1)]
    (struck,) = result.evidence.hops[0].struck
    assert (struck.before, struck.after) == ("connected", "gone: cut")
    assert made.steps("start")[3:] == list(HOP_STEPS)


def test_a_disk_that_is_full_ends_in_a_verdict_that_says_so(made: FakeRun) -> None:
    made.plan = quick_plan(fault="disk-full")
    result = made.run()
    assert result.verdict.outcome is Outcome.ERROR
    assert any("No space left" in why for why in result.evidence.unreadable.values())
    assert made.steps("failed") == []
    # what could not be stored is in the verdict of the run itself
    (struck,) = result.evidence.hops[0].struck
    assert "No space left" in struck.after
    assert made.record.load_evidence().hops[0].struck == ()


# --- the observers


@pytest.mark.parametrize(
    ("kind", "method", "name"),
    [
        (TickWatcher, "_sample", "tick-vm0"),
        (JournalWatcher, "_sample", "journal-vm0"),
        (EchoWatcher, "_send", "echo-send"),
        (EchoWatcher, "_receive", "echo-receive"),
    ],
)
def test_an_observer_that_dies_is_an_incident_and_the_others_go_on(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch, kind: type, method: str, name: str
) -> None:
    def die(_self: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(kind, method, die)
    made.plan = quick_plan(hops=2)
    result = made.run()
    # said once, in the hop in which it was found
    assert [(i.kind, i.hop, i.text) for i in result.evidence.incidents] == [
        ("harness", 1, f"watcher '{name}': planted")
    ]
    assert len(result.evidence.hops) == 2
    trace = result.evidence.hops[1].guests[0]
    assert bool(trace.ticks) == (kind is not TickWatcher)
    assert bool(trace.journal) == (kind is not JournalWatcher)


def test_what_each_hop_saw_is_its_own(made: FakeRun) -> None:
    made.plan = quick_plan(hops=2)
    first, second = made.run().evidence.hops
    (one,), (other,) = first.guests, second.guests
    assert one.ticks[-1].seq == other.ticks[0].seq
    assert one.watched is not None and other.watched is not None
    assert one.watched.ended_ns == other.watched.began_ns
    assert one.echoes[-1].seq < other.echoes[0].seq


def test_a_digest_pass_that_fails_is_noted_and_the_rest_stored(
    made: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def fail(pages: Any) -> bytes:
        passes.append(len(pages))
        raise EvidenceError("planted")

    monkeypatch.setattr("liveupdate.probes.memory.digest_selected", fail)
    result = made.run()
    assert passes == [512, 512] and kinds(result) == []
    assert made.steps("note") == ["digest-failed", "digest-failed"]
    assert made.steps("start")[3:] == list(HOP_STEPS)
    assert result.evidence.hops[0].memory[0].boot is None
    assert statuses(result)["memory.content"] == "ERROR"
