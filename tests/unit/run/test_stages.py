# SPDX-License-Identifier: Apache-2.0
"""Two-stage programs: what each end of a stage comes to, on a host that is scripted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LostMachine, OutcomeUnknown
from liveupdate.core.steps import Steps
from liveupdate.model.scenario import Scenario
from liveupdate.model.verdict import Outcome
from liveupdate.planning.planner import make_plan
from liveupdate.run.stages import _END_AGENT, Staged, as_ktap, run_stages
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
    def __init__(self, *stages: int | Exception, jumps: bool = True, panic: str = "") -> None:
        self.stages = dict(enumerate(stages, 1))
        self.jumps, self.boot = jumps, 0
        self.files: list[tuple[str, int]] = []
        self.console = SimpleNamespace(
            panic=SimpleNamespace(text=panic) if panic else None, tail=lambda: ("last words",)
        )

    def ssh(self, deadline: Deadline) -> FakeSsh:
        return FakeSsh(self)


@pytest.fixture
def stage(tmp_path: Path) -> Callable[[FakeHost], Staged]:
    program, beside = tmp_path / "program", tmp_path / "data"
    program.write_text("#!/bin/sh\n")
    beside.write_text("x")

    def run(host: Any) -> Staged:
        return run_stages(host, PLAN, program, Steps(), files=(beside,))

    return run


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
