# SPDX-License-Identifier: Apache-2.0
"""Runs on :mod:`liveupdate.target.fake`: a plan, a place for its sockets, and what was left."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from liveupdate.core.deadline import Deadline
from liveupdate.core.steps import StepEvent, Steps
from liveupdate.evidence import RunDir
from liveupdate.model.plan import Expected, FaultPlan, Plan
from liveupdate.model.scenario import Budget, GuestSpec, Observation, Scenario, Timeouts
from liveupdate.run import runner
from liveupdate.run.runner import RunResult
from liveupdate.target.base import Host
from liveupdate.target.fake.host import FakeHost
from liveupdate.target.fake.machine import FakeMachine, Script
from liveupdate.target.machines import Registry
from liveupdate.transport.agent_link import AgentLink
from liveupdate.transport.console import Console
from liveupdate.transport.ssh import Ssh
from tests.support.evidence_builder import make_plan

#: what every fake run stores of its origin
ARGV = ("liveupdate", "run", "--hops", "2")
ACCEL_REASON = "no machine is emulated"
#: enough to see each thing happen; the rate of a clock takes longer
QUICK = Observation(before_s=0.02, after_s=0.03)
#: a fake's ticks are seen late on a busy machine, which is no matter of these tests
_CLOCK_PPM = 100_000.0
#: what is expected of a fault matters to the tests that run it on a real machine
NOT_COMPARED = Expected(check="", status="", exit_code=0)


class BlindHost:
    """A fake host of which there is no more than every host has, like a machine of a lab."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    @property
    def console(self) -> Console:
        return self._host.console

    @property
    def agent(self) -> AgentLink:
        return self._host.agent

    @property
    def outside(self) -> None:
        """It is not seen from outside."""

    @property
    def problems(self) -> tuple[str, ...]:
        return self._host.problems

    def ssh(self, deadline: Deadline) -> Ssh:
        return self._host.ssh(deadline)

    def place_kernel(self, hop: int, path: Path) -> str:
        return self._host.place_kernel(hop, path)

    def __enter__(self) -> BlindHost:
        self._host.__enter__()
        return self

    def shutdown(self) -> tuple[str, ...]:
        return self._host.shutdown()

    def death(self) -> Exception | None:
        return self._host.death()


def quick_plan(
    *, hops: int = 1, guests: int = 1, observe: Observation = QUICK, fault: str | None = None
) -> Plan:
    """Guests of 2 MiB each; waits that run out soon."""
    names = [f"vm{index}" for index in range(guests)]
    plan = make_plan(
        hops=hops,
        observe=observe,
        guests=tuple(
            GuestSpec(name=name, memory_bytes=2 << 20, pattern_bytes=64 << 10) for name in names
        ),
        budget=Budget(clock_ppm=_CLOCK_PPM),
    )
    return replace(
        plan,
        cold=True,
        machine=replace(
            plan.machine,
            memory_bytes=16 << 20,
            disks=tuple((name, 1 << 20) for name in names),
        ),
        timeouts=Timeouts(jump_s=1.0, incoming_s=1.0, restore_s=1.0),
        fault=None if fault is None else FaultPlan(name=fault, expected=NOT_COMPARED, proves=True),
    )


@dataclass
class FakeRun:
    """Runs of one plan."""

    root: Path
    results: Path
    plan: Plan = field(default_factory=quick_plan)
    scenario: Scenario = field(default_factory=Scenario)
    script: Script = field(default_factory=Script)
    is_blind: bool = False
    host: FakeHost | None = None
    events: list[StepEvent] = field(default_factory=list)

    def take(self, plan: Plan, record: RunDir) -> Host:
        self.host = FakeHost(
            plan,
            run_id=record.run_id,
            run_dir=record.path,
            registry=Registry(self.root),
            script=self.script,
        )
        return BlindHost(self.host) if self.is_blind else self.host

    def run(self) -> RunResult:
        steps = Steps()
        steps.subscribe(self.events.append)
        return runner.run(
            self.plan,
            self.scenario,
            results=self.results,
            steps=steps,
            argv=ARGV,
            accel_reason=ACCEL_REASON,
            take=self.take,
        )

    @property
    def machine(self) -> FakeMachine:
        assert self.host is not None
        return self.host.machine

    @property
    def record(self) -> RunDir:
        """The newest run directory, read from disk."""
        return RunDir.open(self.results / "latest")

    def steps(self, kind: str) -> list[str]:
        return [event.name for event in self.events if event.kind == kind]


def leftovers(root: Path) -> dict[str, list[str]]:
    """Name what a run may not leave: threads, open files and sockets, files of its machine."""
    return {
        # that one starts all children of the tool, and stays
        "threads": sorted(
            thread.name
            for thread in threading.enumerate()
            if not thread.name.startswith("liveupdate-spawn")
        ),
        "open": sorted(_opened()),
        "files": sorted(str(path) for path in root.rglob("*")),
    }


def _opened() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:  # that of the listing itself
            continue
        # numbers of sockets and pipes differ from run to run
        found.append(target.partition(":[")[0])
    return found
