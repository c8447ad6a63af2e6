# SPDX-License-Identifier: Apache-2.0
"""The blackouts that this machine has shown, by accelerator: how long a ring may go unread here.

Only ever a hint for the rate at which devices are fed; nothing is judged by it.
"""

from __future__ import annotations

import contextlib

import msgspec

from liveupdate.core.atomic_write import atomic_write
from liveupdate.core.paths import cache_dir

#: of so many runs the longest counts, so that one on a busy machine is forgotten in time
_KEPT = 8
_MAX_BYTES = 64 << 10
_NAME = "blackouts.json"


def longest_shown_s(accel: str) -> float | None:
    """Return the longest blackout of the last runs in seconds; None: there is no record."""
    return max(_read().get(accel, ()), default=None)


def note_shown(accel: str, blackout_s: float) -> None:
    """Add the longest blackout of a run. A cache that cannot be written is left as it is."""
    known = _read()
    known[accel] = (*known.get(accel, ()), blackout_s)[-_KEPT:]
    with contextlib.suppress(OSError):
        atomic_write(cache_dir() / _NAME, msgspec.json.encode(known))


def _read() -> dict[str, tuple[float, ...]]:
    try:
        with (cache_dir() / _NAME).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=dict[str, tuple[float, ...]])
    except (OSError, ValueError):
        return {}
