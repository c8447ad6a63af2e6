# SPDX-License-Identifier: Apache-2.0
"""JSON lines of the guest payload (port ``org.liveupdate.guest``): events out, commands in.

Knows nothing of ports. 64-bit values travel as decimal strings, because a JSON number is a double
for many readers. A blank line is a resynchronisation mark: the payload sends one whenever the
other end of its port opens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from liveupdate.core.units import Gpa
from liveupdate.formats.malformed import MalformedError
from liveupdate.model.evidence import PatternFacts

MAX_LINE_BYTES = 64 << 10

HELLO: Mapping[str, str] = {"cmd": "hello"}
VERIFY: Mapping[str, str] = {"cmd": "verify"}

_U64_MAX = (1 << 64) - 1


class PayloadLineError(MalformedError):
    """A line is not an event of the payload; ``where`` is the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Pattern filled, first journal record durable."""

    boot: int
    #: 0: there is no tick page (an error line says why)
    tick_gpa: Gpa
    #: of the pattern's first page only; 0 without a pattern
    pattern_gpa_first: Gpa
    pattern_pages: int
    seed: int
    name: str
    #: 0: no disk, hence no journal
    disk_sectors: int
    #: "": no NIC, hence no echo
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Answer to ``verify``."""

    pages: int
    bad: int

    def to_facts(self) -> PatternFacts:
        """As evidence."""
        return PatternFacts(pages=self.pages, bad=self.bad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command has been carried out."""

    cmd: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Something the payload could not do."""

    message: str


PayloadEvent = Ready | Verified | Done | Failure
#: each event's fields are its keys: text, or 64 bits unsigned
_EVENTS: Mapping[str, type[Any]] = {
    "ready": Ready,
    "verified": Verified,
    "done": Done,
    "error": Failure,
}


def decode_line(line: str | bytes) -> PayloadEvent | None:
    """Decode one line; None for a blank one.

    :raises PayloadLineError: not JSON, not an object, unknown event, missing or wrong value.
    """
    if len(line) > MAX_LINE_BYTES:
        raise PayloadLineError(f"{len(line)} bytes, at most {MAX_LINE_BYTES}", where="line")
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PayloadLineError(f"not JSON: {error}", where="line") from error
    if not isinstance(value, dict):
        raise PayloadLineError(f"expected an object, found {type(value).__name__}", where="line")
    event = _get_text(value, "ev")
    kind = _EVENTS.get(event)
    if kind is None:
        raise PayloadLineError(f"unknown event '{event}'", where="ev")
    getters = {each.name: _get_text if each.type == "str" else _get_u64 for each in fields(kind)}
    values = {name: get(value, name) for name, get in getters.items()}
    return cast(PayloadEvent, kind(**values))


def clock_jump(step_ns: int) -> Mapping[str, str]:
    """Command that steps the guest's CLOCK_REALTIME, back if negative."""
    return {"cmd": "clock-jump", "ns": str(step_ns)}


def set_time(realtime_ns: int) -> Mapping[str, str]:
    """Command that sets the guest's CLOCK_REALTIME."""
    return {"cmd": "settime", "realtime_ns": str(realtime_ns)}


def _get_text(value: Mapping[str, object], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise PayloadLineError(f"expected a string, found {text!r:.60}", where=key)
    return text


def _get_u64(value: Mapping[str, object], key: str) -> int:
    """A u64, as a decimal string or as a number."""
    found = value.get(key)
    number = -1
    if isinstance(found, int) and not isinstance(found, bool):
        number = found
    elif isinstance(found, str) and found.isascii() and found.isdecimal() and len(found) <= 20:
        number = int(found)
    if not 0 <= number <= _U64_MAX:
        raise PayloadLineError(f"expected 64 bits unsigned, found {found!r:.60}", where=key)
    return number
