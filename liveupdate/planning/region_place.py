# SPDX-License-Identifier: Apache-2.0
"""Where in the RAM of the host under update a reserved region goes.

The user of a real machine has to find such a place by hand (``memmap=`` takes any value);
here the layout of the machine is known: QEMU's q35 puts RAM below a hole that ends at 4 GiB,
and what does not fit above it (hw/i386/pc_q35.c).
"""

from __future__ import annotations

from liveupdate.core.units import GIB, MIB
from liveupdate.model.plan import Region

#: memory hotplug works in sections: a region that shares one with other RAM is asking for trouble
SECTION_BYTES = 128 * MIB
#: q35: with so much RAM or more, only 2 GiB of it are below the hole
_SPLIT_BYTES = 0xB0000000
_LOW_BYTES = 2 * GIB
_HIGH_START = 4 * GIB
#: the firmware's tables are at the end of the low part
_TABLES_BYTES = SECTION_BYTES
#: the kernel, its initial page tables and the low areas that it insists on
_KERNEL_BYTES = 512 * MIB


def region_bytes(content_bytes: int) -> int:
    """Size of a region that holds so much: whole sections."""
    return -(-content_bytes // SECTION_BYTES) * SECTION_BYTES


def place(memory_bytes: int, size_bytes: int) -> Region | None:
    """Return a place for a region of whole sections; None: this much RAM has none.

    Above 4 GiB when it fits there, as the kernel prefers the lower part for itself.
    """
    if memory_bytes < _SPLIT_BYTES:
        low, high = memory_bytes, 0
    else:
        low, high = _LOW_BYTES, memory_bytes - _LOW_BYTES
    if size_bytes <= high:
        return Region(start=_HIGH_START, size_bytes=size_bytes)
    end = (low - _TABLES_BYTES) // SECTION_BYTES * SECTION_BYTES
    if end - size_bytes < _KERNEL_BYTES:
        return None
    return Region(start=end - size_bytes, size_bytes=size_bytes)


def least_memory(size_bytes: int, rest_bytes: int) -> int:
    """Return the RAM of a machine that has a place for a region and ``rest_bytes`` beside it."""
    memory = -(-(rest_bytes + size_bytes) // SECTION_BYTES) * SECTION_BYTES
    return memory if place(memory, size_bytes) else max(memory, _LOW_BYTES + size_bytes)
