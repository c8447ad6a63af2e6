# SPDX-License-Identifier: Apache-2.0
"""The call ``inject``: faults on request, for tests of the checks. Loaded with the first one."""

from __future__ import annotations

import os

from .args import CallError, guest_of, integer, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..device.devices import Device
    from .args import After, Args
    from .main import Agent

#: before this host hangs or the agent ends, for the reply and events to leave
DRAIN_S = 1.0
_AT_FREEZE = ("close-session", "kill-vmm-at-freeze", "refuse-state", "spin-at-jump")
_OF_DEVICES = ("map-unpreserved", "release-page", "reset-device")


def inject(agent: Agent, args: Args) -> After:
    """Apply a fault, or note it for the time at which it strikes.

    :param args: ``fault``, its name, and what else it needs, beside it or below ``args``.
    :return: what has to be done after the reply, as the fault ends what could send it.
    :raises CallError: there is no such fault, or not what it needs.
    """
    fault = args.get("fault")
    details = args.get("args", {})
    if not isinstance(details, dict):
        raise CallError("args", "'args' must be an object")
    details = {**{k: v for k, v in args.items() if k not in ("fault", "args")}, **details}
    record: Args = {"fault": fault, **details}
    if fault in _AT_FREEZE:
        if "guest" in details:
            guest_of(agent.guests, details)
        agent.handover.faults.append(record)
        return None
    if fault == "move-page" or (fault == "kill-vmm" and details.get("when") == "resumed"):
        guest = guest_of(agent.guests, details)
        if fault == "move-page" and not 0 <= integer(details, "page") < guest.spec.pages:
            raise CallError("args", f"'page' must be below {guest.spec.pages}")
        guest.faults.append(record)
        return None
    if fault in _OF_DEVICES:
        _strike_device(_device(agent, text(details, "device")), str(fault))
        return None
    if fault == "wrong-pointer":
        agent.handover.open().mislead()
        return None
    return _after_reply(agent, fault, details)


def _after_reply(agent: Agent, fault: object, details: Args) -> After:
    if fault == "kill-vmm":
        return guest_of(agent.guests, details).vmm.kill
    if fault == "reset-guest":
        return guest_of(agent.guests, details).vmm.reset
    if fault == "fill-region":
        return lambda: _fill_region(agent)
    if fault == "spin":
        return lambda: _spin(agent)
    if fault == "exit":
        return lambda: _exit(agent)
    raise CallError("args", f"no fault {fault!r}")


def _device(agent: Agent, name: str) -> Device:
    device = agent.handover.devices.get(name)
    if device is None:
        raise CallError("no-device", f"no device '{name}'")
    return device


def _strike_device(device: Device, fault: str) -> None:
    if fault == "map-unpreserved":
        device.map_unpreserved()
    elif fault == "release-page":
        device.release_page()
    else:
        device.spec.fault = fault


def _fill_region(agent: Agent) -> None:
    from ..mechanisms.fault_tools import fill

    fill(agent.handover.open())


def _spin(agent: Agent) -> None:
    from ..base.fault_tools import spin

    agent.port.drain(DRAIN_S)
    spin()


def _exit(agent: Agent) -> None:
    agent.port.drain(DRAIN_S)
    os._exit(1)
