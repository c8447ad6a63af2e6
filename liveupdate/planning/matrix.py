# SPDX-License-Identifier: Apache-2.0
"""Mechanisms side by side: cells of a matrix, and the results of their runs. Pure.

Works on the documents of ``result.json``, so that a matrix can be made again from its directory
without a machine, and an interrupted one continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import PurePath
from statistics import median
from typing import Any

from liveupdate.core.units import GIB, parse_size
from liveupdate.scenario.load import Override

Document = Mapping[str, Any]

#: a run that ended so has been observed; an ERROR has not, and is done again
OBSERVED = ("PASS", "FAIL", "SKIP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination.

    :ivar guest_memory: as the user wrote it, such as "256M".
    :ivar next_kernel: path of the incoming kernel; "": the built one.
    :ivar fragment: share of the host's free memory that is fragmented first.
    """

    mechanism: str
    guest_memory: str
    guests: int
    next_kernel: str = ""
    fragment: float = 0.0

    @property
    def name(self) -> str:
        """Name of its directory."""
        parts = [self.mechanism, self.guest_memory, str(self.guests)]
        if self.next_kernel:
            # images are named alike in directories of their own
            parts.append("-".join(PurePath(self.next_kernel).parts[-2:]).strip("/"))
        if self.fragment:
            parts.append(f"fragmented{self.fragment:g}")
        return "-".join(parts)

    @property
    def whole(self) -> Cell:
        """The same cell without fragmented memory."""
        return replace(self, fragment=0.0)

    def overrides(self) -> tuple[Override, ...]:
        """Return what the cell sets in a scenario.

        The host boots again, because only then there is an allocation to measure.
        """
        found = [
            Override("mechanism", self.mechanism, "--mechanisms"),
            Override("guests", str(self.guests), "--guests"),
            Override("guest.*.memory", self.guest_memory, "--guest-memory"),
            Override("observe.hugetlb", "true", "matrix"),
            Override("cold", "true", "matrix"),
        ]
        if self.next_kernel:
            found.append(Override("next_kernel", self.next_kernel, "--next-kernels"))
        if self.fragment:
            found.append(Override("host.fragment", f"{self.fragment:g}", "--fragment"))
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure: which metric or phase of a result it is.

    :ivar labels: must all be equal.
    :ivar without: why a run that passed may have none.
    """

    key: str
    title: str
    unit: str
    metric: str
    labels: Mapping[str, str]
    without: str = "the agent of these runs did not tell"


def _phase(key: str, title: str, phase: str) -> Column:
    return Column(
        key=key, title=title, unit="ns", metric="phase", labels={"phase": phase},
        without="an end of this phase was not seen",
    )  # fmt: skip


def _plain(key: str, title: str, unit: str, metric: str, **more: str) -> Column:
    without = more.pop("without", "the agent of these runs did not tell")
    return Column(key=key, title=title, unit=unit, metric=metric, labels=more, without=without)


ALLOCATE = _plain("allocate", "allocation, all RAM of a guest", "ns", "allocate")
HUGE = _plain(
    "huge", "mapped with 2 MiB pages, before", "%", "memory.huge", when="before",
    without="KVM's debugfs could not be read",
)  # fmt: skip

COLUMNS = (
    ALLOCATE,
    _plain("hugetlb", "the same from hugetlbfs, all guests", "ns", "allocate.hugetlb",
           without="there were not enough free pages of 2 MiB for it"),
    _phase("prepare", "prepare, guest running", "prepare"),
    _plain("blackout", "blackout", "ns", "blackout"),
    _plain("share", "blackout, mechanism's share", "%", "blackout.share",
           without="a phase of it was not seen"),
    _phase("preserve_state", "state preserved, in the blackout", "preserve-state"),
    _phase("outgoing", "jump to first line of the incoming kernel", "outgoing"),
    _phase("kernel", "incoming kernel until its agent", "kernel"),
    _plain("restore", "restore", "ns", "restore", without="not all of it was given back"),
    _plain("metadata", "metadata", "bytes", "memory.metadata",
           without="the mechanism has no account of its own, and KHO's map could not be walked"),
    _plain("overhead", "host RAM in use beside the guests' RAM", "bytes", "memory.overhead",
           without="how much RAM the host has is not known"),
    _plain("scratch", "KHO scratch", "bytes", "memory.scratch",
           without="KHO is off, or the kernel does not show it"),
    _plain("struct_pages", "struct pages", "boolean", "memory.struct-pages", when="after",
           without="neither /proc/kpageflags nor vmsplice() could tell"),
    _plain("pinnable", "pages can be pinned (O_DIRECT, VFIO)", "boolean", "memory.pinnable",
           when="after", without="vmsplice() could not tell"),
    HUGE,
    _plain("huge_after", "mapped with 2 MiB pages, after", "%", "memory.huge", when="after",
           without="KVM's debugfs could not be read"),
)  # fmt: skip
"""What is measured, in the order of the table."""

WHOLE_BEFORE = _plain(
    "whole_before", "free and whole before fragmenting", "bytes", "fragment.whole", when="before"
)
WHOLE_AFTER = _plain("whole_after", "free and whole then", "bytes", "fragment.whole", when="after")
FRAGMENTED = (WHOLE_AFTER, ALLOCATE, HUGE)
"""What is shown of runs in fragmented memory."""

ALL_COLUMNS = (*COLUMNS, WHOLE_BEFORE, WHOLE_AFTER)
"""What is kept of a cell."""

#: checks whose verdicts are rows of their own
CHECKS = ("memory.content", "memory.placement", "guest.liveness")

#: figures for which the table shows the growth with the guest's size
SLOPES = ("allocate", "prepare", "blackout", "restore", "metadata")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The results of a cell's runs in one column: ``count`` values, median and spread."""

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


@dataclass(frozen=True, slots=True)
class Slope:
    """How a figure grows with the guests' RAM, over the medians of at least two sizes.

    :ivar per_gib: unit of the figure for each GiB.
    :ivar ratio: of the largest to the smallest size; 1: it costs the same.
    """

    per_gib: float
    ratio: float | None


def make_cells(
    mechanisms: Sequence[str],
    guest_memory: Sequence[str],
    guests: Sequence[int],
    next_kernels: Sequence[str] = ("",),
    fragments: Sequence[float] = (0.0,),
) -> tuple[Cell, ...]:
    """Combine everything with everything, mechanisms innermost: what is compared is run close."""
    return tuple(
        Cell(
            mechanism=mechanism,
            guest_memory=memory,
            guests=count,
            next_kernel=kernel,
            fragment=share,
        )
        for share, kernel, memory, count, mechanism in product(
            fragments, next_kernels, guest_memory, guests, mechanisms
        )
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
    for column in ALL_COLUMNS:
        values = [value for _, doc in found for value in _values(doc, column)]
        if values:
            figures[column.key] = Figure(
                count=len(values), median=median(values), low=min(values), high=max(values)
            )
    return Row(
        cell=cell,
        runs=tuple((str(doc.get("outcome")), path) for path, doc in found),
        reason=_why(failed[-1]) if failed else refused,
        figures=figures,
        checks={check: _worst(check, [doc for _, doc in found]) for check in CHECKS if found},
    )


def _why(document: Document) -> str:
    """Say why a run did not pass: its own reason, else that of its first bad check."""
    reason = str(document.get("reason", ""))
    bad = [
        f"{each['id']} {each['status']}: {each.get('reason', '')}"
        for each in document.get("checks", ())
        if each["status"] in ("ERROR", "FAIL")
    ]
    return reason or next(iter(bad), "") or f"outcome {document.get('outcome')}"


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


def fit_slope(rows: Sequence[Row], key: str) -> Slope | None:
    """Fit a line through the medians of one figure over the sizes of one guest's RAM.

    :param rows: of one mechanism, alike in everything but the size.
    :return: None: fewer than two sizes have the figure.
    """
    points = sorted(
        (parse_size(row.cell.guest_memory) / GIB, row.figures[key].median)
        for row in rows
        if key in row.figures
    )
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in points) / spread
    return Slope(slope, points[-1][1] / points[0][1] if points[0][1] > 0 else None)
