# SPDX-License-Identifier: Apache-2.0
"""Two-stage programs: what each end of a stage comes to, on a host that is scripted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LostMachine, OutcomeUnknown
from liveupdate.core.steps import Steps
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import Scenario
from liveupdate.model.verdict import Outcome
from liveupdate.planning.planner import make_plan
from liveupdate.run.stages import _END_AGENT, Staged, as_ktap, give_time, run_stages
from tests.support.ktap import find_wrong
from tests.support.planner_inputs import IMAGES, MACHINE

PLAN = make_plan(Scenario(), IMAGES, MACHINE)
INNER = "KTAP version 1\n1..1\nok 1 memory is there\n"


class FakeSsh:
    """One login; the program's end is what ``stages`` says of the stage that it is called for."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host

    def __enter__(self) -> FakeSsh:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def put(self, data: bytes, path: str, deadline: Deadline, *, mode: int) -> None:
        self.host.files.append((path, mode))

    def run(self, argv: Sequence[str], deadline: Deadline, *, check: bool = False) -> Any:
        said = SimpleNamespace(status=0, stdout=b"", stderr=b"")
        if argv[:2] == ("kexec", "-e"):
            self.host.kexec_deadline = deadline
            if self.host.kexec is not None:
                self.host.boot += self.host.kexec < 0
                said.status, said.stderr = self.host.kexec, b"Device or resource busy"
                return said
            if self.host.hangs:
                raise deadline.exceeded()
            self.host.boot += 1 if self.host.jumps else 0
            raise OutcomeUnknown("cut")
        if argv[0] == "cat":
            said.stdout = f"boot-{self.host.boot}".encode()
        if argv[0] == "sh" and "--stage" in argv:
            end = self.host.stages[int(argv[-1])]
            if isinstance(end, Exception):
                raise end
            said.status, said.stdout = end, INNER.encode()
        return said


class FakeHost:
    """``kexec``: the status of a ``kexec -e`` that returns; None: its line is cut."""

    def __init__(
        self,
        *stages: int | Exception,
        jumps: bool = True,
        panic: str = "",
        kexec: int | None = None,
        hangs: bool = False,
    ) -> None:
        self.stages = dict(enumerate(stages, 1))
        self.jumps, self.boot, self.kexec, self.hangs = jumps, 0, kexec, hangs
        self.kexec_deadline: Deadline | None = None
        self.ssh_deadlines: list[Deadline] = []
        self.files: list[tuple[str, int]] = []
        self.console = SimpleNamespace(
            panic=SimpleNamespace(text=panic) if panic else None, tail=lambda: ("last words",)
        )

    def ssh(self, deadline: Deadline) -> FakeSsh:
        self.ssh_deadlines.append(deadline)
        return FakeSsh(self)


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Staged]:
    program, beside = tmp_path / "program", tmp_path / "data"
    program.write_text("#!/bin/sh\n")
    beside.write_text("x")

    def run(host: Any, plan: Plan = PLAN, **how: Any) -> Staged:
        return run_stages(host, plan, program, Steps(), files=(beside,), **how)

    return run


NO_DISK = "VFS: Unable to mount root fs on unknown-block(0,0)"
HUNG = Deadline.after(0.0, "stage 2 of program").exceeded("")


@pytest.mark.parametrize(
    ("host", "outcome", "reason"),
    [
        (FakeHost(0, 0), Outcome.PASS, ""),
        (FakeHost(1, 0), Outcome.FAIL, "stage 1 ended with 1"),
        (FakeHost(0, 1), Outcome.FAIL, "stage 2 ended with 1"),
        (FakeHost(4, 0), Outcome.SKIP, "stage 1 ended with 4"),
        (FakeHost(0, HUNG), Outcome.ERROR, "stage 2 of program"),
        (FakeHost(0, LostMachine("gone", how="exited")), Outcome.ERROR, "gone"),
        (FakeHost(0, HUNG, panic="not syncing"), Outcome.FAIL, "panic: not syncing"),
        (FakeHost(0, 0, jumps=False), Outcome.ERROR, "one boot: there was no kexec"),
        (FakeHost(0, 1, jumps=False), Outcome.ERROR, "one boot: there was no kexec"),
        (FakeHost(0, 4, jumps=False), Outcome.ERROR, "one boot: there was no kexec"),
        (FakeHost(0, 1, kexec=1), Outcome.ERROR, "returned with 1: Device or resource busy"),
        (FakeHost(0, 0, kexec=0), Outcome.ERROR, "the kexec did not happen"),
        (FakeHost(0, 0, kexec=-1), Outcome.PASS, ""),
    ],
)
def test_how_a_program_ends(
    host: FakeHost, outcome: Outcome, reason: str, stage: Callable[[FakeHost], Staged]
) -> None:
    found = stage(host)
    assert found.outcome is outcome
    assert reason in found.reason
    assert found.timed_out == (outcome is Outcome.ERROR and host.stages[2] is HUNG)
    assert found.console == (() if outcome is Outcome.PASS else ("last words",))
    assert ("/tmp/stage/program", 0o755) in host.files and ("/tmp/stage/data", 0o755) in host.files
    wrong = find_wrong(as_ktap([found]))
    assert bool(wrong) == (outcome is not Outcome.PASS)
    directive = "TIMEOUT" if found.timed_out else "ERROR"
    last = as_ktap([found]).splitlines()[-1]
    assert (
        last
        == {
            Outcome.PASS: "ok 1 program",
            Outcome.FAIL: "not ok 1 program",
            Outcome.SKIP: "ok 1 program # SKIP",
            Outcome.ERROR: f"not ok 1 program # {directive}",
        }[outcome]
    )


@pytest.mark.parametrize(
    ("host", "is_untried", "outcome", "reason"),
    [
        (FakeHost(HUNG, 0, panic="oops"), False, Outcome.ERROR, "panic before stage 1 had ended"),
        (FakeHost(HUNG, 0, panic=NO_DISK), False, Outcome.ERROR, "the outgoing kernel sees no"),
        (FakeHost(0, HUNG, panic=NO_DISK), True, Outcome.ERROR, "the incoming kernel sees no disk"),
        (FakeHost(0, HUNG, panic=NO_DISK), False, Outcome.FAIL, "panic: VFS"),
        (FakeHost(0, HUNG, panic="oops"), True, Outcome.FAIL, "panic: oops"),
    ],
    ids=["outgoing", "outgoing-no-driver", "incoming-no-driver", "shipped-kernel", "incoming"],
)
def test_a_panic_is_a_failure_only_of_an_update_that_had_begun(
    host: FakeHost, is_untried: bool, outcome: Outcome, reason: str, stage: Callable[..., Staged]
) -> None:
    found = stage(host, is_untried=is_untried)
    assert (found.outcome, found.timed_out) == (outcome, False)
    assert reason in found.reason
    assert ("CONFIG_VIRTIO_BLK=y" in found.reason) == ("sees no" in reason)


def test_an_incoming_kernel_is_waited_for_as_in_a_run(stage: Callable[..., Staged]) -> None:
    host = FakeHost(0, 0)
    assert stage(host).outcome is Outcome.PASS
    outgoing, incoming = host.ssh_deadlines
    assert outgoing.timeout_s == PLAN.timeouts.boot_s
    assert incoming.timeout_s == PLAN.timeouts.jump_s + PLAN.timeouts.incoming_s
    assert host.kexec_deadline is incoming
    found = stage(FakeHost(0, 0, hangs=True))
    assert (found.outcome, found.timed_out) == (Outcome.ERROR, True)
    assert "to jump and sshd on the incoming kernel (timeouts.jump" in found.reason


def test_the_whole_of_a_program_has_a_limit(stage: Callable[..., Staged]) -> None:
    short = replace(PLAN, timeouts=replace(PLAN.timeouts, total_s=0.0))
    found = stage(FakeHost(0, 0), short)
    assert (found.outcome, found.timed_out, found.stages) == (Outcome.ERROR, True, ())
    assert "the whole of program (timeouts.total)" in found.reason
    times = PLAN.timeouts
    fixed_s = times.boot_s + times.jump_s + times.incoming_s
    assert give_time(PLAN, 2000.0).timeouts.total_s == fixed_s + 4000.0
    assert give_time(PLAN, 60.0).timeouts.total_s == times.total_s


def test_ktap_has_both_boots_and_the_programs_own_tests(
    stage: Callable[[FakeHost], Staged],
) -> None:
    text = as_ktap([stage(FakeHost(0, 0))])
    assert find_wrong(text) == []
    assert "  # boot_id boot-0, " in text and "  # boot_id boot-1, " in text
    assert text.count("    ok 1 memory is there") == 2


def test_the_end_of_the_agent_is_not_the_end_of_what_ends_it() -> None:
    pattern = re.search(r"grep -qs '(.*?)'", _END_AGENT)
    assert pattern is not None
    assert re.search(pattern[1], "/usr/bin/python3 -I -S /kit/agent/__main__.py")
    assert not re.search(pattern[1], _END_AGENT)
