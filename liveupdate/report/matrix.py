# SPDX-License-Identifier: Apache-2.0
"""A matrix as a table for people and as one JSON document. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

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
from liveupdate.report.common import clean, say_value

SCHEMA_VERSION = "2.0"
_EMPTY = "-"


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
    if unit == "boolean":
        return "yes" if value else "no"
    if unit == "%":
        return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"
    return say_value(value, unit)


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


def _group(cell: Cell) -> Cell:
    """Return what is compared side by side: alike in everything but the mechanism."""
    return replace(cell, mechanism="", fragment=0.0)


def _by_group(rows: Iterable[Row]) -> dict[tuple[str, Cell], Row]:
    return {(row.cell.mechanism, _group(row.cell)): row for row in rows}


class _Table:
    """Rows of a matrix, by mechanism and group."""

    def __init__(self, rows: Sequence[Row], mechanisms: Mechanisms) -> None:
        self.mechanisms = mechanisms
        self.names = tuple(dict.fromkeys(row.cell.mechanism for row in rows))
        self.groups = tuple(dict.fromkeys(_group(row.cell) for row in rows))
        self._whole = _by_group(row for row in rows if not row.cell.fragment)
        self._spoilt = _by_group(row for row in rows if row.cell.fragment)
        self.notes = Notes()

    def lines(self) -> Iterator[list[str]]:
        yield ["", "guest RAM", *self.names]
        yield ["---"] * (2 + len(self.names))
        if self._whole:
            yield from self._lines("works", self._whole, self._works)
            for check in CHECKS:
                yield from self._lines(check, self._whole, partial(_say_check, check))
            for column in COLUMNS:
                say = partial(_say_column, column)
                yield from self._lines(column.title, self._whole, say, column)
            for key in SLOPES:
                yield from self._slope(key)
        if self._spoilt:
            yield from self._lines("fragmented: works", self._spoilt, self._works)
            for column in FRAGMENTED:
                say = partial(_say_column, column)
                yield from self._lines(f"fragmented: {column.title}", self._spoilt, say, column)
        yield self._trait("grows after boot", lambda traits: traits.grows)
        yield self._trait("kernel users possible", lambda traits: traits.kernel_users)
        yield self._trait("userspace users possible", lambda traits: traits.userspace_users)
        code = [str(self.mechanisms[name].code_lines) for name in self.names]
        yield ["lines of own kernel code", "any", *code]

    def _lines(
        self,
        title: str,
        rows: Mapping[tuple[str, Cell], Row],
        say: Callable[[Row], str],
        column: Column | None = None,
    ) -> Iterator[list[str]]:
        """Yield a line for each group; a cell without figures has a note with the reason.

        :param column: what the line shows, if it is a figure.
        """
        for group in self.groups:
            found = [rows.get((name, group)) for name in self.names]
            cells = [
                (say(row) if row else "") or self._empty(_why_empty(row, column)) for row in found
            ]
            yield [title, self._label(group), *cells]

    def _label(self, group: Cell) -> str:
        counts = {each.guests for each in self.groups}
        count = f"× {group.guests}" if len(counts) > 1 or group.guests > 1 else ""
        return " ".join(filter(None, (group.guest_memory, count, group.next_kernel)))

    def _empty(self, why: str) -> str:
        return f"{_EMPTY} {self.notes.mark(why)}"

    def _works(self, row: Row) -> str:
        if not row.reason:
            return row.works
        return f"{row.works or _EMPTY} {self.notes.mark(_why_empty(row))}"

    def _slope(self, key: str) -> Iterator[list[str]]:
        """Yield a line for each kind of guests of which there are several sizes."""
        column = next(each for each in COLUMNS if each.key == key)
        kinds = dict.fromkeys(replace(group, guest_memory="all") for group in self.groups)
        for kind in kinds:
            groups = [each for each in self.groups if replace(each, guest_memory="all") == kind]
            if len(groups) < 2:
                continue
            label = "all" if len(kinds) == 1 else self._label(kind)
            line = [f"{column.title}, for each GiB more", label]
            for name in self.names:
                rows = [self._whole[name, g] for g in groups if (name, g) in self._whole]
                slope = fit_slope(rows, key)
                why = "fewer than two sizes have this figure"
                line.append(_say_slope(slope, column.unit) if slope else self._empty(why))
            yield line

    def _trait(self, title: str, pick: Callable[[Traits], Trait]) -> list[str]:
        traits = {name: pick(self.mechanisms[name].traits) for name in self.names}
        notes = {name: self.notes.mark(f"{name}: {each.reason}") for name, each in traits.items()}
        return [title, "any", *(f"{each.answer} {notes[name]}" for name, each in traits.items())]


def _say_check(check: str, row: Row) -> str:
    return row.checks.get(check, "")


def _say_column(column: Column, row: Row) -> str:
    return say_figure(row.figures.get(column.key), column.unit)


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
        "titles": {column.key: column.title for column in ALL_COLUMNS},
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
    kinds: dict[Cell, list[Row]] = {}
    for row in rows:
        kinds.setdefault(replace(row.cell, guest_memory=""), []).append(row)
    for kind, alike in kinds.items():
        for key in SLOPES:
            slope = fit_slope(alike, key)
            if slope is not None:
                yield {
                    "mechanism": kind.mechanism,
                    "guests": kind.guests,
                    "next_kernel": kind.next_kernel,
                    "fragment": kind.fragment,
                    "figure": key,
                    "unit": units[key],
                    **asdict(slope),
                }
