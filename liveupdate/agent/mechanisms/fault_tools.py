# SPDX-License-Identifier: Apache-2.0
"""Mechanisms that fail on request, for tests of the checks; off the path of other runs."""

from __future__ import annotations

import errno
import os

from ..base.fast_stdlib import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Mechanism, PreservedSet

_TAKEN_BYTES = 4096
_HUGE_BYTES = 2 << 20
_FILL_BYTES = 1 << 30


def take_token(session: PreservedSet, token: int) -> None:
    """Use a token for something else, so that the kernel refuses it to whom it belongs."""
    taken = os.memfd_create("lu-taken", os.MFD_CLOEXEC)
    try:
        os.ftruncate(taken, _TAKEN_BYTES)
        session.preserve(taken, token)
    finally:
        os.close(taken)


def fill(mechanism: Mechanism) -> tuple[str, str]:
    """Take all memory a mechanism has left; return the room before and afterwards, for people."""
    beside_before, beside_after = mechanism.exhaust()
    taken, piece, number = 0, _FILL_BYTES, 0
    refusal = ""
    while piece >= _HUGE_BYTES:
        try:
            mechanism.allocate_ram(f"fill-{number}", piece)
        except OSError as err:
            if err.errno != errno.ENOSPC:
                raise
            refusal = f"; {piece} more bytes are refused: {err.strerror}"
            piece //= 2
            continue
        taken, number = taken + piece, number + 1
    return (
        f"{taken} bytes for guests, {beside_before} beside them",
        f"0 bytes for guests, {beside_after} beside them{refusal}",
    )
