# SPDX-License-Identifier: Apache-2.0
"""Arguments of calls, which come from the control host, and the error of a call."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..guest.guests import Guest

    Args = dict[str, object]
    #: what is done once the reply to a call is on its way
    After = Callable[[], None] | None


class CallError(Exception):
    """A call that cannot be carried out; ``kind`` is for programs."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


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
