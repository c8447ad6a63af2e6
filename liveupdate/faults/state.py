# SPDX-License-Identifier: Apache-2.0
"""Faults of the VM state that is carried over."""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING

from liveupdate.core.errors import EvidenceError
from liveupdate.core.units import PhysAddr
from liveupdate.faults.base import Later, Moment, ask_agent, fails, fault, flip
from liveupdate.model.evidence import Struck
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    from liveupdate.model.vm_state import Places
    from liveupdate.run.testbed import Testbed


@fault(
    "flip-state",
    "one bit of the preserved VM state is flipped from outside during the blackout",
    at=Moment.BLACKOUT,
    needs={Capability.PHYSICAL_MEMORY},
    expect=fails("handover.state"),
)
def flip_state(bed: Testbed) -> Struck:
    """Flip a bit of the first guest's state in the host's RAM; its place follows from a seed."""
    guest = bed.first_guest
    name = guest.spec.name
    if not guest.state_places:
        raise EvidenceError(f"it is not known where the VM state of '{name}' lies")
    planned = bed.plan.fault.seed if bed.plan.fault is not None else None
    seed = planned if isinstance(planned, int) else secrets.randbits(32)
    address, offset, bit = choose_bit(guest.state_places, seed)
    return flip(bed, f"the VM state of '{name}' at offset {offset} (seed {seed})", address, bit)


def choose_bit(places: Places, seed: int) -> tuple[PhysAddr, int, int]:
    """Return the physical address of a byte of a state, its offset in the state, and a bit."""
    rng = random.Random(seed)
    offset = left = rng.randrange(sum(size for _, size in places))
    bit = rng.randrange(8)
    for address, size in places:
        if left < size:
            return PhysAddr(address + left), offset, bit
        left -= size
    raise AssertionError("an offset below the sum of all pieces is in one of them")


@fault(
    "cut-state",
    "the second half of the VM state is left out of what is preserved",
    at=Moment.BROWNOUT,
    expect=fails("handover.state"),
)
def cut_state(bed: Testbed) -> Later:
    """Let the agent cut the saved state before it is preserved."""
    return ask_agent(bed, "cut-state", guest=bed.first_guest.spec.name)
