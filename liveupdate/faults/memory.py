# SPDX-License-Identifier: Apache-2.0
"""Faults of guest memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liveupdate.faults.base import Later, Moment, Part, ask_agent, fails, fault, flip
from liveupdate.model.evidence import Struck
from liveupdate.model.mechanism import Offer
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    from liveupdate.run.testbed import Testbed


@fault(
    "flip-bit",
    "one bit of one guest page is flipped from outside during the blackout",
    at=Moment.BLACKOUT,
    needs={Capability.PHYSICAL_MEMORY, Part.DIGESTS},
    expect=fails("memory.content"),
)
def flip_bit(bed: Testbed) -> Struck:
    """Flip one bit of a page of the guest's pattern, in the host's RAM."""
    guest = bed.first_guest
    return flip(bed, f"the pattern of {guest.spec.name}", guest.pattern_address(), 3)


@fault(
    "move-page",
    "one guest page comes back at another physical address, same content",
    at=Moment.BROWNOUT,
    needs={Offer.MEMFD},
    expect=fails("memory.placement"),
)
def move_page(bed: Testbed) -> Later:
    """Let the agent give one page another frame, with the same content."""
    guest = bed.first_guest
    return ask_agent(bed, "move-page", guest=guest.spec.name, page=guest.pattern_page())
