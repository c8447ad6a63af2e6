# SPDX-License-Identifier: Apache-2.0
"""What is known of a guest's VM state over one hop: length and digest, from inside and outside."""

from __future__ import annotations

from collections.abc import Sequence

from liveupdate.model.base import Value

Places = Sequence[tuple[int, int]]
"""Where a state lies: physical address and bytes of each piece, in order."""


class StateSum(Value, frozen=True, kw_only=True):
    """Length and BLAKE2b digest (16 bytes, hex) of a guest's VM state, as an agent told them."""

    state_bytes: int
    state_digest: str


class StateSeen(Value, frozen=True, kw_only=True):
    """The same, read from outside in the host's memory."""

    state_bytes: int
    state_digest: str
    began_ns: int
    ended_ns: int


class StateFacts(Value, frozen=True, kw_only=True):
    """A guest's VM state over one hop: as saved, as seen from outside, as it came over."""

    #: by the outgoing agent, before it was preserved
    saved: StateSum | None = None
    #: from outside, after the outgoing agent's last word and after the incoming kernel's first
    freeze: StateSeen | None = None
    boot: StateSeen | None = None
    #: when the incoming agent said hello: from then on it may take the state and free it
    hello_ns: int | None = None
    #: by the incoming agent, before it was loaded
    read: StateSum | None = None
