# SPDX-License-Identifier: Apache-2.0
"""Arguments of calls, which come from the control host."""

from __future__ import annotations

from ..base.names import CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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


def guest_of(guests: dict[str, Guest], args: Args) -> Guest:
    """Return the guest that a call names."""
    name = text(args, "guest")
    if name not in guests:
        raise CallError("no-guest", f"no guest '{name}' in {sorted(guests)}")
    return guests[name]
