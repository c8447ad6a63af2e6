# SPDX-License-Identifier: Apache-2.0
"""The hint for a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """Return "did you mean 'NAME'?" with the nearest known name.

    :param otherwise: what to return when no known name is near.
    """
    import difflib  # 5 ms, needed after a mistake only

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else otherwise


def suggest_or_list(name: str, known: Iterable[str], label: str = "known") -> str:
    """Return the nearest known name as a hint, or the sorted list of all of them."""
    names = sorted(known)
    return suggest(name, names) or f"{label}: {', '.join(names)}"
