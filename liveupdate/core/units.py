# SPDX-License-Identifier: Apache-2.0
"""Units: sizes, durations, addresses. The only place where they are converted or formatted."""

from __future__ import annotations

import re
from typing import NewType

Pfn = NewType("Pfn", int)
"""Page frame number of the host under update."""
PhysAddr = NewType("PhysAddr", int)
"""Physical address in the host under update."""
Gpa = NewType("Gpa", int)
"""Guest-physical address in a guest of the host under update."""
Iova = NewType("Iova", int)
"""Address as a device sees it, before the IOMMU."""

PAGE_BYTES = 4096
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

#: how a size and a duration are written
SIZE = re.compile(r"(\d+)([KMGTkmgt]?)([iI]?[bB])?")
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SIZE_FACTOR = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_DURATION_FACTOR = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Parse ``512M``, ``2G``, ``4096`` into bytes (binary multiples).

    :raises ValueError: with what was expected.
    """
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"'{text}' is not a size; write 256M, 2G or a number of bytes")
    return int(match[1]) * _SIZE_FACTOR[match[2].upper()]


def parse_duration(text: str) -> float:
    """Parse ``500ms``, ``30s``, ``5m`` into seconds.

    :raises ValueError: with what was expected.
    """
    match = DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"'{text}' is not a duration; write 500ms, 30s, 5m or 1h")
    return float(match[1]) * _DURATION_FACTOR[match[2]]


def format_size(size_bytes: int) -> str:
    """Format bytes with the largest IEC suffix that keeps the value exact, or one decimal."""
    for suffix, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{value:.0f} {suffix}" if value == int(value) else f"{value:.1f} {suffix}"
    return f"{size_bytes} B"


def format_addr(address: int) -> str:
    """Format an address as 0x and 16 digits."""
    return f"0x{address:016x}"


def format_ns(duration_ns: int | float) -> str:
    """Format a duration given in nanoseconds for people."""
    if duration_ns >= 1e9:
        return f"{duration_ns / 1e9:.2f} s"
    if duration_ns >= 1e6:
        return f"{duration_ns / 1e6:.0f} ms"
    return f"{duration_ns / 1e3:.0f} µs"
