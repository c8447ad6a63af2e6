# SPDX-License-Identifier: Apache-2.0
"""A matrix as a table for people and as one JSON document. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from liveupdate.core.units import format_ns, format_size
from liveupdate.model.mechanism import Trait, Traits
from liveupdate.planning.matrix import (
    ALL_COLUMNS,
    CHECKS,
    COLUMNS,
    FRAGMENTED,
    SLOPES,
    Cell,
    Column,
    Figure,
    Row,
    Slope,
    fit_slope,
)
from liveupdate.report.common import clean

SCHEMA_VERSION = "2.0"
_EMPTY = "-"
_TITLES = {column.key: column.title for column in ALL_COLUMNS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """What is known of a mechanism without a run; ``code_lines`` counts this repository's kernel
    code.
    """

    traits: Traits
    code_lines: int


Mechanisms = Mapping[str, Mechanism]


def say_figure(figure: Figure | None, unit: str) -> str:
    """Format median, spread and number of values; "" where no run gave one."""
    if figure is None:
        return ""
    if figure.low == figure.high or unit == "boolean":
        return _say(figure.median, unit)
    spread = f"{_say(figure.low, unit)}…{_say(figure.high, unit)}"
    return f"{_say(figure.median, unit)} ({spread}, n={figure.count})"


def _say(value: float, unit: str) -> str:
    if unit == "bytes":
        sign = "-" if value < 0 else ""
        return sign + format_size(abs(round(value)))
    if unit == "boolean":
        return "yes" if value else "no"
    if unit == "%":
        return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"
    sign = "-" if value < 0 else ""
    return sign + format_ns(abs(round(value)))


class Notes:
    """Numbered notes that explain cells; the same text has one number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """Return the mark of a note, which is numbered at its first use."""
        number = self._numbers.setdefault(clean(text), len(self._numbers) + 1)
        return f"[{number}]"

    def render(self) -> str:
        """Return the notes as lines of text, in the order of their numbers."""
        return "".join(f"[{number}] {text}\n" for text, number in self._numbers.items())


@dataclass(frozen=True, slots=True)
class _Group:
    """All that is compared side by side: alike in everything but the mechanism."""

    guest_memory: str
    guests: int
    next_kernel: str

    @classmethod
    def of(cls, cell: Cell) -> _Group:
        return cls(cell.guest_memory, cell.guests, cell.next_kernel)

    def label(self, groups: Sequence[_Group]) -> str:
        parts = [self.guest_memory]
        if len({group.guests for group in groups}) > 1 or self.guests > 1:
            parts.append(f"× {self.guests}")
        if self.next_kernel:
            parts.append(self.next_kernel)
        return " ".join(parts)


class _Table:
    """Rows of a matrix, by mechanism and group."""

    def __init__(self, rows: Sequence[Row], mechanisms: Mechanisms) -> None:
        self.mechanisms = mechanisms
        self.names = tuple(dict.fromkeys(row.cell.mechanism for row in rows))
        self.groups = tuple(dict.fromkeys(_Group.of(row.cell) for row in rows))
        whole = [row for row in rows if not row.cell.fragment]
        spoilt = [row for row in rows if row.cell.fragment]
        self._whole = {(row.cell.mechanism, _Group.of(row.cell)): row for row in whole}
        self._spoilt = {(row.cell.mechanism, _Group.of(row.cell)): row for row in spoilt}
        self.notes = Notes()

    def lines(self) -> Iterator[list[str]]:
        yield ["", "guest RAM", *self.names]
        yield ["---"] * (2 + len(self.names))
        if self._whole:
            yield from self._works("works", self._whole)
            for check in CHECKS:
                yield from self._check(check)
            for column in COLUMNS:
                yield from self._figures(column, column.title, self._whole)
            for key in SLOPES:
                yield from self._slope(key)
        if self._spoilt:
            yield from self._works("fragmented: works", self._spoilt)
            for column in FRAGMENTED:
                yield from self._figures(column, f"fragmented: {column.title}", self._spoilt)
        yield self._trait("grows after boot", lambda traits: traits.grows)
        yield self._trait("kernel users possible", lambda traits: traits.kernel_users)
        yield self._trait("userspace users possible", lambda traits: traits.userspace_users)
        code = [str(self.mechanisms[name].code_lines) for name in self.names]
        yield ["lines of own kernel code", "any", *code]

    def _works(self, title: str, rows: Mapping[tuple[str, _Group], Row]) -> Iterator[list[str]]:
        for group in self.groups:
            line = [title, group.label(self.groups)]
            for name in self.names:
                row = rows.get((name, group))
                said = row.works if row else ""
                if row is None or row.reason:
                    said = f"{said or _EMPTY} {self.notes.mark(_why_empty(row))}"
                line.append(said or f"{_EMPTY} {self.notes.mark(_why_empty(row))}")
            yield line

    def _check(self, check: str) -> Iterator[list[str]]:
        for group in self.groups:
            line = [check, group.label(self.groups)]
            for name in self.names:
                row = self._whole.get((name, group))
                said = row.checks.get(check, "") if row else ""
                line.append(said or f"{_EMPTY} {self.notes.mark(_why_empty(row))}")
            yield line

    def _figures(
        self, column: Column, title: str, rows: Mapping[tuple[str, _Group], Row]
    ) -> Iterator[list[str]]:
        for group in self.groups:
            line = [title, group.label(self.groups)]
            for name in self.names:
                row = rows.get((name, group))
                said = say_figure(row.figures.get(column.key) if row else None, column.unit)
                why = _why_empty(row, column)
                line.append(said or f"{_EMPTY} {self.notes.mark(why)}")
            yield line

    def _slope(self, key: str) -> Iterator[list[str]]:
        """Yield a line for each kind of guests of which there are several sizes."""
        column = next(each for each in COLUMNS if each.key == key)
        kinds = dict.fromkeys((group.guests, group.next_kernel) for group in self.groups)
        for guests, kernel in kinds:
            groups = [g for g in self.groups if (g.guests, g.next_kernel) == (guests, kernel)]
            if len(groups) < 2:
                continue
            line = [f"{column.title}, for each GiB more", "all" if len(kinds) == 1 else
                    _Group("all", guests, kernel).label(self.groups)]  # fmt: skip
            for name in self.names:
                rows = [self._whole[name, g] for g in groups if (name, g) in self._whole]
                slope = fit_slope(rows, key)
                line.append(
                    _say_slope(slope, column.unit)
                    if slope
                    else f"{_EMPTY} {self.notes.mark('fewer than two sizes have this figure')}"
                )
            yield line

    def _trait(self, title: str, pick: object) -> list[str]:
        line = [title, "any"]
        for name in self.names:
            trait = pick(self.mechanisms[name].traits)  # type: ignore[operator]
            assert isinstance(trait, Trait)
            line.append(f"{trait.answer} {self.notes.mark(f'{name}: {trait.reason}')}")
        return line


def _say_slope(slope: Slope, unit: str) -> str:
    sign = "" if slope.per_gib < 0 else "+"
    ratio = "" if slope.ratio is None else f" (×{slope.ratio:.2f})"
    return f"{sign}{_say(slope.per_gib, unit)}{ratio}"


def _why_empty(row: Row | None, column: Column | None = None) -> str:
    if row is None:
        return "this combination is not part of the matrix"
    if not row.runs:
        return f"{row.cell.name}: no run: {row.reason or 'not made yet'}"
    if column is not None and any(outcome == "PASS" for outcome, _ in row.runs):
        return column.without
    return f"{row.cell.name}: {row.reason}"


def render_table(rows: Sequence[Row], mechanisms: Mechanisms) -> str:
    """Render all figures as one Markdown table, a column for each mechanism.

    No cell is empty: an absent figure is "-" and the number of a note with the reason.
    """
    table = _Table(rows, mechanisms)
    lines = list(table.lines())
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        f"| {' | '.join(item.ljust(width) for item, width in zip(line, widths, strict=True))} |"
        for line in lines
    )
    legend = "Medians of runs that passed; in brackets lowest, highest and number of values.\n"
    return f"{text}\n\n{legend}\n{table.notes.render()}"


def render_json(rows: Sequence[Row], mechanisms: Mechanisms) -> str:
    """Render the document; ends with a newline."""
    units = {column.key: column.unit for column in ALL_COLUMNS}
    document = {
        "schema_version": SCHEMA_VERSION,
        "titles": _TITLES,
        "mechanisms": {
            name: {
                "grows": asdict(known.traits.grows),
                "kernel_users": asdict(known.traits.kernel_users),
                "userspace_users": asdict(known.traits.userspace_users),
                "code_lines": known.code_lines,
            }
            for name, known in mechanisms.items()
        },
        "cells": [
            {
                **asdict(row.cell),
                "runs": [{"outcome": outcome, "path": path} for outcome, path in row.runs],
                "reason": row.reason,
                "checks": dict(row.checks),
                "figures": {
                    key: {"unit": units[key], **asdict(figure)}
                    for key, figure in row.figures.items()
                },
                "missing": {
                    column.key: _why_empty(row, column)
                    for column in COLUMNS
                    if column.key not in row.figures
                },
            }
            for row in rows
        ],
        "slopes": list(_slopes(rows)),
    }
    return json.dumps(document, indent=2) + "\n"


def _slopes(rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    units = {column.key: column.unit for column in COLUMNS}
    kinds = dict.fromkeys(
        (row.cell.mechanism, row.cell.guests, row.cell.next_kernel, row.cell.fragment)
        for row in rows
    )
    for kind in kinds:
        cell = [
            row
            for row in rows
            if (row.cell.mechanism, row.cell.guests, row.cell.next_kernel, row.cell.fragment)
            == kind
        ]
        for key in SLOPES:
            slope = fit_slope(cell, key)
            if slope is not None:
                yield {
                    "mechanism": kind[0],
                    "guests": kind[1],
                    "next_kernel": kind[2],
                    "fragment": kind[3],
                    "figure": key,
                    "unit": units[key],
                    **asdict(slope),
                }
