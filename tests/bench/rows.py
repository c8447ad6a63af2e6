# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: what is measured of each subject, and what the bound is."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.subject import Failed, Measured, Subject, alternate

ABSENT = "absent"
#: the incoming kernel says when it starts its init at this level and above
_SAY_INIT = ("--set", "host.next_append=loglevel=7")
_COLD_RUNS = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One budget: what was measured of each subject (None: it cannot be), and the bound."""

    what: str
    values: tuple[float | None, ...]
    unit: str
    #: None: shown to be compared, not bounded
    bound: float | None = None

    def cells(self) -> Iterator[str]:
        """Yield what stands in the table's columns."""
        first, *others = self.values
        yield self.what
        yield self._shown(first)
        yield "" if self.bound is None else f"{self.bound:g} {self.unit}"
        if self.bound is None or first is None:
            yield ""
        else:
            yield "holds" if first <= self.bound else "EXCEEDED"
        for other in others:
            yield self._shown(other)
            if first is None or other is None:
                yield ABSENT
            else:
                # both are shown as 0.00: the ratio would be one of noise
                yield f"{first / other:.2f}" if round(other, 2) else "–"

    def _shown(self, value: float | None) -> str:
        return ABSENT if value is None else f"{value:.2f} {self.unit}"


def header(names: Sequence[str]) -> tuple[str, ...]:
    """Return the table's head for these subjects, of which the first is the one measured."""
    more = [cell for name in names[1:] for cell in (name, f"{names[0]} / {name}")]
    return ("budget", "measured", "bound", "", *more)


def line(cells: Sequence[str]) -> str:
    """Write cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def per_subject(
    found: Sequence[Sequence[Sequence[Any]]], value: Callable[..., float | None]
) -> tuple[float | None, ...]:
    """Reduce what was measured of each subject to a figure.

    A subject of which nothing was measured has none, and so has another commit whose runs lack what
    the figure is made of.
    """
    values: list[float | None] = []
    for index, works in enumerate(found):
        try:
            values.append(value(*works) if all(works) else None)
        except (KeyError, ValueError):
            if index == 0:
                raise
            values.append(None)
    return tuple(values)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def unavoidable(run: Measured) -> float:
    """Host boot, guest boot, kexec to the agent, and the observation window."""
    names = ("boot-host", "boot-guests", "observe-before", "observe-after")
    return sum(run.steps_s[name] for name in names) + run.phases_s["blackout-host"]


def bare_blackout(run: Measured) -> float:
    """Kexec to the agent's hello, and start of the VMM to resume."""
    names = ("outgoing", "kernel", "vmm-start", "load-state", "resume")
    return sum(run.phases_s[name] for name in names)


def measure_runs(subjects: Sequence[Subject], repeat: int, say: Say) -> Iterator[Row]:
    """Yield what whole runs with one guest show."""
    cold = alternate(subjects, min(repeat, _COLD_RUNS), [lambda s: s.run("--cold")], say)
    yield Row(
        what="cold run / what cannot be avoided", unit="×", bound=1.25,
        values=per_subject(cold, lambda runs: median([r.wall_s / unavoidable(r) for r in runs])),
    )  # fmt: skip
    yield Row(
        what="cold run", unit="s", bound=60,
        values=per_subject(cold, lambda runs: median([run.wall_s for run in runs])),
    )  # fmt: skip
    alternate(subjects, 1, [lambda s: s.run()], say)  # saves the warm state if there is none
    works: tuple[Callable[[Subject], Measured], ...] = (
        lambda s: s.run(),
        lambda s: s.run("--set", "observe.memory=false"),
        lambda s: s.run(*_SAY_INIT),
    )
    warm = alternate(subjects, repeat, works, say)

    def blackout(runs: Sequence[Measured]) -> float:
        return median([run.blackout_s for run in runs])

    def agent_start(runs: Sequence[Measured]) -> float | None:
        known = [run.agent_start_s for run in runs if run.agent_start_s is not None]
        return median(known) if known else None

    yield Row(
        what="warm run", unit="s", bound=25,
        values=per_subject(warm, lambda runs, _bare, _init: median([r.wall_s for r in runs])),
    )  # fmt: skip
    yield Row(
        what="blackout", unit="s",
        values=per_subject(warm, lambda runs, _bare, _init: blackout(runs)),
    )  # fmt: skip
    yield Row(
        what="blackout / kexec and VMM start without verification", unit="×", bound=1.10,
        values=per_subject(
            warm,
            lambda runs, bare, _init: blackout(runs) / median([bare_blackout(r) for r in bare]),
        ),
    )  # fmt: skip
    yield Row(
        what="incoming kernel's first line to the agent's hello", unit="s",
        values=per_subject(
            warm, lambda runs, _bare, _init: median([r.phases_s["kernel"] for r in runs])
        ),
    )  # fmt: skip
    yield Row(
        what="agent start: incoming kernel's init to the agent's hello", unit="s",
        values=per_subject(warm, lambda _runs, _bare, init: agent_start(init)),
    )  # fmt: skip
    large = alternate(subjects, 1, [lambda s: s.run("--guest-memory", "1G")], say)
    both = [[*large[i], *warm[i][:1]] for i in range(len(subjects))]
    yield Row(
        what="blackout of 1 GiB / of 256 MiB", unit="×", bound=1.2,
        values=per_subject(both, lambda big, runs: big[0].blackout_s / blackout(runs)),
    )  # fmt: skip
    yield Row(
        what="PRESERVE_FD of 1 GiB inside the blackout", unit="s", bound=0.1,
        values=per_subject(large, lambda big: big[0].phases_s["preserve-state"]),
    )  # fmt: skip


def largest(run: Measured, name: str, **labels: str) -> float:
    """Return the largest value of a metric, of those with these labels."""
    return max(
        float(each["value"])
        for each in run.metrics
        if each["name"] == name and labels.items() <= each["labels"].items()
    )


def measure_devices(subjects: Sequence[Subject], say: Say) -> Iterator[Row]:
    """Yield budgets of the IOMMU watch, from one run with 65,536 scattered pages mapped."""
    runs = alternate(subjects, 1, [lambda s: s.run("vfio-kinds")], say)
    yield Row(
        what="walk of 65,536 mappings from outside", unit="s", bound=0.5,
        values=per_subject(runs, lambda r: largest(r[0], "iommu.walk", view="outside") / 1e9),
    )  # fmt: skip
    yield Row(
        what="sampling of the IOMMU, of one core", unit="%", bound=5,
        values=per_subject(runs, lambda r: largest(r[0], "iommu.sampling.cpu")),
    )  # fmt: skip
    yield Row(
        what="tables of 65,536 mappings preserved, kernel's clock", unit="ms", bound=10,
        values=per_subject(runs, lambda r: largest(r[0], "iommu.preserve") / 1e6),
    )  # fmt: skip


def measure_inside(subjects: Sequence[Subject], say: Say) -> Iterator[Row]:
    """Yield what needs no run."""

    def inside(subject: Subject) -> dict[str, float]:
        try:
            found: dict[str, float] = json.loads(subject.call("-m", "tests.bench.micro"))
        except ValueError as error:
            raise Failed(f"{subject.name}: tests.bench.micro: {error}") from error
        return found

    found = alternate(subjects, 1, [inside], say)
    yield Row(
        what="comparison of 65,000 mappings", unit="s", bound=0.5,
        values=per_subject(found, lambda f: f[0]["comparison_s"]),
    )  # fmt: skip
    yield Row(
        what="xxh3 over whole megabytes / page digests", unit="×", bound=2,
        values=per_subject(
            found, lambda f: f[0]["digests_plain_bytes_per_s"] / f[0]["digests_paged_bytes_per_s"]
        ),
    )  # fmt: skip
    yield Row(
        what="digests of 3 GiB", unit="s", bound=4,
        values=per_subject(found, lambda f: (3 << 30) / f[0]["digests_paged_bytes_per_s"]),
    )  # fmt: skip
    helps = alternate(subjects, 5, [lambda s: s.time_call("-m", "liveupdate", "--help")], say)
    yield Row(
        what="`liveupdate --help`", unit="s", bound=0.15,
        values=per_subject(helps, median),
    )  # fmt: skip


def measure_setup(subjects: Sequence[Subject]) -> Iterator[Row]:
    """Yield how long ``make setup`` takes when nothing is to do, in the first subject only."""
    argv = ["make", "-s", "setup"]
    walls = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run(
            argv, cwd=subjects[0].root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        walls.append(time.monotonic() - began)
        if done.returncode != 0:
            raise Failed(f"{subjects[0].name}: '{' '.join(argv)}' exit {done.returncode}")
    # in the other's worktree it would install packages
    others = (None,) * (len(subjects) - 1)
    yield Row(what="`make setup`, up to date", unit="s", bound=2, values=(median(walls), *others))
