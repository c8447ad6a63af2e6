# SPDX-License-Identifier: Apache-2.0
"""The order of one hop. Data: whatever drives a hop makes these moves one after the other.

What a move does is a method of :class:`liveupdate.run.hop.HopEngine`, named like it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

STEPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "observe-before": ("observe-before",),
        "brownout": ("prepare", "load-kernel"),
        "blackout": ("jump", "incoming"),
        "observe-after": ("observe-after",),
        "finish": ("collect", "finish"),
    }
)
"""The steps that a run shows and times, and the moves of each."""

MOVES: tuple[str, ...] = tuple(move for moves in STEPS.values() for move in moves)
"""All moves. Up to ``jump`` they can be undone with the guests running on."""
