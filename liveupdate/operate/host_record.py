# SPDX-License-Identifier: Apache-2.0
"""What the host's agent recorded of an update, as evidence in the control host's time. Pure.

Format: liveupdate/agent/update/lock_record.py. The host is not trusted: a line that is not valid is
counted and left out, and its evidence is then missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from liveupdate.formats import tickpage
from liveupdate.model import codec
from liveupdate.model.evidence import AgentPing, Tick, Watched
from liveupdate.transport.agent_link import AgentEvent

#: which kernel a line is from
BEFORE, AFTER = 0, 1


@dataclass(slots=True)
class HostRecord:
    """The decoded record. Times are CLOCK_MONOTONIC of the control host."""

    events: list[AgentEvent] = field(default_factory=list)
    ticks: dict[str, list[Tick]] = field(default_factory=dict)
    pings: dict[str, list[AgentPing]] = field(default_factory=dict)
    watched: Watched | None = None
    #: lines that were no lines of a record, or that the host had no room for
    lost: int = 0

    def first(self, name: str) -> AgentEvent | None:
        """Return the first event of that name; None: there is none."""
        return next((event for event in self.events if event.name == name), None)


def read_record(lines: Iterable[str], offsets: Mapping[int, int]) -> HostRecord:
    """Decode a record.

    :param offsets: for :data:`BEFORE` and :data:`AFTER`, the offset to add to a time of that boot;
        lines of a boot without a known offset are dropped.
    """
    told = HostRecord()
    looked: list[Watched] = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            offset = offsets[row["boot"]]
            _take(row, offset, number, told, looked)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            told.lost += 1
    told.watched = _join(looked)
    return told


def _take(
    row: dict[str, object], offset: int, number: int, told: HostRecord, looked: list[Watched]
) -> None:
    if "watched" in row:
        found = codec.decode(Watched, row["watched"])
        began, ended = found.began_ns + offset, found.ended_ns + offset
        looked.append(replace(found, began_ns=began, ended_ns=ended))
        return
    if "dropped" in row:
        told.lost += _integer(row["dropped"])
        return
    at_ns = _integer(row["t_ns"]) + offset
    if "tick" in row:
        try:
            page = tickpage.decode_tick(bytes.fromhex(str(row["page"])))
        except tickpage.TickPageError:
            return  # caught in the middle of a write: the next look has it
        told.ticks.setdefault(str(row["tick"]), []).append(page.to_tick(at_ns))
    elif "pong" in row:
        realtime = row["realtime_ns"]
        ping = AgentPing(host_ns=at_ns, realtime_ns=realtime if isinstance(realtime, int) else None)
        told.pings.setdefault(str(row["pong"]), []).append(ping)
    else:
        event = AgentEvent(
            name=str(row["event"]),
            n=number,
            boot=_integer(row["boot"]),
            at_ns=at_ns,
            t_ns=_integer(row["t_ns"]),
            data=_object(row["data"]),
        )
        told.events.append(event)


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no integer")
    return value


def _join(looked: list[Watched]) -> Watched | None:
    """Join both kernels' watches: while there is no agent, no guest runs."""
    if not looked:
        return None
    return Watched(
        began_ns=min(each.began_ns for each in looked),
        ended_ns=max(each.ended_ns for each in looked),
        longest_hole_ns=max(each.longest_hole_ns for each in looked),
    )
