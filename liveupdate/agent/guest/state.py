# SPDX-License-Identifier: Apache-2.0
"""The VM state that goes over: a file's length and digest, before it is left and when it came back.

BLAKE2b with 16 bytes: it is in the standard library, and the control host can make it too, so that
what is seen from inside and from outside is compared directly. A state has tens of KiB to some MiB.
"""

from __future__ import annotations

import os

from ..base.fast_stdlib import TYPE_CHECKING, blake2b

if TYPE_CHECKING:
    from ..mechanisms.base import PreservedSet

DIGEST_BYTES = 16
#: so small that malloc() hands out the same memory each time: fresh pages cost more than the digest
_PIECE_BYTES = 64 << 10


class StateSum:
    """Length and digest (hex) of a state; "": a version of the agent left it that took none."""

    def __init__(self, size: int, digest: str) -> None:
        self.size = size
        self.digest = digest

    def to_json(self) -> dict[str, object]:
        """Return both, as events and the manifest have them."""
        return {"state_bytes": self.size, "state_digest": self.digest}

    def compare(self, found: StateSum) -> str | None:
        """Say how a state that came over differs from this one; None: it does not."""
        if found.size != self.size:
            return f"{found.size} bytes of the VM state came over, saved were {self.size}"
        if self.digest and found.digest != self.digest:
            return f"the VM state's digest is {found.digest}, saved was {self.digest}"
        return None


def sum_up(fd: int) -> StateSum:
    """Return length and digest of a whole file."""
    digest, at = blake2b(digest_size=DIGEST_BYTES), 0
    while piece := os.pread(fd, _PIECE_BYTES, at):
        digest.update(piece)
        at += len(piece)
    return StateSum(at, digest.hexdigest())


def say_places(session: PreservedSet, token: int, fd: int) -> dict[str, object]:
    """Return where a preserved file lies in memory, for an observer from outside: ``places``, with
    address and bytes of each piece, or ``unplaced``, why that is not known.
    """
    try:
        return {"places": session.places(token, fd)}
    except (OSError, ValueError) as err:
        return {"unplaced": str(err)}
