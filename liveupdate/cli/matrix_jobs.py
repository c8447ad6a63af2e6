# SPDX-License-Identifier: Apache-2.0
"""The runs of a matrix, in this process or as children, and what is written of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from liveupdate.cli import prepare_run, run
from liveupdate.cli.app import App
from liveupdate.cli.options import ScenarioArgs
from liveupdate.cli.output import last_lines, log, write_file
from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import DeadlineExceeded, LiveUpdateError, PlanError, ScenarioError
from liveupdate.core.paths import guest_images_dir
from liveupdate.images.codelines import count_lines
from liveupdate.model import slots
from liveupdate.model.verdict import ExitCode
from liveupdate.planning import matrix
from liveupdate.planning.matrix import Cell, Document, Row, is_observed
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.report import matrix as matrix_report
from liveupdate.report.matrix import Mechanism, Mechanisms
from liveupdate.report.matrix_svg import render_plots
from liveupdate.scenario.load import Override

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


@dataclass(frozen=True, slots=True)
class _Job:
    cell: Cell
    child: proc.Child
    log: BinaryIO
    ends: float


@dataclass(slots=True, kw_only=True)
class Runs:
    """The runs of a matrix: those that lie in ``results``, and those still to be made.

    :ivar wanted: how many runs each cell must have.
    :ivar known: what is known of its mechanisms without a run.
    :ivar more: what every cell sets in its scenario, beside its own.
    """

    app: App
    scenario: str | None
    wanted: Mapping[Cell, int]
    known: Mechanisms
    more: Sequence[Override]
    results: Path
    #: why a run of a cell could not be made
    _refused: dict[Cell, str] = field(default_factory=dict)
    _impossible: set[Cell] = field(default_factory=set)

    def show(self) -> list[Row]:
        """Reduce what is on disk of each cell, and write table, document and plots of it."""
        rows = [summarise(cell, self.results, self._refused.get(cell, "")) for cell in self.wanted]
        write_file(self.results / "matrix.json", matrix_report.render_json(rows, self.known))
        write_file(self.results / "matrix.md", matrix_report.render_table(rows, self.known))
        for name, text in render_plots(rows).items():
            write_file(self.results / name, text)
        return rows

    def make(self, jobs: int) -> None:
        """Make all missing runs, in rounds of one run for each cell.

        A disturbance of the machine then affects all cells alike, and an interrupted matrix has
        some results for each cell.

        :param jobs: 1: in this process; more: so many children at a time.
        """
        missing = {}
        for cell, runs in self.wanted.items():
            found = read_results(self.results / cell.name)
            missing[cell] = runs - sum(is_observed(document) for _, document in found)
        queue = [
            cell
            for number in range(max(missing.values(), default=0))
            for cell, count in missing.items()
            if number < count
        ]
        if jobs > 1:
            self._make_with_children(queue, jobs)
            return
        for at, cell in enumerate(queue, 1):
            if cell in self._impossible:
                continue
            log(f"matrix: run {at} of {len(queue)}: {cell.name}")
            reason, is_possible = "", True
            try:
                self._make_here(cell)
            except LiveUpdateError as error:
                reason, is_possible = str(error), not isinstance(error, PlanError | ScenarioError)
            self._end(cell, reason, is_possible=is_possible)

    def _make_here(self, cell: Cell) -> None:
        """Make one run of a cell in this process."""
        overrides = (*cell.overrides(), *self.more)
        scenario_args = ScenarioArgs(scenario=self.scenario, overrides=overrides)
        prepared = prepare_run.prepare(self.app, scenario_args, self.results / cell.name)
        run.carry_out(self.app, prepared, frozenset())

    def _end(self, cell: Cell, reason: str, *, is_possible: bool) -> None:
        """Note a run, and show what there is: a matrix takes hours.

        :param is_possible: this combination can be, if it is tried again.
        """
        if reason:
            self._refused[cell] = reason
            log(f"matrix: {cell.name}: {reason}")
        if not is_possible:
            self._impossible.add(cell)
        self.show()

    def _make_with_children(self, queue: Sequence[Cell], jobs: int) -> None:
        """Keep ``jobs`` children at work. They end with this process, however it ends."""
        waiting = list(reversed(queue))
        running: list[_Job] = []
        with ExitStack() as stack:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop()
                    if cell not in self._impossible:
                        running.append(self._start(cell, stack))
                for job in [job for job in running if _is_over(job)]:
                    running.remove(job)
                    status = job.child.returncode
                    self._end(job.cell, _collect(job), is_possible=status != ExitCode.USAGE)
                time.sleep(_POLL_S)

    def _start(self, cell: Cell, stack: ExitStack) -> _Job:
        directory = self.results / cell.name
        directory.mkdir(parents=True, exist_ok=True)
        log(f"matrix: {cell.name} begins")
        output = stack.enter_context((directory / "child.log").open("w+b"))
        child = proc.spawn(
            child_argv(cell, self.scenario, self.more, directory),
            stdout=output,
            stderr=output,
            env={name: os.environ[name] for name in _ENV_KEPT if name in os.environ},
        )
        stack.callback(_end, child)
        return _Job(cell, child, output, time.monotonic() + RUN_S)


def child_argv(
    cell: Cell, scenario: str | None, more: Sequence[Override], directory: Path
) -> tuple[str, ...]:
    """Return the command line of a child that makes one run of a cell."""
    sets = [f"--set={key}={value}" for key, value, _ in (*cell.overrides(), *more)]
    chosen = [] if scenario is None else [scenario]
    return (sys.executable, "-m", "liveupdate", "run", *chosen, *sets, "--results", str(directory))


def _end(child: proc.Child) -> None:
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
    lines = last_lines(job.log, _LOG_BYTES)
    said = [line.partition("error: ")[2] for line in lines if "liveupdate: error: " in line]
    return said[-1] if said else f"exit status {job.child.returncode}, see {job.log.name}"


def summarise(cell: Cell, results: Path, refused: str) -> Row:
    """Reduce what is on disk of a cell; errors count while there is nothing better."""
    found = read_results(results / cell.name)
    observed = [each for each in found if is_observed(each[1])]
    return matrix.summarise(cell, observed or found, refused)


def read_results(directory: Path) -> list[tuple[str, Document]]:
    """Return path and result of every finished run below ``directory``, oldest first.

    A run that was cut off has no result, and is as if it had never been.
    """
    found: list[tuple[str, Document]] = []
    for path in sorted(directory.glob(f"*/{slots.RESULT}")):
        if path.parent.is_symlink():
            continue
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            log(f"matrix: {path} cannot be used: {error}")
            continue
        found.append((str(path.parent), document))
    return found


def describe(names: Iterable[str]) -> Mechanisms:
    """Return what is known of mechanisms without a run; their kernel code is counted now."""
    found = {}
    for name in names:
        traits = MECHANISMS[name].traits
        lines = count_lines(guest_images_dir(), traits.kernel_code) if traits.kernel_code else 0
        found[name] = Mechanism(traits=traits, code_lines=lines)
    return found


def exit_code(rows: Sequence[Row]) -> ExitCode:
    """Return the worst that any cell came to; a cell without a run is an error."""
    outcomes = {outcome for row in rows for outcome, _ in row.runs}
    if "ERROR" in outcomes or any(not row.runs for row in rows):
        return ExitCode.ERROR
    return ExitCode.FAIL if "FAIL" in outcomes else ExitCode.PASS
