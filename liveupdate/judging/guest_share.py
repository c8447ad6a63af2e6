# SPDX-License-Identifier: Apache-2.0
"""Splits a device's mappings into its guest's memory and what the VMM maps for itself.

A VMM maps all that its guest could let a device reach: the guest's RAM, which must keep its place;
the firmware's ROM, which is in memory of the VMM's process and new with it; and registers of the
guest's devices.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats.iommu import MappingSet, Run

Sets = tuple[MappingSet, ...]


@dataclass(frozen=True, slots=True)
class Ranges:
    """Physical memory: ranges in ascending order that neither overlap nor touch, as bytes."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of_frames(cls, pfns: bytes) -> Ranges:
        """Make ranges from page frame numbers, u64 LE each; 0 is a page that is not present."""
        starts: list[int] = []
        ends: list[int] = []
        for frame in sorted({frame for (frame,) in struct.iter_unpack("<Q", pfns)} - {0}):
            first = frame * PAGE_BYTES
            if ends and ends[-1] == first:
                ends[-1] = first + PAGE_BYTES
            else:
                starts.append(first)
                ends.append(first + PAGE_BYTES)
        return cls(tuple(starts), tuple(ends))

    def cut(self, run: Run) -> Iterator[tuple[bool, Run]]:
        """Cut a run into pieces that are inside or outside, in ascending order."""
        at, end = run.phys, run.phys + run.size
        while at < end:
            index = bisect_right(self.starts, at) - 1
            is_inside = index >= 0 and at < self.ends[index]
            if is_inside:
                to = min(end, self.ends[index])
            else:
                further = index + 1
                to = min(end, self.starts[further]) if further < len(self.starts) else end
            yield is_inside, run._replace(iova=run.iova + at - run.phys, phys=at, size=to - at)
            at = to


@dataclass(frozen=True, slots=True)
class GuestShare:
    """Where a guest's memory lay before the update, and where it lies after."""

    guest: str
    before: Ranges
    after: Ranges

    @classmethod
    def of(cls, guest: str, pfns_before: bytes, pfns_after: bytes) -> GuestShare:
        """Make it from the guest's page frame numbers before and after, u64 LE each."""
        return cls(guest, Ranges.of_frames(pfns_before), Ranges.of_frames(pfns_after))

    def guests(self, before: Sets, after: Sets) -> tuple[Sets, Sets]:
        """Return from both walks the runs that lead to the guest's memory."""
        return self.guests_at("before", before), self.guests_at("after", after)

    def guests_at(self, moment: str, walk: Sets) -> Sets:
        """Return from one walk the runs that lead to the guest's memory."""
        return _pick(walk, self.before if moment == "before" else self.after, wanted=True)

    def others(self, before: Sets, after: Sets) -> tuple[Sets, Sets]:
        """Return the other runs with each IOVA leading to itself: the VMM may place that memory
        anywhere.
        """
        return (
            _flatten(_pick(before, self.before, wanted=False)),
            _flatten(_pick(after, self.after, wanted=False)),
        )


def where_mapped(lies: Sets, mapped: Sets) -> Sets:
    """Return where the guest's memory is, for those of its IOVAs that are mapped.

    :param lies: where each of the guest's addresses is; it says nothing about access.
    :param mapped: decides on IOVAs and access.
    """
    found = {each.requester: each.runs for each in lies}
    return tuple(
        replace(each, runs=tuple(_look_up(found.get(each.requester, ()), each.runs)))
        for each in mapped
    )


def _look_up(lies: Sequence[Run], mapped: Sequence[Run]) -> Iterator[Run]:
    starts = [run.iova for run in lies]
    for run in mapped:
        at, end = run.iova, run.iova + run.size
        index = max(bisect_right(starts, at) - 1, 0)
        while at < end and index < len(lies):
            here = lies[index]
            first, last = max(at, here.iova), min(end, here.iova + here.size)
            if first < last:
                phys = here.phys + first - here.iova
                yield run._replace(iova=first, phys=phys, size=last - first, page=here.page)
                at = last
            index += 1


def _pick(sets: Sets, ranges: Ranges, *, wanted: bool) -> Sets:
    return tuple(
        replace(
            each,
            runs=tuple(
                piece
                for is_inside, piece in chain.from_iterable(map(ranges.cut, each.runs))
                if is_inside is wanted
            ),
        )
        for each in sets
    )


def _flatten(sets: Sets) -> Sets:
    return tuple(replace(each, runs=tuple(_merge(each.runs))) for each in sets)


def _merge(runs: Sequence[Run]) -> Iterator[Run]:
    last: Run | None = None
    for run in runs:
        piece = run._replace(phys=run.iova, page=PAGE_BYTES)
        if last is not None and (last.iova + last.size, last.access) == (piece.iova, piece.access):
            last = last._replace(size=last.size + piece.size)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last
