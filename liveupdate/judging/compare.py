# SPDX-License-Identifier: Apache-2.0
"""Before against after: page digests, page frames, and gaps in what a guest was seen to do.

Pure. Says what differs and by how much; whether that is acceptable is
:mod:`liveupdate.judging.judge`'s business. Whatever too few samples leave open is ``None``. Times
are host nanoseconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from liveupdate.model.evidence import AgentPing, Echo, JournalSample, Tick

WORD_BYTES = 8
#: how many ranges of differing pages are kept; the count always covers all of them
MAX_RANGES = 64
#: compared at once; a whole block that is equal costs one memcmp
_BLOCK_WORDS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PageDiff:
    """Where two per-page tables differ. ``ranges`` are (first, last) page, both inclusive."""

    pages: int
    changed: int
    first: int | None
    ranges: tuple[tuple[int, int], ...]


def say_ranges(ranges: Sequence[tuple[int, int]], most: int = 4) -> str:
    """Name the first few ranges, both ends inclusive."""
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:most]]
    return ", ".join(shown) + (", …" if len(ranges) > most else "")


def compare_words(before: bytes, after: bytes) -> PageDiff:
    """Compare two tables of one little-endian u64 per page, of equal length.

    :raises ValueError: when the lengths differ or are not whole words.
    """
    if len(before) != len(after):
        raise ValueError(f"tables of {len(before)} and {len(after)} bytes cannot be compared")
    if len(before) % WORD_BYTES:
        raise ValueError(f"a table of {len(before)} bytes is not made of u64 words")
    pages = len(before) // WORD_BYTES
    if before == after:
        return PageDiff(pages=pages, changed=0, first=None, ranges=())
    changed = 0
    ranges: list[tuple[int, int]] = []
    open_range: tuple[int, int] | None = None
    first: int | None = None
    for page in _differing(before, after, pages):
        changed += 1
        first = page if first is None else first
        if open_range is not None and page == open_range[1] + 1:
            open_range = (open_range[0], page)
            continue
        if open_range is not None and len(ranges) < MAX_RANGES:
            ranges.append(open_range)
        open_range = (page, page)
    if open_range is not None and len(ranges) < MAX_RANGES:
        ranges.append(open_range)
    return PageDiff(pages=pages, changed=changed, first=first, ranges=tuple(ranges))


def _differing(before: bytes, after: bytes, pages: int) -> Iterable[int]:
    words = memoryview(before).cast("Q"), memoryview(after).cast("Q")
    for start in range(0, pages, _BLOCK_WORDS):
        end = min(start + _BLOCK_WORDS, pages)
        block = slice(start * WORD_BYTES, end * WORD_BYTES)
        if before[block] == after[block]:
            continue
        pairs = zip(words[0][start:end], words[1][start:end], strict=True)
        yield from (start + index for index, (old, new) in enumerate(pairs) if old != new)


def _words(data: bytes) -> array[int]:
    table = array("Q")
    table.frombytes(data[: len(data) // WORD_BYTES * WORD_BYTES])
    return table


def count_distinct(words: bytes) -> int:
    """Count the different u64 in a table, trailing bytes left out."""
    return len(set(_words(words)))


def count_zero(words: bytes) -> int:
    """Count the words that are 0: in a table of page frames, pages that were not present."""
    # A table has millions of words, and hardly ever eight bytes of zero in a row.
    return _words(words).count(0) if bytes(WORD_BYTES) in words else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A silence that covers the pause, from the last sign of life before to the first after."""

    began_ns: int
    ended_ns: int

    @property
    def length_ns(self) -> int:
        """Length of the silence in nanoseconds."""
        return self.ended_ns - self.began_ns


def gap_over(times_ns: Sequence[int], paused_ns: int | None, resumed_ns: int | None) -> Gap | None:
    """Find the longest silence between two neighbours of ``times_ns`` that touches the pause.

    Pause and resume reach the control host as messages, later than they happened; so the gap is
    looked for around them and not read off them. With no resume, whatever follows the pause counts.
    """
    if paused_ns is None:
        return None
    until = max(paused_ns, resumed_ns) if resumed_ns is not None else None
    ordered = sorted(times_ns)
    best: Gap | None = None
    for began, ended in pairwise(ordered):
        if ended < paused_ns or (until is not None and began > until):
            continue
        if best is None or ended - began > best.length_ns:
            best = Gap(began_ns=began, ended_ns=ended)
        if until is None:
            # the first interval after the pause; later ones are stalls, not this gap
            break
    return best


def tick_changes(ticks: Iterable[Tick]) -> tuple[Tick, ...]:
    """Keep the readings at which the tick sequence (or the boot) had moved, in order of time."""
    ordered = sorted(ticks, key=lambda tick: tick.host_ns)
    return tuple(
        tick
        for previous, tick in pairwise(ordered)
        if (tick.boot, tick.seq) != (previous.boot, previous.seq)
    )


def vcpu_gap(ticks: Iterable[Tick], paused_ns: int | None, resumed_ns: int | None) -> Gap | None:
    """Find how long the guest's vCPUs made no progress over the update."""
    return gap_over([tick.host_ns for tick in tick_changes(ticks)], paused_ns, resumed_ns)


def network_gap(
    echoes: Iterable[Echo], paused_ns: int | None, resumed_ns: int | None
) -> Gap | None:
    """Find the longest time between two answers over the update."""
    answers = [echo.received_ns for echo in echoes if echo.received_ns is not None]
    return gap_over(answers, paused_ns, resumed_ns)


def journal_changes(samples: Iterable[JournalSample]) -> tuple[JournalSample, ...]:
    """Keep the samples at which the journal had grown (or shrunk), in order of time."""
    ordered = sorted(samples, key=lambda sample: sample.host_ns)
    return tuple(sample for previous, sample in pairwise(ordered) if sample.seq != previous.seq)


def storage_gap(
    samples: Iterable[JournalSample], paused_ns: int | None, resumed_ns: int | None
) -> Gap | None:
    """Find the longest time over the update in which no journal record became durable."""
    return gap_over([sample.host_ns for sample in journal_changes(samples)], paused_ns, resumed_ns)


def longest_silence(times_ns: Iterable[int], began_ns: int, ended_ns: int) -> Gap:
    """Find the longest time without a sign of life in a window, its two ends counted as signs."""
    inside = sorted(time for time in times_ns if began_ns < time < ended_ns)
    marks = [began_ns, *inside, max(began_ns, ended_ns)]
    began, ended = max(pairwise(marks), key=lambda interval: interval[1] - interval[0])
    return Gap(began_ns=began, ended_ns=ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Questions to a guest: (when it was asked, when that ended), and the times of the answers."""

    spans_ns: tuple[tuple[int, int], ...]
    answers_ns: tuple[int, ...]

    @classmethod
    def by_pings(cls, pings: Iterable[AgentPing]) -> Asked:
        """Take the questions to a guest agent."""
        pings = tuple(pings)
        return cls(
            spans_ns=tuple(
                (each.host_ns if each.asked_ns is None else each.asked_ns, each.host_ns)
                for each in pings
            ),
            answers_ns=tuple(each.host_ns for each in pings if each.realtime_ns is not None),
        )

    @classmethod
    def by_echoes(cls, echoes: Iterable[Echo]) -> Asked:
        """Take the questions on the network."""
        echoes = tuple(echoes)
        return cls(
            spans_ns=tuple((each.sent_ns, each.sent_ns) for each in echoes),
            answers_ns=tuple(each.received_ns for each in echoes if each.received_ns is not None),
        )

    def silence(self, began_ns: int, ended_ns: int) -> Gap:
        """Find the longest time without an answer in a window."""
        return longest_silence(self.answers_ns, began_ns, ended_ns)

    def hole_ns(self, began_ns: int, ended_ns: int) -> int:
        """Return the longest time in a window without an open question that was asked in it."""
        longest, free_from = 0, began_ns
        for asked, closed in sorted(self.spans_ns):
            if began_ns <= asked <= ended_ns:
                longest, free_from = max(longest, asked - free_from), max(free_from, closed)
        return max(longest, ended_ns - free_from)


def first_regress(values: Iterable[int]) -> tuple[int, int] | None:
    """Find the first place where a sequence went down: (value, smaller value after it)."""
    previous: int | None = None
    for value in values:
        if previous is not None and value < previous:
            return previous, value
        previous = value
    return None
