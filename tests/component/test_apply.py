# SPDX-License-Identifier: Apache-2.0
"""An operator's update, with everything that may come between; the host is faked at the agent.

Whatever happens, it ends with the guests alive and the host updated, or with the guests alive and
the host as it was; where they are lost, that is what is said.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liveupdate.agent.update.lock_record import Update
from liveupdate.core.errors import DeadlineExceeded, EvidenceError, LaunchError, RemoteError
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir, StoreError
from liveupdate.evidence.files import RunFiles
from liveupdate.judging.judge import judge
from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import KernelImage, Plan
from liveupdate.model.scenario import Budget, Observation, Timeouts
from liveupdate.model.verdict import Outcome, Verdict
from liveupdate.operate.bundle import make_bundle, unpack
from liveupdate.operate.drive import Driver, Ended, Refused, StepFailed, Stopped
from liveupdate.operate.hostside import HostSide
from liveupdate.operate.plan import plan_update
from liveupdate.operate.preflight import Local
from liveupdate.operate.steps import FORWARD, Step
from liveupdate.operate.survey import read_survey
from liveupdate.operate.wal import Wal, read_journal
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.target.ssh.host import HostLocked
from liveupdate.transport.ssh import WrongHostKey
from tests.support.apply_host import FakeHeld, FakeHost

UPDATED, ROLLED_BACK, LOST = "updated", "rolled-back", "lost"
Hook = Callable[[str, str], None]


class Killed(BaseException):
    """SIGKILL, as far as a test can go without a process of its own."""


class HookedWal(Wal):
    """Calls ``hook(kind, step)`` when a record is on disk."""

    def __init__(self, run_dir: Path, *, hook: Hook | None) -> None:
        super().__init__(run_dir)
        self.hook = hook

    def append(self, kind: str, **data: object) -> None:
        super().append(kind, **data)
        if self.hook is not None:
            self.hook(kind, str(data.get("step", "")))


class Bench:
    """A host, and the run directory of an update of it."""

    def __init__(self, root: Path) -> None:
        image = root / "bzImage"
        image.write_bytes(b"kernel")
        self.kernel = KernelImage(
            path=str(image),
            sha256=hashlib.sha256(b"kernel").hexdigest(),
            release="7.3-bbbb",
            build_id="bbbb",
            abi=("kho-v4", "luo-v5", "memfd-v2"),
        )
        self.host = FakeHost(incoming_build="bbbb")
        self.said: list[str] = []
        self.local = Local(
            incoming=self.kernel,
            incoming_bytes=6,
            run_free_bytes=1 << 40,
            mechanism=MECHANISMS["luo-memfd"],
        )
        self.plan = self._plan()
        self.record = RunDir.create(root / "runs", plan=self.plan, scenario="")
        self.run_dir = self.record.path
        with Wal(self.run_dir, create=True) as wal:
            wal.append("begin", update="u1", host="box", place="/box.toml", owner="me@here")

    def _plan(self) -> Plan:
        return plan_update(
            read_survey(self.host.call("survey", {})),
            self.local,
            place=Path("/box.toml"),
            append="console=ttyS0",
            host_key=Path("/host_key"),
            key=Path("/key"),
            # A fifth of it may be missing: a lag of 86 ms was seen at a load of 10.
            observe=Observation(before_s=0.1, after_s=0.6),
            timeouts=Timeouts(jump_s=1.0, incoming_s=1.0, restore_s=1.0),
            budget=Budget(),
        )

    def work(
        self,
        verb: str = "resume",
        *,
        hook: Hook | None = None,
        may: Callable[[Step], bool] = lambda _step: True,
        patience_s: float = 2.0,
        reset: bool = False,
        update: str = "u1",
        run_dir: Path | None = None,
    ) -> Ended:
        """What one process does, from its start to its end, however that comes."""
        record = RunDir.reopen(run_dir or self.run_dir)
        with HookedWal(run_dir or self.run_dir, hook=hook) as wal:
            steps = Steps()
            side = HostSide(
                name="box",
                plan=self.plan,
                record=record,
                local=replace(self.local, own=update),
                steps=steps,
                host=FakeHeld(self.host, update, "me@here"),  # type: ignore[arg-type]
                argv=("liveupdate", verb),
            )
            driver = Driver(
                journal=wal,
                host=side,
                say=self.said.append,
                may=may,
                conclude=lambda: judge(self.plan, record.load_evidence()),
                patience_s=patience_s,
            )
            if reset:
                driver.reset_host()
            return driver.run(verb)

    @property
    def journal(self) -> list[str]:
        return [f"{each.kind}:{each.step}" for each in read_journal(self.run_dir) if each.step]

    def journal_text(self) -> str:
        return (self.run_dir / "journal.jsonl").read_text()

    def rejudge(self) -> Verdict:
        record = RunDir.open(self.run_dir)
        return judge(record.load_plan(), record.load_evidence())

    def assert_updated(self, ended: Ended) -> None:
        assert (ended.outcome, ended.exit_code) == (UPDATED, 0), (ended, self.checks())
        assert self.host.boot_id == "boot-1" and self.host.state == "idle"
        assert sorted(self.host.alive) == ["vm0", "vm1", "vm2"]
        assert self.host.update.lock is None
        assert self.rejudge().outcome is Outcome.PASS

    def assert_rolled_back(self, ended: Ended) -> None:
        assert (ended.outcome, ended.exit_code) == (ROLLED_BACK, 5), (ended, self.checks())
        assert self.host.boot_id == "boot-0" and self.host.state == "idle"
        assert not self.host.loaded and self.host.files == {}
        assert sorted(self.host.alive) == ["vm0", "vm1", "vm2"]
        assert self.host.update.lock is None
        assert int(self.rejudge().exit_code) == 5

    def checks(self) -> dict[str, Any]:
        return {check.id: (check.status.value, check.reason) for check in self.rejudge().checks}


@pytest.fixture
def bench(in_ram: Path) -> Iterator[Bench]:
    made = Bench(in_ram)
    yield made
    made.host.close()


def kill_at(point: str) -> Hook:
    def hook(kind: str, step: str) -> None:
        if f"{kind}:{step}" == point:
            raise Killed

    return hook


POINTS = [f"{kind}:{step.name}" for step in FORWARD for kind in ("intent", "done")]
BEFORE_JUMP = POINTS[: POINTS.index("intent:jump")]


def test_an_update_passes_and_its_journal_is_complete(bench: Bench) -> None:
    bench.assert_updated(bench.work())
    assert bench.journal == POINTS
    assert any("point of no return" in text for text in bench.said)
    checks = bench.checks()
    for check in ("handover.kho", "handover.generation", "handover.session", "handover.state",
                  "memory.content", "memory.placement", "guest.liveness"):  # fmt: skip
        assert checks[check][0] == "PASS", checks
    # once it has ended, there is nothing to do, and nobody is asked
    bench.host.calls.clear()
    assert bench.work().outcome == UPDATED
    assert bench.work("abort").outcome == UPDATED
    assert bench.host.calls == []


def test_one_that_is_updated_again_counts_on(bench: Bench, tmp_path: Path) -> None:
    bench.assert_updated(bench.work())
    bench.host.incoming_build = "bbbb"
    assert bench._plan().hops[0].number == 2


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_record_and_resumed_it_ends_updated(bench: Bench, point: str) -> None:
    with pytest.raises(Killed):
        bench.work(hook=kill_at(point))
    assert sorted(bench.host.alive) == ["vm0", "vm1", "vm2"]
    bench.assert_updated(bench.work())


@pytest.mark.parametrize("point", BEFORE_JUMP)
def test_killed_before_the_jump_and_aborted_it_ends_rolled_back(bench: Bench, point: str) -> None:
    with pytest.raises(Killed):
        bench.work(hook=kill_at(point))
    bench.assert_rolled_back(bench.work("abort"))


def test_killed_before_the_jump_was_sent_it_can_still_be_aborted(bench: Bench) -> None:
    with pytest.raises(Killed):
        bench.work(hook=kill_at("intent:jump"))
    bench.assert_rolled_back(bench.work("abort"))


@pytest.mark.parametrize("point", ["done:jump", "done:incoming", "done:collect", "done:judge"])
def test_beyond_the_point_of_no_return_abort_is_refused(bench: Bench, point: str) -> None:
    with pytest.raises(Killed):
        bench.work(hook=kill_at(point))
    with pytest.raises(Refused, match="point of no return is passed"):
        bench.work("abort")
    bench.assert_updated(bench.work())


BACK = (
    "intent:abandon",
    "done:unload",
    "done:observe-back",
    "intent:collect-back",
    "done:judge-back",
)


@pytest.mark.parametrize("point", [*BACK, "done:judge-back", "done:release-back"])
def test_killed_while_it_rolls_back_it_goes_on_rolling_back(bench: Bench, point: str) -> None:
    with pytest.raises(Killed):
        bench.work(hook=kill_at("done:load-kernel"))
    with pytest.raises(Killed):
        bench.work("abort", hook=kill_at(point))
    bench.assert_rolled_back(bench.work("resume"))


# --- the network


@pytest.mark.parametrize("how", ["down", "answers-lost"])
@pytest.mark.parametrize("step", [step.name for step in FORWARD if step.name != "judge"])
def test_a_network_that_is_gone_for_a_while_at_any_step_does_no_harm(
    bench: Bench, step: str, how: str
) -> None:
    cuts: list[str] = []

    def cut(kind: str, name: str) -> None:
        # once: the step is begun anew when the line is back
        if (kind, name) != ("intent", step) or cuts:
            return
        cuts.append(name)
        if how == "down":
            bench.host.up = False
            threading.Timer(0.4, lambda: setattr(bench.host, "up", True)).start()
        else:
            bench.host.mute = True
            threading.Timer(0.4, lambda: setattr(bench.host, "mute", False)).start()

    bench.assert_updated(bench.work(hook=cut, patience_s=5.0))
    assert cuts == [step]


@pytest.mark.parametrize("step", ["observe-before", "prepare", "jump", "incoming", "collect"])
def test_a_network_that_stays_away_is_said_and_the_update_resumed_later(
    bench: Bench, step: str
) -> None:
    def cut(kind: str, name: str) -> None:
        if (kind, name) == ("intent", step):
            bench.host.up = False

    with pytest.raises((DeadlineExceeded, StepFailed)):
        bench.work(hook=cut, patience_s=0.5)
    bench.host.up = True
    bench.assert_updated(bench.work())


# --- what the host refuses


def refuse(call: str, kind: str, message: str) -> Callable[[], None]:
    def strike() -> None:
        raise RemoteError(call, kind, message)

    return strike


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ("prepare", "preserve", "[Errno 12] Cannot allocate memory"),
        ("load_kernel", "kexec", "kexec -s ended with 255: Operation not permitted"),
        ("jump", "not-loaded", "no kernel is loaded"),
    ],
)
def test_what_the_host_refuses_is_rolled_back(
    bench: Bench, call: str, kind: str, message: str
) -> None:
    bench.host.faults[call] = refuse(call, kind, message)
    if call == "jump":
        # a refusal of the call itself is seen by us alone
        with pytest.raises(StepFailed, match=message):
            bench.work()
        bench.host.faults.clear()
        bench.assert_rolled_back(bench.work("abort"))
        return
    bench.assert_rolled_back(bench.work())
    assert message in bench.journal_text()


def test_an_image_that_changed_on_the_host_is_not_loaded(bench: Bench) -> None:
    def change(kind: str, name: str) -> None:
        if (kind, name) == ("done", "copy-kernel"):
            bench.host.files["/run/liveupdate/next-kernel"] = b"ker"

    ended = bench.work(hook=change)
    bench.assert_rolled_back(ended)
    assert ended.why.startswith("load-kernel: ") and "sha256 differs" in ended.why


def test_a_host_that_refuses_to_leave_rolls_back(bench: Bench) -> None:
    bench.host.refuse_jump = "reboot(KEXEC): Input/output error"
    ended = bench.work()
    bench.assert_rolled_back(ended)
    assert "Input/output error" in bench.checks()["handover.kho"][1]


def test_a_guest_that_is_lost_before_is_not_updated_and_said(bench: Bench) -> None:
    bench.host.guests["vm1"].error = "VMM ended with status 1"
    bench.host.guests["vm1"].pause()
    ended = bench.work()
    assert ended.outcome == "rolled-back-with-losses" and ended.exit_code == 1
    assert bench.host.boot_id == "boot-0" and bench.host.update.lock is None
    assert "jump" not in bench.host.calls
    assert bench.checks()["guest.liveness"][0] == "FAIL"


def test_a_guest_that_does_not_come_back_is_judged_and_the_others_go_on(bench: Bench) -> None:
    bench.host.lost = "vm1"
    ended = bench.work()
    assert (ended.outcome, ended.exit_code) == (LOST, 1), ended
    assert bench.host.alive == ["vm0", "vm2"] and bench.host.update.lock is None
    status, reason = bench.checks()["guest.liveness"]
    assert status == "FAIL" and "vm1" in reason


def test_a_vm_state_that_changed_is_judged_and_the_others_go_on(bench: Bench) -> None:
    bench.host.spoilt = "vm1"
    ended = bench.work()
    assert (ended.outcome, ended.exit_code) == (LOST, 1), ended
    assert bench.host.alive == ["vm0", "vm2"]
    status, reason = bench.checks()["handover.state"]
    assert status == "FAIL" and "hop 1, vm1:" in reason and "vm0" not in reason


# --- the agent, the kernel, the power


@pytest.mark.parametrize("step", ["preflight", "observe-before", "prepare", "load-kernel", "jump"])
def test_an_agent_that_crashed_before_the_jump_is_taken_anew(bench: Bench, step: str) -> None:
    crashed = False

    def crash(kind: str, name: str) -> None:
        nonlocal crashed
        if (kind, name) == ("intent", step) and not crashed:
            crashed = True
            bench.host.crash_agent()

    try:
        ended = bench.work(hook=crash)
    except StepFailed:
        # the jump was refused by an agent that knows nothing of it
        assert step == "jump"
        ended = bench.work()
    assert sorted(bench.host.alive) == ["vm0", "vm1", "vm2"]
    if ended.outcome == UPDATED:
        bench.assert_updated(ended)
    else:
        bench.assert_rolled_back(ended)


def test_an_agent_that_crashed_after_the_jump_costs_evidence_not_guests(bench: Bench) -> None:
    def crash(kind: str, name: str) -> None:
        if (kind, name) == ("done", "incoming"):
            bench.host.crash_agent()

    ended = bench.work(hook=crash)
    assert sorted(bench.host.alive) == ["vm0", "vm1", "vm2"]
    assert bench.host.boot_id == "boot-1"
    # what the agent had recorded is gone: nobody claims that all was well
    assert ended.outcome == "unknown" and ended.exit_code == 3


def test_a_panic_that_ends_in_the_old_kernel_is_a_loss_and_said(bench: Bench) -> None:
    bench.host.incoming = "reset"
    ended = bench.work()
    assert (ended.outcome, ended.exit_code) == (LOST, 1)
    assert bench.host.update.lock is None
    checks = bench.checks()
    assert checks["handover.kho"][0] == "FAIL" and checks["guest.liveness"][0] == "FAIL"


def test_a_host_that_hangs_is_waited_for_and_then_reset_by_the_operator(bench: Bench) -> None:
    bench.host.incoming = "hang"
    # said by the jump, whose answer never came, or by the step after it
    with pytest.raises((DeadlineExceeded, StepFailed), match="no route to host|did not come back"):
        bench.work(patience_s=0.5)
    with pytest.raises(DeadlineExceeded):
        bench.work("abort", patience_s=0.3)
    # the power command fails: nothing has changed
    with pytest.raises(LaunchError, match="power command failed"):
        bench.work(reset=True)
    bench.host.power = bench.host.boot_cold
    ended = bench.work(reset=True)
    assert (ended.outcome, ended.exit_code) == (LOST, 1)


# --- operators


def test_a_second_operator_is_refused_and_the_first_goes_on(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        bench.work(hook=kill_at("done:prepare"))
    other = RunDir.create(tmp_path / "other", plan=bench.plan, scenario="")
    with Wal(other.path, create=True) as wal:
        wal.append("begin", update="u2", host="box", place="/box.toml", owner="eve@there")
    calls = list(bench.host.calls)
    for verb in ("resume", "abort"):
        with pytest.raises(HostLocked, match="update 'u1' of me@here holds this host since"):
            bench.work(verb, update="u2", run_dir=other.path)
    assert bench.host.calls == calls
    bench.assert_updated(bench.work())


def test_two_processes_on_one_run_directory_exclude_each_other(bench: Bench) -> None:
    with Wal(bench.run_dir), pytest.raises(LaunchError, match="another process works on"):
        bench.work()


def test_a_host_key_that_changed_ends_it_before_anything_is_done(bench: Bench) -> None:
    bench.host.wrong_key = WrongHostKey("box shows host key X, not Y", how="garbled")
    with pytest.raises(WrongHostKey):
        bench.work()
    assert bench.host.calls == [] or set(bench.host.calls) <= {"survey"}
    assert bench.host.update.lock is None
    bench.host.wrong_key = None
    bench.assert_updated(bench.work())


def test_an_operator_who_says_no_stops_before_the_step(bench: Bench) -> None:
    with pytest.raises(Stopped, match="'jump'"):
        bench.work(may=lambda step: step.name != "jump")
    assert bench.host.boot_id == "boot-0"
    bench.assert_rolled_back(bench.work("abort"))


# --- the bundle


def test_the_bundle_verifies_and_judges_like_the_run(bench: Bench, tmp_path: Path) -> None:
    bench.assert_updated(bench.work())
    bundle = make_bundle(bench.run_dir)
    (tmp_path / "out").mkdir()
    unpacked = unpack(bundle.path, tmp_path / "out")
    record = RunDir.open(unpacked)
    assert judge(record.load_plan(), record.load_evidence()).outcome is Outcome.PASS
    assert bundle.sha256 == hashlib.sha256(bundle.path.read_bytes()).hexdigest()
    damaged = bytearray(bundle.path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    bundle.path.write_bytes(damaged)
    (tmp_path / "out2").mkdir()
    with pytest.raises(EvidenceError):
        unpack(bundle.path, tmp_path / "out2")


def test_the_journal_names_what_was_known_at_each_step(bench: Bench) -> None:
    bench.work()
    lines = (bench.run_dir / "journal.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["n"] for row in rows] == list(range(len(rows)))
    assert rows[-1]["kind"] == "end" and rows[-1]["outcome"] == UPDATED


# --- what could not be stored


def test_a_disk_that_is_full_stops_it_and_the_next_process_does_the_step_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(kind: str, step: str) -> None:
        if (kind, step) == ("intent", "collect"):
            patch.setattr("liveupdate.evidence.files.RunFiles.write", full)

    def full(files: RunFiles, relative: str, _data: object) -> None:
        raise StoreError(files.path / relative, OSError(28, "No space left on device"))

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left"):
        bench.work(hook=fill)
    assert "done:collect" not in bench.journal
    bench.assert_updated(bench.work())


def test_evidence_that_cannot_be_judged_fails_the_step_and_is_judged_by_the_next_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_record: RunDir) -> Evidence:
        raise OverflowError("int too large")

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "load_evidence", fail)
        with pytest.raises(StepFailed, match=r"judge.*cannot be judged: OverflowError"):
            bench.work()
    assert bench.journal[-1] == "failed:judge"
    bench.assert_updated(bench.work())


def test_lines_of_the_hosts_record_that_are_lost_are_an_error(bench: Bench) -> None:
    with pytest.raises(Killed):
        bench.work(hook=kill_at("done:prepare"))
    bench.host.update._dropped = 3
    ended = bench.work()
    assert (ended.outcome, ended.exit_code) == ("unknown", 3)
    assert "3 lines of the host's record are lost" in ended.why


def test_a_record_that_does_not_fit_counts_what_it_lost(bench: Bench) -> None:
    update = Update({})
    update.begin({"id": "u1", "owner": "me"})
    for number in range(200):
        update.note(
            "phase", b'{"event":"phase","data":{"text":"%s"}}' % (b"x" * 100 + b"%d" % number)
        )
    fd = os.memfd_create("record")
    os.ftruncate(fd, 8192)
    update.save(fd)
    after = Update({})
    after.take_over(fd)
    os.close(fd)
    lines = after._lines()
    assert len(lines) - 1 + json.loads(lines[-1])["dropped"] == 200
