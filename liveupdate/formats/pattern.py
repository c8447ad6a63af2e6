# SPDX-License-Identifier: Apache-2.0
"""The RAM pattern of the guest payload, computed without the guest.

Word j (u64, little-endian) of page i is ``splitmix64(seed + i) + j * STEP``, modulo 2**64: the
first output of a splitmix64 generator (Steele, Lea, Flood 2014), then one addition a word; the same
as ``lu_pattern_word()`` in guest-images/guest/payload_abi.h.
"""

from __future__ import annotations

import struct

from liveupdate.core.units import PAGE_BYTES

WORDS_PER_PAGE = PAGE_BYTES // 8
STEP = 0x9E3779B97F4A7C15

_MASK = (1 << 64) - 1
_PAGE = struct.Struct(f"<{WORDS_PER_PAGE}Q")


def splitmix64(state: int) -> int:
    """First output of a splitmix64 generator, both u64."""
    z = (state + STEP) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def expected_page(seed: int, index: int) -> bytes:
    """Contents of page ``index`` (from 0) of the pattern, 4096 bytes.

    Two guests must not have seeds that differ by less than their number of pages, or they share
    pages.

    :raises ValueError: ``index`` is negative.
    """
    if index < 0:
        raise ValueError(f"page index {index} is negative")
    first = splitmix64(seed + index)
    return _PAGE.pack(*((first + word * STEP) & _MASK for word in range(WORDS_PER_PAGE)))
