# SPDX-License-Identifier: Apache-2.0
"""Arguments of calls, which come from the control host."""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.names import CallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..device.devices import Device
    from ..guest.guests import Guest

    Args = dict[str, object]
    #: what is done once the reply to a call is on its way
    After = Callable[[], None] | None


def text(args: Args, key: str) -> str:
    """Return a string argument.

    :raises CallError: it is missing or no string.
    """
    value = args.get(key)
    if not isinstance(value, str):
        raise CallError("args", f"'{key}' must be a string, is {value!r}")
    return value


def integer(args: Args, key: str) -> int:
    """Return an integer argument.

    :raises CallError: it is missing or no integer.
    """
    value = args.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CallError("args", f"'{key}' must be an integer, is {value!r}")
    return value


def device_of(devices: dict[str, Device], args: Args) -> Device:
    """Return the device that a call names.

    :raises CallError: there is none.
    """
    name = text(args, "device")
    if name not in devices:
        raise CallError("no-device", f"no device '{name}'")
    return devices[name]


def guest_of(guests: dict[str, Guest], args: Args) -> Guest:
    """Return the guest that a call names."""
    name = text(args, "guest")
    if name not in guests:
        raise CallError("no-guest", f"no guest '{name}' in {sorted(guests)}")
    return guests[name]
