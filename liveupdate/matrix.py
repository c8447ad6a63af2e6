# SPDX-License-Identifier: Apache-2.0
"""Mechanisms side by side: cells of a matrix, and what their runs come to. Pure.

Works on the documents of ``result.json``, so that a matrix can be made again from its directory
with no machine, and one that was broken off goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

Document = Mapping[str, Any]

#: a run that ended so has been observed; an ERROR has not, and is done again
OBSERVED = ("PASS", "FAIL", "SKIP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination; ``guest_memory`` as the user wrote it, such as "256M"."""

    mechanism: str
    guest_memory: str
    guests: int

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.mechanism}-{self.guest_memory}-{self.guests}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure: which metric or phase of a result it is. ``labels`` must all be equal."""

    key: str
    title: str
    unit: str
    metric: str
    labels: Mapping[str, str]


def _phase(key: str, title: str, phase: str) -> Column:
    return Column(key=key, title=title, unit="ns", metric="phase", labels={"phase": phase})


COLUMNS = (
    _phase("prepare", "prepare", "prepare"),
    Column(key="blackout", title="blackout", unit="ns", metric="blackout", labels={}),
    _phase("preserve_state", "preserve state", "preserve-state"),
    _phase("kernel", "incoming kernel", "kernel"),
    _phase("retrieve", "retrieve", "retrieve"),
    _phase("load_state", "load state", "load-state"),
    Column(
        key="mem_free", title="free memory after", unit="bytes", metric="memory.mem-free", labels={}
    ),
    Column(key="scratch", title="KHO scratch", unit="bytes", metric="memory.scratch", labels={}),
)
"""What is compared, in the order of the table."""

#: checks whose verdicts are columns of their own
CHECKS = ("memory.content", "memory.placement", "guest.liveness")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What the runs of a cell came to in one column: ``count`` values, median and spread."""

    count: int
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A cell and what is known of it. A figure that no run gave is not in ``figures``."""

    cell: Cell
    #: run directories by outcome, in the order in which they were made
    runs: tuple[tuple[str, str], ...]
    #: why it did not pass, of the last run that did not; or why there was no run
    reason: str
    figures: Mapping[str, Figure]
    #: worst status of each of :data:`CHECKS` over the runs
    checks: Mapping[str, str]

    @property
    def works(self) -> str:
        """Say how many runs passed; "" when there was none."""
        passed = sum(outcome == "PASS" for outcome, _ in self.runs)
        return f"{passed}/{len(self.runs)}" if self.runs else ""


def make_cells(
    mechanisms: Sequence[str], guest_memory: Sequence[str], guests: Sequence[int]
) -> tuple[Cell, ...]:
    """Combine everything with everything, mechanisms innermost: what is compared is run close."""
    return tuple(
        Cell(mechanism=mechanism, guest_memory=memory, guests=count)
        for memory, count, mechanism in product(guest_memory, guests, mechanisms)
    )


def is_observed(document: Document) -> bool:
    """Whether a run says something about its mechanism."""
    return document.get("outcome") in OBSERVED


def summarise(cell: Cell, documents: Iterable[tuple[str, Document]], refused: str = "") -> Row:
    """Reduce the runs of a cell.

    :param documents: run directory and ``result.json`` of each.
    :param refused: why no run could be begun, if so.
    """
    found = list(documents)
    failed = [doc for _, doc in found if doc.get("outcome") != "PASS"]
    figures = {}
    for column in COLUMNS:
        values = [value for _, doc in found for value in _values(doc, column)]
        if values:
            figures[column.key] = Figure(
                count=len(values), median=median(values), low=min(values), high=max(values)
            )
    return Row(
        cell=cell,
        runs=tuple((str(doc.get("outcome")), path) for path, doc in found),
        reason=str(failed[-1].get("reason", "")) if failed else refused,
        figures=figures,
        checks={check: _worst(check, [doc for _, doc in found]) for check in CHECKS if found},
    )


def _values(document: Document, column: Column) -> list[float]:
    """Return one value for each hop (and guest) of a run that passed; others prove nothing."""
    if document.get("outcome") != "PASS":
        return []
    return [
        float(metric["value"])
        for metric in document.get("metrics", ())
        if metric["name"] == column.metric
        and all(metric["labels"].get(key) == value for key, value in column.labels.items())
    ]


def _worst(check: str, documents: Iterable[Document]) -> str:
    ranks = ("ERROR", "FAIL", "SKIP", "PASS")
    found = [each["status"] for doc in documents for each in doc["checks"] if each["id"] == check]
    return min(found, key=ranks.index, default="")
