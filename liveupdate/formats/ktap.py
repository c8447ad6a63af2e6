# SPDX-License-Identifier: Apache-2.0
"""KTAP version 1 (``Documentation/dev-tools/ktap.rst``): results as values, written and parsed.

The parser takes what the specification allows and existing tests print: TAP 13 and 14 headers,
subtests that are indented by 4 blanks (KUnit) in place of 2, unknown lines anywhere, a plan that is
missing, a directive it does not know (ok / not ok decides). What contradicts the plan or the
numbering is kept as a note, never repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

VERSION = "KTAP version 1"
DIRECTIVES = ("SKIP", "TODO", "XFAIL", "TIMEOUT", "ERROR")

_VERSION = re.compile(r"(?:KTAP version 1|TAP version 1[34])\s*")
_PLAN = re.compile(r"1\.\.(\d{1,9})(?:\s+#.*)?\s*")
_RESULT = re.compile(r"(not ok|ok) (\d{1,9})\b\s*(?:- )?([^#]*?)\s*(?:#\s*(.*))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class KtapError(ValueError):
    """The text is no KTAP at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KtapTest:
    """One result line with what stood before it. ``directive`` is "" or one of DIRECTIVES."""

    ok: bool
    number: int
    name: str
    directive: str = ""
    text: str = ""
    diagnostics: tuple[str, ...] = ()
    subtests: tuple[KtapTest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KtapReport:
    """A whole document; ``notes`` say where it contradicts itself."""

    planned: int | None
    tests: tuple[KtapTest, ...]
    notes: tuple[str, ...] = ()


def _plain(text: str) -> str:
    return _CONTROL.sub(" ", text).strip()


def render(tests: Iterable[KtapTest], *, indent: int = 0) -> Iterator[str]:
    """Write lines, version and plan first, subtests before their parent; numbers are made anew."""
    results = tuple(tests)
    margin = "  " * indent
    yield margin + VERSION
    yield f"{margin}1..{len(results)}"
    for number, test in enumerate(results, 1):
        if test.subtests:
            yield from render(test.subtests, indent=indent + 1)
        for line in test.diagnostics:
            yield f"{margin}# {_plain(line)}".rstrip()
        result = f"{margin}{'ok' if test.ok else 'not ok'} {number}"
        # a description holds no '#': what follows one is the directive
        name = _plain(test.name).replace("#", "")
        if f"{name} ".startswith("- "):  # else taken for the dash that may stand before a name
            name = f"- {name}"
        result += f" {name}" if name else ""
        remark = " ".join(filter(None, (test.directive, _plain(test.text))))
        yield result + (f" # {remark}" if remark else "")


@dataclass(slots=True)
class _Level:
    planned: int | None
    tests: list[KtapTest]
    diagnostics: list[str]
    pending: tuple[KtapTest, ...] = ()


def parse(text: str) -> KtapReport:
    """Parse a document, whatever stands before its version line.

    :raises KtapError: when there is no version line.
    """
    levels: list[_Level] = []
    notes: list[str] = []
    step = _indent_of(text)
    for line in text.splitlines():
        body = line.lstrip(" ")
        depth = (len(line) - len(body)) // step
        if _VERSION.fullmatch(body):
            if depth > len(levels) or (levels and depth == 0):
                notes.append(f"a version line {depth} levels deep, where {len(levels)} were open")
            while len(levels) > max(depth, 1 if levels else 0):
                _close(levels, notes)
            levels.append(_Level(planned=None, tests=[], diagnostics=[]))
        elif levels:
            _take(levels, depth, body, notes)
    if not levels:
        raise KtapError("no version line ('KTAP version 1') in the text")
    while len(levels) > 1:
        notes.append("the text ends within a subtest")
        _close(levels, notes)
    top = levels[0]
    _check_plan(top, notes)
    return KtapReport(planned=top.planned, tests=tuple(top.tests), notes=tuple(notes))


def _indent_of(text: str) -> int:
    """Return by how many blanks a level is indented: as the first version line that is says."""
    for line in text.splitlines():
        body = line.lstrip(" ")
        if len(body) < len(line) and _VERSION.fullmatch(body):
            return 4 if len(line) - len(body) == 4 else 2
    return 2


def _take(levels: list[_Level], depth: int, body: str, notes: list[str]) -> None:
    """Take one line below the first version line."""
    result = _RESULT.fullmatch(body)
    if result is not None:
        # the parent's result line, one step further out, ends the subtests
        while len(levels) > depth + 1:
            _close(levels, notes)
        if depth + 1 == len(levels):
            _add_result(levels[-1], result, notes)
        return
    plan = _PLAN.fullmatch(body)
    if plan is not None and depth + 1 == len(levels):
        levels[-1].planned = int(plan[1])
    elif body.startswith("#"):
        levels[min(depth, len(levels) - 1)].diagnostics.append(body[1:].strip())


def _add_result(level: _Level, match: re.Match[str], notes: list[str]) -> None:
    remark = match[4] or ""
    word, _, rest = remark.partition(" ")
    directive = word.rstrip(":").upper()
    is_known = directive in DIRECTIVES
    test = KtapTest(
        ok=match[1] == "ok",
        number=int(match[2]),
        name=match[3],
        directive=directive if is_known else "",
        text=rest.strip() if is_known else remark,
        diagnostics=tuple(level.diagnostics),
        subtests=level.pending,
    )
    if test.number != len(level.tests) + 1:
        notes.append(f"test '{test.name}' has number {test.number}, not {len(level.tests) + 1}")
    level.tests.append(test)
    level.diagnostics = []
    level.pending = ()


def _close(levels: list[_Level], notes: list[str]) -> None:
    closed = levels.pop()
    _check_plan(closed, notes)
    if levels:
        levels[-1].pending = tuple(closed.tests)


def _check_plan(level: _Level, notes: list[str]) -> None:
    if level.planned is not None and level.planned != len(level.tests):
        notes.append(f"{level.planned} tests were planned, {len(level.tests)} were reported")
