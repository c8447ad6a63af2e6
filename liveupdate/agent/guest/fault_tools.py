# SPDX-License-Identifier: Apache-2.0
"""Guests that fail on request, for tests of the checks; off the path of other runs."""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.fault_tools import move_page
from ..mechanisms.base import TOKEN_STATE
from ..mechanisms.fault_tools import take_token

if TYPE_CHECKING:
    from .guests import Guest


def apply_after_pause(guest: Guest, faults: list[dict[str, object]]) -> None:
    """Apply those of the handover's faults that come between a guest's pause and its saving."""
    for fault in faults:
        if fault.get("guest", guest.spec.name) != guest.spec.name:
            continue
        if fault.get("fault") == "kill-vmm-at-freeze":
            guest.vmm.kill()
            guest.vmm.wait_end(1.0)
        elif fault.get("fault") == "refuse-state" and guest.session is not None:
            take_token(guest.session, TOKEN_STATE)


def apply_after_retrieve(guest: Guest) -> None:
    """Apply the guest's faults that belong between retrieving it and starting its VMM."""
    for fault in guest.faults:
        page = fault.get("page")
        if fault.get("fault") == "move-page" and isinstance(page, int):
            if not 0 <= page < guest.spec.pages:
                continue
            if guest.ram is None:
                continue
            before, after = move_page(guest.ram.fd, page)
            guest.tell("fault", fault="move-page", page=page, pfn_before=before, pfn_after=after)


def apply_after_resume(guest: Guest) -> None:
    """Apply the guest's faults that belong after its resume."""
    for fault in guest.faults:
        if fault.get("fault") == "kill-vmm":
            guest.vmm.kill()
            guest.tell("fault", fault="kill-vmm")
