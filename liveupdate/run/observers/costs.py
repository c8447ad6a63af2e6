# SPDX-License-Identifier: Apache-2.0
"""What it costs to carry the guests' memory: asked of the agent, and walked in the host's RAM."""

from __future__ import annotations

import base64

from liveupdate.core.errors import EvidenceError, RemoteError
from liveupdate.core.steps import Steps
from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats import kho_map
from liveupdate.model import codec, slots
from liveupdate.model.costs import CostFacts, HandedOver
from liveupdate.run.testbed import Testbed


def record_costs(bed: Testbed, hop: int, when: str, steps: Steps) -> None:
    """Ask what it costs. A figure that cannot be had is missing, and no reason to stop.

    :param when: before (outgoing kernel) or after (incoming).
    """
    try:
        costs = codec.decode(CostFacts, dict(bed.call("costs")), "costs")
    except (RemoteError, codec.CodecError) as error:
        steps.note("costs-not-told", hop=hop, when=when, error=str(error))
        return
    slot = slots.COSTS_BEFORE if when == "before" else slots.COSTS_AFTER
    bed.record.put(slot, costs, hop)


def record_handed_over(bed: Testbed, hop: int, steps: Steps) -> None:
    """Walk KHO's map from outside; only a kernel that was booted cold says where it is."""
    machine = bed.machine
    if machine is None:
        return
    try:
        answer = bed.call("kho_map")
        fdt = base64.b64decode(str(answer.get("fdt")), validate=True)
        if not fdt:
            return
        found = kho_map.walk(kho_map.find_map(fdt), lambda at: machine.ram.read(at, PAGE_BYTES))
        ours = answer.get("preserved_bytes")
        if not isinstance(ours, int):
            raise EvidenceError("the agent does not say how much it preserved")
    except (RemoteError, EvidenceError, ValueError) as error:
        steps.note("handover-not-walked", hop=hop, error=str(error))
        return
    facts = HandedOver(nodes=found.nodes, folios=found.folios, ours_bytes=ours)
    bed.record.put(slots.HANDED_OVER, facts, hop)
