# SPDX-License-Identifier: Apache-2.0
"""A guest's VM state on its way: what agents tell of it, and what is seen of it from outside.

Facts only; a host is not trusted, so what it tells is checked before it is used.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from liveupdate.model import codec
from liveupdate.model.vm_state import Places, StateFacts, StateSeen, StateSum
from liveupdate.transport.agent_link import AgentEvent
from liveupdate.transport.physmem import PhysMem

#: so much is read from outside at the most, whatever a host says
MAX_BYTES = 1 << 30
_MAX_PLACES = 1 << 18


def collect_state(events: Iterable[AgentEvent], guest: str) -> StateFacts:
    """Return what agents reported about a guest's state in one hop."""
    sums: dict[str, StateSum | None] = {}
    hello_ns = None
    for event in events:
        if event.name == "hello":
            hello_ns = hello_ns or event.at_ns
        elif event.guest == guest and event.name in ("saved", "state-read"):
            sums.setdefault(event.name, _read_sum(event))
    return StateFacts(saved=sums.get("saved"), read=sums.get("state-read"), hello_ns=hello_ns)


def _read_sum(event: AgentEvent) -> StateSum | None:
    told = {name: event.data.get(name) for name in ("state_bytes", "state_digest")}
    try:
        return codec.decode(StateSum, told, event.name)
    except codec.CodecError:
        return None  # a version of the agent that took no digest, or no agent


def read_places(event: AgentEvent) -> Places:
    """Return where an agent says that a state lies.

    :raises ValueError: it does not say, or what it says makes no sense.
    """
    if "places" not in event.data:
        raise ValueError(f"the agent does not say where: {event.data.get('unplaced')}")
    places = codec.decode(tuple[tuple[int, int], ...], event.data["places"], "places")
    total = sum(size for _, size in places)
    if not places or len(places) > _MAX_PLACES or any(at < 0 or size < 1 for at, size in places):
        raise ValueError(f"{len(places)} pieces make no state")
    if total > MAX_BYTES:
        raise ValueError(f"{total} bytes are more than any state has")
    return places


def see_state(ram: PhysMem, places: Places) -> StateSeen:
    """Digest a state where it lies. :raises NotRam: that is not all RAM of this host."""
    began = time.monotonic_ns()
    digest = ram.digest(places)
    return StateSeen(
        state_bytes=sum(size for _, size in places),
        state_digest=digest,
        began_ns=began,
        ended_ns=time.monotonic_ns(),
    )
