# SPDX-License-Identifier: Apache-2.0
"""Phases and marks of one hop from the moments at which things were seen. Pure; host clock only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from liveupdate.model.evidence import Mark, Phase

#: events of the agent that are moments
MOMENTS = (
    "falling-asleep", "asleep", "paused", "saved", "preserved", "jumping", "hello", "retrieved",
    "vmm-up", "loaded", "awake", "resumed", "restored",
)  # fmt: skip

#: (phase, moment it begins with, moment it ends with), those of the host
HOST_PHASES = (
    ("prepare", "prepare", "prepared"),
    ("load", "load", "loaded-kernel"),
    ("freeze", "jump", "jumping"),
    ("outgoing", "jumping", "first-line"),
    ("kernel", "first-line", "hello"),
    ("blackout-host", "jump", "restored"),
)

#: those of each guest; a moment without the guest's own is looked up among the host's
GUEST_PHASES = (
    ("pause", "jump", "paused"),
    ("sleep", "falling-asleep", "asleep"),
    ("save", "paused", "saved"),
    ("preserve-state", "saved", "preserved"),
    ("retrieve", "hello", "retrieved"),
    ("vmm-start", "retrieved", "vmm-up"),
    ("load-state", "vmm-up", "loaded"),
    ("wake", "loaded", "awake"),
    ("resume", "loaded", "resumed"),
    ("first-tick", "resumed", "ticked"),
)

Moments = Mapping[tuple[str, str], int]
"""(name, guest or "") to CLOCK_MONOTONIC of the control host in ns."""


class Seen(Protocol):
    """The fields of an agent's event that are used here."""

    @property
    def name(self) -> str:
        """Name of the event."""

    @property
    def guest(self) -> str:
        """The guest it is about, or ""."""

    @property
    def at_ns(self) -> int:
        """When it arrived: CLOCK_MONOTONIC of the control host in ns."""


def find_moments(events: Iterable[Seen]) -> dict[tuple[str, str], int]:
    """Return when each moment came first."""
    found: dict[tuple[str, str], int] = {}
    for event in events:
        if event.name in MOMENTS:
            found.setdefault((event.name, event.guest), event.at_ns)
    return found


def marks(moments: Moments, guests: tuple[str, ...]) -> Iterator[Mark]:
    """Yield the ends of each guest's blackout that were seen."""
    for guest in guests:
        # one that sleeps has been out since it was told to
        paused = moments.get(("falling-asleep", guest), moments.get(("paused", guest)))
        for what, at_ns in (("paused", paused), ("resumed", moments.get(("resumed", guest)))):
            if at_ns is not None:
                yield Mark(what=what, guest=guest, at_ns=at_ns)


def phases(hop: int, moments: Moments, guests: tuple[str, ...]) -> Iterator[Phase]:
    """Yield each phase of which both ends were seen; what was not seen is left out, not guessed."""
    for name, first, last in HOST_PHASES:
        if (first, "") in moments and (last, "") in moments:
            yield Phase(hop=hop, name=name, began_ns=moments[first, ""], ended_ns=moments[last, ""])
    for guest in guests:
        for name, first, last in GUEST_PHASES:
            began = moments.get((first, guest), moments.get((first, "")))
            ended = moments.get((last, guest))
            if began is not None and ended is not None:
                yield Phase(hop=hop, name=name, began_ns=began, ended_ns=ended, guest=guest)
