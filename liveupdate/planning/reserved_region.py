# SPDX-License-Identifier: Apache-2.0
"""Memory that a mechanism has set aside at boot: how much, where, and in which words. Pure."""

from __future__ import annotations

from liveupdate.core.errors import ScenarioError
from liveupdate.core.units import format_size
from liveupdate.model.mechanism import SIZE, START, Requirements
from liveupdate.model.plan import Region
from liveupdate.model.scenario import Scenario
from liveupdate.planning import region_place as regions
from liveupdate.scenario.load import where


def fill_region(append: str, region: Region | None) -> str:
    """Put a region into a mechanism's words for the command line."""
    if region is None:
        return append
    filled = append.replace(SIZE, f"{region.size_bytes:#x}")
    return filled if region.start is None else filled.replace(START, f"{region.start:#x}")


def region_bytes(scenario: Scenario, mechanism: Requirements) -> int | None:
    """Return the size of the region in bytes; None: the mechanism sets no memory aside."""
    if mechanism.region_spare_bytes is None:
        return None
    guests = sum(guest.memory_bytes for guest in scenario.guests)
    return regions.region_bytes(guests + mechanism.region_spare_bytes)


def piece_bytes(scenario: Scenario, mechanism: Requirements) -> int | None:
    """Return how much RAM has to be in one piece for the region.

    A kernel that places it itself has made early allocations before, the array of struct pages
    among them, at the end of the RAM that is to hold the region.
    """
    size = region_bytes(scenario, mechanism)
    if size is None or START in mechanism.append:
        return size
    return regions.region_bytes(size + size // 32 + regions.SECTION_BYTES)


def find_region(scenario: Scenario, mechanism: Requirements, memory_bytes: int) -> Region | None:
    """Find the place that this mechanism has set aside, or how large it is.

    :raises ScenarioError: the host's RAM, as the user wants it, has none.
    """
    size, piece = region_bytes(scenario, mechanism), piece_bytes(scenario, mechanism)
    if size is None or piece is None:
        return None
    found = regions.place(memory_bytes, piece)
    if found is None:
        raise ScenarioError(
            f"host.memory {format_size(memory_bytes)} has no place for a region of"
            f" {format_size(piece)}",
            where=where(scenario, "host.memory"),
            hint="leave it out, or give more",
        )
    return found if START in mechanism.append else Region(start=None, size_bytes=size)
