# SPDX-License-Identifier: Apache-2.0
"""The kinds of guest, as data: what runs in one, and how it is seen from outside.

A scenario names the kind with ``liveness``. Whatever depends on the kind asks its row, never its
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Watch(StrEnum):
    """A way to see that a guest makes progress; the value names the series in the evidence."""

    #: the payload's tick page: counter, clocks and a random value for each boot
    TICKS = "ticks"
    #: questions to the QEMU guest agent for its wall clock
    PINGS = "pings"
    #: answers on the network
    ECHOES = "echoes"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestKind:
    """One kind of guest."""

    name: str
    #: our payload runs in it, with a pattern, a tick page and a journal; else an image of a user's
    payload: bool = False
    #: how liveness is observed and judged
    alive: Watch | None = None
    #: where its clocks are read; None: they are not seen
    clock: Watch | None = None
    #: it keeps the journal that guest.storage reads back
    journal: bool = False
    #: it answers on the network without being asked for an address in the scenario
    answers: bool = False
    #: a scenario has to give its IPv4 address
    needs_address: bool = False

    @property
    def watches(self) -> frozenset[Watch]:
        """All ways in which it is seen, except answers on the network."""
        return frozenset(each for each in (self.alive, self.clock) if each is not None)


_TABLE = (
    GuestKind(
        name="payload",
        payload=True,
        alive=Watch.TICKS,
        clock=Watch.TICKS,
        journal=True,
        answers=True,
    ),
    GuestKind(name="agent", alive=Watch.PINGS, clock=Watch.PINGS),
    GuestKind(name="network", alive=Watch.ECHOES, answers=True, needs_address=True),
)

GUEST_KINDS: Mapping[str, GuestKind] = MappingProxyType({kind.name: kind for kind in _TABLE})
"""Every kind by name, the default first."""

UNKNOWN = GuestKind(name="unknown")
"""The kind of a guest in a run directory of another version."""
