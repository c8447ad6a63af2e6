# SPDX-License-Identifier: Apache-2.0
"""Converts one value of a scenario, from TOML or from the command line, to the type of its key."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core.errors import ScenarioError
from liveupdate.core.suggest import suggest
from liveupdate.core.units import format_size, parse_duration, parse_size
from liveupdate.model.targets import TARGETS, parse_target
from liveupdate.scenario.keys import Key

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
BDF = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value with its origin.

    ``base`` is what a relative path is relative to; ``text``: from the command line, to be parsed.
    """

    value: object
    where: str
    base: Path
    text: bool = False


def convert_value(key: Key, leaf: Leaf) -> object:
    """Check and convert the value of ``leaf``.

    :raises ScenarioError: wrong type, unit or range, naming where the value came from.
    """
    if key.nullable and leaf.value == "none":
        return None
    return _CONVERTERS[key.kind](key, leaf)


def _wrong(key: Key, leaf: Leaf, expected: str, hint: str | None = None) -> ScenarioError:
    shown = repr(leaf.value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ScenarioError(f"'{key.name}' is {shown}, not {expected}", where=leaf.where, hint=hint)


def _string(key: Key, leaf: Leaf) -> str:
    value = leaf.value
    if not isinstance(value, str):
        raise _wrong(key, leaf, "a string")
    if not value.isprintable():
        raise _wrong(key, leaf, "printable text on one line")
    return value


def _text(key: Key, leaf: Leaf) -> str:
    value = _string(key, leaf)
    if not value:
        raise _wrong(key, leaf, "a name")
    return value


def _words(key: Key, leaf: Leaf) -> str:
    value = _string(key, leaf)
    if not value.isascii():
        raise _wrong(key, leaf, "ASCII, as a kernel command line must be")
    return " ".join(value.split())


def _name(key: Key, leaf: Leaf) -> str:
    value = _string(key, leaf)
    if not NAME.fullmatch(value) or len(value) > 64:
        raise _wrong(key, leaf, "1 to 64 of letters, digits, '.', '_' and '-'")
    return value


def _address(key: Key, leaf: Leaf) -> str:
    try:
        return str(ipaddress.IPv4Address(_string(key, leaf)))
    except ValueError as error:
        raise _wrong(key, leaf, "an IPv4 address") from error


def _bdf(key: Key, leaf: Leaf) -> str:
    value = _string(key, leaf).lower()
    value = value if value.count(":") == 2 else f"0000:{value}"
    if not BDF.fullmatch(value):
        raise _wrong(key, leaf, "a PCI address", "write 0000:01:00.0")
    return value


def _path(key: Key, leaf: Leaf) -> str:
    try:
        return str(leaf.base / Path(_text(key, leaf)).expanduser())
    except RuntimeError as error:
        raise _wrong(key, leaf, "a path that can be resolved") from error


def _target(key: Key, leaf: Leaf) -> str:
    value = _string(key, leaf)
    try:
        parse_target(value)
    except ValueError as error:
        hint = None if value in TARGETS else suggest(value.partition(":")[0], TARGETS)
        raise _wrong(key, leaf, str(error), hint) from error
    return value


def _choice(key: Key, leaf: Leaf) -> str:
    value = _string(key, leaf)
    if value not in key.choices:
        listed = " or ".join(f"'{choice}'" for choice in key.choices)
        raise _wrong(key, leaf, listed, suggest(value, key.choices))
    return value


def _boolean(key: Key, leaf: Leaf) -> bool:
    value = {"true": True, "false": False}.get(str(leaf.value)) if leaf.text else leaf.value
    if not isinstance(value, bool):
        raise _wrong(key, leaf, "true or false")
    return value


def _integer(key: Key, leaf: Leaf) -> int:
    value = leaf.value
    if leaf.text and isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(key, leaf, "a whole number")
    if not key.low <= value <= key.high:
        raise _wrong(key, leaf, f"in {key.low:g} to {key.high:g}")
    return value


def _number(key: Key, leaf: Leaf) -> float:
    value = leaf.value
    if leaf.text and isinstance(value, str):
        try:
            value = float(value)
        except ValueError as error:
            raise _wrong(key, leaf, "a number") from error
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong(key, leaf, "a number")
    if not (math.isfinite(value) and key.low <= value <= key.high):
        raise _wrong(key, leaf, f"in {key.low:g} to {key.high:g}")
    return float(value)


def _size(key: Key, leaf: Leaf) -> int:
    if isinstance(leaf.value, int) and not isinstance(leaf.value, bool):
        raise _wrong(key, leaf, "a size", 'write the unit: "256M", "2G"')
    try:
        value = parse_size(_string(key, leaf))
    except ValueError as error:
        raise _wrong(key, leaf, "a size", "write 256M or 2G") from error
    if not key.low <= value <= key.high:
        bounds = f"{format_size(int(key.low))} to {format_size(int(key.high))}"
        raise _wrong(key, leaf, f"in {bounds}")
    if value % key.step:
        raise _wrong(key, leaf, f"a multiple of {format_size(key.step)}")
    return value


def _duration(key: Key, leaf: Leaf) -> float:
    if isinstance(leaf.value, (int, float)) and not isinstance(leaf.value, bool):
        raise _wrong(key, leaf, "a duration", 'write the unit: "500ms", "30s"')
    try:
        value = parse_duration(_string(key, leaf))
    except ValueError as error:
        raise _wrong(key, leaf, "a duration", "write 500ms, 30s or 5m") from error
    if not key.low <= value <= key.high:
        raise _wrong(key, leaf, f"in {key.low:g}s to {key.high:g}s")
    return value


_CONVERTERS = {
    "text": _text,
    "words": _words,
    "name": _name,
    "address": _address,
    "bdf": _bdf,
    "path": _path,
    "target": _target,
    "choice": _choice,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "size": _size,
    "duration": _duration,
}
