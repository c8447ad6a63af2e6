# SPDX-License-Identifier: Apache-2.0
"""Faults of memory that a mechanism has set aside, and of the description of what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liveupdate.core.errors import EvidenceError
from liveupdate.core.units import format_addr
from liveupdate.faults.base import (
    REGION_WORDS,
    HopChange,
    Later,
    Moment,
    ask_agent,
    fails,
    fault,
    flip,
    planned_fault,
)
from liveupdate.model.evidence import Struck
from liveupdate.model.mechanism import Offer
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    from liveupdate.run.testbed import Testbed

_DESCRIPTION = "what describes the region's content"

region_missing = planned_fault(
    "region-missing",
    "the incoming kernel's command line has no reserved region",
    HopChange(drop=REGION_WORDS),
    needs={Offer.REGION},
    expect=fails("handover.session"),
)

region_size = planned_fault(
    "region-size",
    "the incoming kernel's command line has a smaller region",
    HopChange(shrink=True),
    needs={Offer.REGION},
    expect=fails("handover.session"),
)


@fault(
    "region-corrupt",
    "one bit of what describes the region's content is flipped from outside",
    at=Moment.BLACKOUT,
    needs={Offer.STORE, Capability.PHYSICAL_MEMORY},
    expect=fails("handover.session"),
)
def region_corrupt(bed: Testbed) -> Struck:
    """Flip a bit in the page that describes the region; only its checksum covers the bit."""
    return flip(bed, _DESCRIPTION, _find_description(bed) + bed.mechanism.corrupt_at, 1)


@fault(
    "region-version",
    "what describes the region's content says another version, changed from outside",
    at=Moment.BLACKOUT,
    needs={Offer.STORE, Capability.PHYSICAL_MEMORY},
    expect=fails("handover.session"),
)
def region_version(bed: Testbed) -> Struck:
    """Flip a bit of the version in the page that describes the region."""
    return flip(bed, _DESCRIPTION, _find_description(bed) + bed.mechanism.version_at, 1)


@fault(
    "region-full",
    "the region is full when the VM state has to go in",
    at=Moment.BROWNOUT,
    needs={Offer.STORE},
    expect=fails("handover.session", 5),
)
def region_full(bed: Testbed) -> Later:
    """Let the agent's mechanism use up its room."""
    return ask_agent(bed, "fill-region")


@fault(
    "wrong-pointer",
    "the incoming kernel is pointed a page beside what the outgoing one has left",
    at=Moment.PREPARE,
    needs={Offer.POINTER},
    expect=fails("handover.session"),
)
def wrong_pointer(bed: Testbed) -> Later:
    """Let the agent point the incoming kernel a page beside the stream."""
    return ask_agent(bed, "wrong-pointer")


def _find_description(bed: Testbed) -> int:
    """Return the address of the page that describes the region.

    :raises EvidenceError: its marker is not in exactly one place.
    """
    marker = bed.mechanism.marker
    if marker is None:
        region = bed.plan.region
        assert region is not None  # the planner refuses the fault without one
        assert region.start is not None
        return region.start
    found = bed.own_machine.ram.find_pages(bed.own_machine.ram_fd, marker)
    if len(found) != 1:
        places = ", ".join(map(format_addr, found)) or "nowhere"
        raise EvidenceError(f"what describes the region must be in one place, it is in: {places}")
    return found[0]
