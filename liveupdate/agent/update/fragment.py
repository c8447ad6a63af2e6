# SPDX-License-Identifier: Apache-2.0
"""Fragments this host's free memory: one page that cannot be moved in each block of 2 MiB.

It takes nearly all free memory in single pages, keeps one page of each block in a pipe, and frees
the rest. Afterwards as much memory is free as before, in pieces of less than 2 MiB.
"""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap

from ..base.fast_stdlib import read_text, write_text
from ..base.host import FRAME_MASK, meminfo_bytes, read_pagemap
from ..base.page_pins import PAGE_BYTES, Pins, address_of

HUGE_ORDER = 9
HUGE_BYTES = PAGE_BYTES << HUGE_ORDER
#: left alone outside CMA, where the kernel's own allocations come from, so that nothing is killed
#: for want of memory, nor looks for it without end
SPARE_BYTES = 32 << 20
#: what the kernel itself keeps back meanwhile: khugepaged has it raise that beyond the spare
_MIN_FREE_KIB = 8192
_MIN_FREE = "/proc/sys/vm/min_free_kbytes"
#: taken before it is asked again what there is left
_STEP_BYTES = 4 << 20
#: so much may stay whole beyond what was asked for: the spare, as much of CMA, which is used up
#: alongside (__rmqueue() in mm/page_alloc.c), and zones that are not for us
TOLERANCE_BYTES = 2 * (SPARE_BYTES + _STEP_BYTES) + (32 << 20)
#: include/uapi/asm-generic/mman-common.h
_MADV_NOHUGEPAGE = 15
_MADV_POPULATE_WRITE = 23


class FragmentError(Exception):
    """The memory is not as fragmented as requested."""


def whole_blocks(buddyinfo: str) -> int:
    """Return how many free blocks of 2 MiB there are; larger orders count as several.

    :param buddyinfo: /proc/buddyinfo: ``Node N, zone NAME`` and free blocks of order 0, 1, ...
    """
    found = 0
    for line in buddyinfo.splitlines():
        counts = line.partition("zone")[2].split()[1:]
        for order, count in enumerate(counts):
            if order >= HUGE_ORDER:
                found += int(count) << (order - HUGE_ORDER)
    return found


def choose(frames: memoryview, share: float) -> list[int]:
    """Return an index into ``frames`` for each block of 2 MiB that is to be broken up.

    :param frames: entries of pagemap.
    :param share: of the blocks, spread evenly.
    """
    blocks: dict[int, int] = {}
    for index, entry in enumerate(frames):
        if entry >> 63:
            blocks.setdefault((entry & FRAME_MASK) >> HUGE_ORDER, index)
    return [
        index
        for number, (_, index) in enumerate(sorted(blocks.items()))
        if int((number + 1) * share) > int(number * share)
    ]


def fragment(share: float) -> tuple[Pins, dict[str, object]]:
    """Break up ``share`` of the free blocks of 2 MiB. The pages stay held until the pins are
    closed.

    :return: the pins, and the fields of ``model.evidence.FragmentFacts``.
    :raises FragmentError: /proc/buddyinfo does not show the expected result.
    """
    before = whole_blocks(read_text("/proc/buddyinfo"))
    free = meminfo_bytes(read_text("/proc/meminfo"), "MemFree")
    size = (free - SPARE_BYTES) // PAGE_BYTES * PAGE_BYTES
    if size <= 0:
        raise FragmentError(f"only {free} bytes are free")
    pins = Pins()
    kept = read_text(_MIN_FREE)
    try:
        write_text(_MIN_FREE, str(_MIN_FREE_KIB))
        with mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS, PROT_READ | PROT_WRITE) as area:
            area.madvise(_MADV_NOHUGEPAGE)
            start, size = address_of(area), _populate(area, size)
            chosen = choose(read_pagemap(start, size), share)
            pins.add([start + index * PAGE_BYTES for index in chosen])
        after = whole_blocks(read_text("/proc/buddyinfo"))
        if after * HUGE_BYTES > (1 - share) * before * HUGE_BYTES + TOLERANCE_BYTES:
            raise FragmentError(
                f"{after} of {before} free blocks of 2 MiB are still whole, wanted was {share:.0%}"
                " less"
            )
    except BaseException:
        pins.close()
        raise
    finally:
        write_text(_MIN_FREE, kept)
    return pins, {
        "share": share,
        "free_bytes": free,
        "whole_before": before,
        "whole_after": after,
        "pinned": pins.count,
    }


def _populate(area: mmap, size: int) -> int:
    """Touch the area's pages while enough memory is left; return how many bytes that were."""
    at = 0
    while at < size and spare_bytes(read_text("/proc/meminfo")) > SPARE_BYTES + _STEP_BYTES:
        step = min(_STEP_BYTES, size - at)
        area.madvise(_MADV_POPULATE_WRITE, at, step)
        at += step
    return at


def spare_bytes(meminfo: str) -> int:
    """Return the free memory that is not CMA's, which the kernel cannot use for itself."""
    cma = meminfo_bytes(meminfo, "CmaFree") if "CmaFree:" in meminfo else 0
    return meminfo_bytes(meminfo, "MemFree") - cma
