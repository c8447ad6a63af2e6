# SPDX-License-Identifier: Apache-2.0
"""What the agent does for a fault of ``liveupdate/faults``. Loaded when one is asked for."""

from __future__ import annotations

import os

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.names import CallError
from .args import device_of, guest_of, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from .args import After, Args
    from .main import Agent

#: before this host hangs or the agent ends, for the reply and events to leave
DRAIN_S = 1.0


def inject(agent: Agent, args: Args) -> After:
    """Take up the fault that ``args`` name; return what is to be done after the reply.

    The details of a fault stand in "args", or beside its name.

    :raises CallError: there is no such fault, guest or device.
    """
    name = args.get("fault")
    more = args.get("args", {})
    if not isinstance(more, dict):
        raise CallError("args", "'args' must be an object")
    details = {key: value for key, value in args.items() if key != "args"} | more
    take_up = _FAULTS.get(str(name))
    if take_up is None:
        raise CallError("args", f"no fault {name!r}")
    return take_up(agent, details)


def _at_freeze(agent: Agent, details: Args) -> After:
    """Have the freeze or the jump go wrong."""
    if "guest" in details:
        guest_of(agent.guests, details)
    agent.handover.faults.append(details)
    return None


def _move_page(agent: Agent, details: Args) -> After:
    """Have the incoming side move a page of a guest."""
    guest = guest_of(agent.guests, details)
    if not 0 <= integer(details, "page") < guest.spec.pages:
        raise CallError("args", f"'page' must be below {guest.spec.pages}")
    guest.faults.append(details)
    return None


def _change_register(agent: Agent, details: Args) -> After:
    """Have the incoming side change a register of a guest's first vCPU."""
    from ..guest import vcpu_faults

    guest = guest_of(agent.guests, details)
    vcpu_faults.check(details)
    guest.faults.append(details)
    return None


def _kill_vmm(agent: Agent, details: Args) -> After:
    """Kill a VMM: now, or when the guest is resumed on the incoming side."""
    guest = guest_of(agent.guests, details)
    if details.get("when") == "resumed":
        guest.faults.append(details)
        return None
    from ..guest.fault_tools import kill_vmm

    return lambda: kill_vmm(guest)


def _reset_guest(agent: Agent, details: Args) -> After:
    from ..guest.fault_tools import reset_guest

    guest = guest_of(agent.guests, details)
    return lambda: reset_guest(guest)


def _map_unpreserved(agent: Agent, details: Args) -> After:
    device_of(agent.handover.devices, details).map_unpreserved()
    return None


def _release_page(agent: Agent, details: Args) -> After:
    device_of(agent.handover.devices, details).release_page()
    return None


def _reset_device(agent: Agent, details: Args) -> After:
    device_of(agent.handover.devices, details).spec.fault = "reset-device"
    return None


def _fill_region(agent: Agent, _details: Args) -> After:
    from ..base.fault_tools import report
    from ..mechanisms.fault_tools import fill

    def fill_it() -> None:
        mechanism = agent.handover.open()
        before, after = fill(mechanism)
        told = report("fill-region", "room of the mechanism", mechanism.name, before, after)
        agent.emit("struck", told)

    return fill_it


def _wrong_pointer(agent: Agent, _details: Args) -> After:
    from ..base.fault_tools import report

    mechanism = agent.handover.open()
    before = mechanism.next_words()
    mechanism.mislead()
    where = "words for the incoming kernel's command line"
    told = report("wrong-pointer", "the pointer", where, before, mechanism.next_words())
    agent.emit("struck", told)
    return None


def _spin(agent: Agent, _details: Args) -> After:
    from ..base.fault_tools import spin

    def tell(told: dict[str, object]) -> None:
        agent.emit("struck", told)
        agent.port.drain(DRAIN_S)

    return lambda: spin("spin", tell)


def _exit(agent: Agent, _details: Args) -> After:
    def drain_and_exit() -> None:
        agent.port.drain(DRAIN_S)
        os._exit(1)

    return drain_and_exit


_FAULTS: dict[str, Callable[[Agent, Args], After]] = {
    "close-session": _at_freeze,
    "cut-state": _at_freeze,
    "kill-vmm-at-freeze": _at_freeze,
    "refuse-state": _at_freeze,
    "spin-at-jump": _at_freeze,
    "move-page": _move_page,
    "change-register": _change_register,
    "kill-vmm": _kill_vmm,
    "reset-guest": _reset_guest,
    "map-unpreserved": _map_unpreserved,
    "release-page": _release_page,
    "reset-device": _reset_device,
    "fill-region": _fill_region,
    "wrong-pointer": _wrong_pointer,
    "spin": _spin,
    "exit": _exit,
}
