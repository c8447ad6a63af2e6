# SPDX-License-Identifier: Apache-2.0
"""Line numbers of the keys of a TOML document, which :mod:`tomllib` does not give.

The text must already have been accepted by :func:`tomllib.loads`; this scanner only finds where
statements begin and takes the meaning of keys from tomllib itself. Keys inside inline tables and
arrays get no entry of their own: :meth:`KeyLines.line` answers with the enclosing key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]
"""Table names and keys; an int is the index in an array of tables."""

_QUOTES = ('"""', "'''", '"', "'")


@dataclass(frozen=True, slots=True)
class KeyLines:
    """The line of each key of a document, counted from 1."""

    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """Line of ``path``, or of the nearest key or table around it, or 1."""
        for length in range(len(path), 0, -1):
            found = self.lines.get(path[:length])
            if found is not None:
                return found
        return 1


def scan(text: str) -> KeyLines:
    """Find the line of every table header and every key of ``text``.

    :param text: a document which tomllib has accepted.
    """
    text = text.replace("\r\n", "\n")
    lines: dict[KeyPath, int] = {}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    at = 0
    line = 1
    while at < len(text):
        if text[at] in " \t\n":
            line += text[at] == "\n"
            at += 1
            continue
        if text[at] == "#":
            at = _end_of_line(text, at)
            continue
        begin = at
        if text.startswith("[[", at):
            at = _until(text, at + 2, "]")
            path = _resolve(_parse_key(text[begin + 2 : at]), arrays)
            arrays[path] = arrays.get(path, -1) + 1
            table = (*path, arrays[path])
            _note(lines, table, line)
            at = _end_of_line(text, at)
        elif text[at] == "[":
            at = _until(text, at + 1, "]")
            table = _resolve(_parse_key(text[begin + 1 : at]), arrays)
            _note(lines, table, line)
            at = _end_of_line(text, at)
        else:
            at = _until(text, at, "=")
            path = (*table, *_parse_key(text[begin:at]))
            _note(lines, path, line)
            at = _end_of_value(text, at + 1)
            line += text.count("\n", begin, at)
    return KeyLines(lines)


def _note(lines: dict[KeyPath, int], path: KeyPath, line: int) -> None:
    """Enter ``path`` and all tables that it makes on the way, each where it is seen first."""
    for length in range(1, len(path) + 1):
        lines.setdefault(path[:length], line)


def _parse_key(raw: str) -> tuple[str, ...]:
    """Split a possibly quoted, possibly dotted key by asking tomllib."""
    node: object = tomllib.loads(f"{raw.strip()} = 0")
    names: list[str] = []
    while isinstance(node, dict):
        name, node = next(iter(node.items()))
        names.append(name)
    return tuple(names)


def _resolve(names: tuple[str, ...], arrays: Mapping[KeyPath, int]) -> KeyPath:
    """Put in the index of every array of tables on the way: TOML means its last element."""
    path: KeyPath = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if path in arrays and position < len(names) - 1:
            path = (*path, arrays[path])
    return path


def _skip_string(text: str, at: int) -> int:
    """Return the position after the string that begins at ``at``."""
    quote = next(mark for mark in _QUOTES if text.startswith(mark, at))
    at += len(quote)
    while at < len(text) and not text.startswith(quote, at):
        at += 2 if text[at] == "\\" and quote[0] == '"' else 1
    at += len(quote)
    # up to two quotation marks may stand right before the closing three
    while len(quote) == 3 and at < len(text) and text[at] == quote[0]:
        at += 1
    return at


def _until(text: str, at: int, mark: str) -> int:
    """Position of the next ``mark`` outside of strings."""
    while at < len(text) and text[at] != mark:
        at = _skip_string(text, at) if text[at] in "\"'" else at + 1
    return at


def _end_of_line(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


def _end_of_value(text: str, at: int) -> int:
    """Position of the line end that closes the value, which may span lines."""
    depth = 0
    while at < len(text):
        char = text[at]
        if char in "\"'":
            at = _skip_string(text, at)
            continue
        if char == "#":
            at = _end_of_line(text, at)
            continue
        if char == "\n" and depth == 0:
            return at
        depth += (char in "[{") - (char in "]}")
        at += 1
    return at
