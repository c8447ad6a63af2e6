# SPDX-License-Identifier: Apache-2.0
"""The runs of a matrix: one after the other in this process, or several at a time as children."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from liveupdate.cli.app import App
from liveupdate.cli.matrix import Override, count_missing, run_here
from liveupdate.cli.output import log
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import DeadlineExceeded, PlanError, ScenarioError
from liveupdate.model.verdict import ExitCode

if TYPE_CHECKING:
    from liveupdate.core.proc import Child
    from liveupdate.planning.matrix import Cell

#: a child keeps to its scenario's own deadlines, whose sum is not known here
RUN_S = 4 * 3600.0
_POLL_S = 0.2
_END_S = 20.0
_LOG_BYTES = 4096
#: what of our environment decides where a child finds things
_ENV_KEPT = (
    "LIVEUPDATE_CHECKOUT", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME", "PYTHONPATH", "LIBVIRT_DEFAULT_URI",
)  # fmt: skip


def fill_all(
    app: App,
    wanted: Mapping[Cell, int],
    scenario: str | None,
    more: Sequence[Override],
    results: Path,
    *,
    jobs: int,
    refused: dict[Cell, str],
    done: Callable[[], object],
) -> None:
    """Make all missing runs, in rounds of one run for each cell.

    A disturbance of the machine then affects all cells alike, and an interrupted matrix has some
    results for each cell.

    :param wanted: how many runs each cell must have.
    :param refused: receives the reason for each cell of which a run could not be made.
    :param done: called after each run.
    """
    missing = {cell: count_missing(cell, runs, results) for cell, runs in wanted.items()}
    queue = [
        cell
        for number in range(max(missing.values(), default=0))
        for cell, count in missing.items()
        if number < count
    ]
    if jobs > 1:
        _fill_with_children(queue, scenario, more, results, jobs, refused, done)
        return
    impossible: set[Cell] = set()
    for at, cell in enumerate(queue, 1):
        if cell in impossible:
            continue
        log(f"matrix: run {at} of {len(queue)}: {cell.name}")
        try:
            reason = run_here(app, cell, scenario, more, results / cell.name)
        except (PlanError, ScenarioError) as error:
            reason = str(error)  # this combination cannot be; the others may
            impossible.add(cell)
        if reason:
            refused[cell] = reason
            log(f"matrix: {cell.name}: {reason}")
        done()


def child_argv(
    cell: Cell, scenario: str | None, more: Sequence[Override], directory: Path
) -> tuple[str, ...]:
    """Return the command line of a child that makes one run of a cell."""
    sets = [f"--set={key}={value}" for key, value, _ in (*cell.overrides(), *more)]
    chosen = [] if scenario is None else [scenario]
    return (sys.executable, "-m", "liveupdate", "run", *chosen, *sets, "--results", str(directory))


@dataclass(frozen=True, slots=True)
class _Job:
    cell: Cell
    child: Child
    log: IO[bytes]
    ends: float


def _fill_with_children(
    queue: Sequence[Cell],
    scenario: str | None,
    more: Sequence[Override],
    results: Path,
    jobs: int,
    refused: dict[Cell, str],
    done: Callable[[], object],
) -> None:
    """Keep ``jobs`` children at work. They end with this process, however it ends."""
    waiting = list(reversed(queue))
    impossible: set[Cell] = set()
    running: list[_Job] = []
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop()
                if cell not in impossible:
                    running.append(_start(cell, scenario, more, results, stack))
            for job in [job for job in running if _is_over(job)]:
                running.remove(job)
                reason = _collect(job)
                if reason:
                    refused[job.cell] = reason
                    log(f"matrix: {job.cell.name}: {reason}")
                if job.child.returncode == ExitCode.USAGE:
                    impossible.add(job.cell)
                done()
            time.sleep(_POLL_S)


def _start(
    cell: Cell, scenario: str | None, more: Sequence[Override], results: Path, stack: ExitStack
) -> _Job:
    from liveupdate.core import proc

    directory = results / cell.name
    directory.mkdir(parents=True, exist_ok=True)
    log(f"matrix: {cell.name} begins")
    output = stack.enter_context((directory / "child.log").open("w+b"))
    child = proc.spawn(
        child_argv(cell, scenario, more, directory),
        stdout=output,
        stderr=output,
        env={name: os.environ[name] for name in _ENV_KEPT if name in os.environ},
    )
    stack.callback(_end, child)
    return _Job(cell, child, output, time.monotonic() + RUN_S)


def _end(child: Child) -> None:
    """Have a child clean up after itself before it is killed."""
    if child.returncode is None:
        child.signal(signal.SIGTERM)
        with contextlib.suppress(DeadlineExceeded):
            child.wait(Deadline.after(_END_S, "a run to clean up"))
    child.close()


def _is_over(job: _Job) -> bool:
    return job.child.returncode is not None or time.monotonic() > job.ends


def _collect(job: _Job) -> str:
    """Return why a child made no run that can be judged; "": it made one."""
    if job.child.returncode is None:
        job.child.kill()
        return f"no end after {RUN_S:.0f} s"
    if job.child.returncode in (ExitCode.PASS, ExitCode.FAIL, ExitCode.SKIP):
        return ""
    job.log.flush()
    size = job.log.seek(0, os.SEEK_END)
    job.log.seek(max(0, size - _LOG_BYTES))
    lines = job.log.read().decode("utf-8", "replace").splitlines()
    said = [line.partition("error: ")[2] for line in lines if "liveupdate: error: " in line]
    return said[-1] if said else f"exit status {job.child.returncode}, see {job.log.name}"
