# SPDX-License-Identifier: Apache-2.0
"""A reserved region lies in RAM, clear of what firmware and kernel need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from liveupdate.core.units import GIB, MIB
from liveupdate.planning.region_place import SECTION_BYTES, least_memory, place, region_bytes


def ram_ranges(memory_bytes: int) -> list[tuple[int, int]]:
    """RAM of QEMU's q35 (hw/i386/pc_q35.c), written down a second time."""
    if memory_bytes >= 0xB0000000:
        return [(0, 2 * GIB), (4 * GIB, 4 * GIB + memory_bytes - 2 * GIB)]
    return [(0, memory_bytes)]


@given(st.integers(1, 64 * GIB), st.integers(128 * MIB, 8 * GIB))
def test_least_memory_has_a_place_in_ram(content: int, rest: int) -> None:
    size = region_bytes(content)
    assert content <= size < content + SECTION_BYTES
    memory = least_memory(size, rest + 1280 * MIB)
    assert memory >= size + rest
    region = place(memory, size)
    assert region is not None
    assert region.size_bytes == size
    start = region.start
    assert start is not None
    assert start % SECTION_BYTES == 0
    assert any(low <= start and start + size <= high for low, high in ram_ranges(memory))
    if start < 4 * GIB:
        assert start >= 512 * MIB
        assert start + size <= ram_ranges(memory)[0][1] - 128 * MIB


def test_ram_that_is_too_small_has_no_place() -> None:
    assert place(GIB, 512 * MIB) is None
    assert place(GIB, 384 * MIB) is not None


def test_upper_part_is_preferred() -> None:
    found = place(4 * GIB, GIB)
    assert found is not None
    assert found.start == 4 * GIB
