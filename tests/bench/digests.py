# SPDX-License-Identifier: Apache-2.0
"""Speed of page digests against XXH3 over whole megabytes of the same mapping, on one core."""

from __future__ import annotations

import array
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from liveupdate.core.units import MIB, PAGE_BYTES, PhysAddr
from liveupdate.transport.physmem import PhysMem, RamRange, digest_selected

SIZE_BYTES = 512 * MIB
_REPEAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestSpeed:
    """Bytes per second, best of a few passes: the machine's noise only ever slows down."""

    plain_bytes_per_s: float
    paged_bytes_per_s: float


def measure_digests() -> DigestSpeed:
    """Fill a memfd with what does not compress to one page, and digest it both ways."""
    descriptor = os.memfd_create("bench-digests", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, SIZE_BYTES)
        block = random.Random(1).randbytes(MIB)
        for offset in range(0, SIZE_BYTES, MIB):
            os.pwrite(descriptor, block, offset)
        ranges = (RamRange(start=PhysAddr(0), size_bytes=SIZE_BYTES, offset=0),)
        pfns = array.array("Q", range(SIZE_BYTES // PAGE_BYTES)).tobytes()
        with PhysMem(descriptor, SIZE_BYTES, ranges) as ram:
            return DigestSpeed(
                plain_bytes_per_s=_speed(lambda: _hash_whole(ram)),
                paged_bytes_per_s=_speed(lambda: digest_selected(ram.select_pages(pfns))),
            )
    finally:
        os.close(descriptor)


def _hash_whole(ram: PhysMem) -> None:
    for offset in range(0, SIZE_BYTES, MIB):
        xxhash.xxh3_64_intdigest(ram.view(PhysAddr(offset), MIB))


def _speed(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_REPEAT):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return SIZE_BYTES / best
