# SPDX-License-Identifier: Apache-2.0
"""Names of guests and devices, as they come from the control host, and what is said of those that
cannot be used.
"""

from __future__ import annotations

NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
#: a virtio-blk serial has no more room
NAME_MAX = 20


class SpecError(ValueError):
    """A description of a guest or a device that cannot be used; says which field and why."""


class KindError(Exception):
    """An error with a ``kind``, which is for programs."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class CallError(KindError):
    """A call that cannot be carried out, or is refused."""


def check_name(name: object) -> str:
    """Return ``name`` if it can be a guest's: it becomes file names and a disk serial."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= NAME_MAX
        or not NAME_CHARS.issuperset(name)
        or name.startswith(".")
    ):
        raise SpecError(f"guest: name {name!r} must be 1 to {NAME_MAX} of A-Z a-z 0-9 - _ .")
    return name
