# SPDX-License-Identifier: Apache-2.0
"""Guests that fail on request, for tests of the checks; off the path of other runs."""

from __future__ import annotations

import os
import time

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.fault_tools import PAGE_BYTES, move_page, process_state, report
from ..mechanisms.base import TOKEN_STATE
from ..mechanisms.fault_tools import take_token
from .vmm_qemu import VmmError

if TYPE_CHECKING:
    from ..mechanisms.base import PreservedSet
    from .guests import Guest

#: a process that was killed ends in no time, unless the machine is very busy
KILL_S = 5.0


def apply_at_freeze(guest: Guest, moment: str, faults: list[dict[str, object]]) -> None:
    """Apply those of the handover's faults that come while a guest is frozen.

    :param moment: ``paused``, before its state is saved; ``saved``, before that is preserved.
    """
    for fault in faults:
        if fault.get("guest", guest.spec.name) != guest.spec.name:
            continue
        match moment, fault.get("fault"):
            case "paused", "kill-vmm-at-freeze":
                guest.vmm.kill()
                guest.vmm.wait_end(1.0)
            case "paused", "refuse-state" if guest.session is not None:
                _refuse_state(guest, guest.session)
            case "saved", "cut-state":
                _cut_state(guest)


def _refuse_state(guest: Guest, session: PreservedSet) -> None:
    """Have the kernel refuse the state, by taking its token."""
    take_token(session, TOKEN_STATE)
    try:
        take_token(session, TOKEN_STATE)
        after = "free"
    except OSError as err:
        after = f"taken: {err}"
    told = report("refuse-state", "the state's token", guest.spec.session, "free", after)
    guest.tell("struck", **told)


def _cut_state(guest: Guest) -> None:
    """Have half of the saved state preserved, in whole pages."""
    before = os.fstat(guest.state).st_size
    after = before // 2 // PAGE_BYTES * PAGE_BYTES
    if not after:
        raise VmmError("state", f"a state of {before} bytes is too short to be cut")
    os.ftruncate(guest.state, after)
    left = os.fstat(guest.state).st_size
    where = f"the VM state of '{guest.spec.name}'"
    guest.tell("struck", **report("cut-state", "length in bytes", where, before, left))


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
            where = f"page {page} of the guest's RAM"
            told = report("move-page", "page frame", where, f"{before:#x}", f"{after:#x}")
            guest.tell("struck", **told)


def apply_after_resume(guest: Guest) -> None:
    """Apply the guest's faults that belong after its resume."""
    for fault in guest.faults:
        if fault.get("fault") == "kill-vmm":
            kill_vmm(guest)


def kill_vmm(guest: Guest) -> None:
    """Kill a guest's VMM."""
    pid = guest.vmm.pid
    before = process_state(pid)
    guest.vmm.kill()
    deadline = time.monotonic() + KILL_S
    while (after := process_state(pid)) not in ("gone", "Z") and time.monotonic() < deadline:
        time.sleep(0.005)
    guest.tell("struck", **report("kill-vmm", "the VMM", f"process {pid}", before, after))


def reset_guest(guest: Guest) -> None:
    """Reset a guest."""
    before = guest.vmm.query_status()
    guest.vmm.reset()
    told = report("reset-guest", "the guest", "its VMM's monitor", before, guest.vmm.wait_reset())
    guest.tell("struck", **told)


def close_session(guest: Guest) -> None:
    """Close the session that carries a guest."""
    session = guest.session
    if session is None:
        return
    before = "open" if session.is_open else "closed"
    session.close()
    after = "open" if session.is_open else "closed"
    told = report("close-session", "the guest's session", session.name, before, after)
    guest.tell("struck", **told)
