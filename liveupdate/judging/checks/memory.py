# SPDX-License-Identifier: Apache-2.0
"""memory.content and memory.placement: the same bytes, on the same page frames."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from liveupdate.core.units import PAGE_BYTES, format_addr, format_ns
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.compare import (
    PageDiff,
    compare_words,
    count_distinct,
    count_zero,
    say_ranges,
)
from liveupdate.judging.context import Context, Finding, GuestHop, say_altered, skipped
from liveupdate.model import slots
from liveupdate.model.evidence import Artifact, PageDigests

_WORD = 8


def say_diff(diff: PageDiff) -> str:
    """Say which pages differ: the count, the first ranges."""
    return f"{diff.changed} of {diff.pages} pages ({say_ranges(diff.ranges)})"


def _is_altered(raw: bytes, artifact: Artifact | None) -> bool:
    return artifact is not None and hashlib.sha256(raw).hexdigest() != artifact.sha256


def _judge_cover(at: GuestHop, what: str, said: int, table: bytes) -> Finding | None:
    """Require that a table has one word for each page of the guest.

    :param said: how many pages it has by its own account.
    """
    pages = at.guest.memory_bytes // PAGE_BYTES
    if said == pages and len(table) == pages * _WORD:
        return None
    return at.error(f"{what} cover {len(table) // _WORD} of {pages} pages")


def judge_content(context: Context) -> Iterator[Finding]:
    """Require that every page of every guest has the same content at the freeze and before the
    resume.
    """
    for at in context.guests():
        if not at.is_rolled_back or at.trace:
            yield from _judge_pattern(at.on(slots.PATTERN))
        if at.is_rolled_back:
            yield at.skipped("rolled back, no incoming kernel to ask")
        elif not context.plan.observe.memory:
            yield skipped("page digests were left out (observe.memory = false)")
        else:
            yield _judge_digests(at)


def _judge_digests(at: GuestHop) -> Finding:
    name = at.guest.name
    memory = at.context.memory(at.hop, name)
    raw = {moment: slot.raw_path(at.hop, name) for moment, slot in slots.DIGESTS.items()}
    tables: dict[str, PageDigests] = {}
    for moment, when in (("freeze", "at the freeze"), ("boot", "after the kexec")):
        found: PageDigests | None = getattr(memory, moment, None)
        if found is None:
            files = (raw[moment], slots.DIGESTS[moment].path(at.hop, name))
            return replace(at, files=files).missing(f"page digests {when}")
        tables[moment] = found
    at = replace(at, files=tuple(raw.values()))
    for moment, each in tables.items():
        if short := _judge_cover(at, f"the {moment} digests", each.pages, each.digests):
            return short
    freeze, boot = tables.values()
    if untimely := _judge_moments(at, freeze, boot):
        return untimely
    diff = compare_words(freeze.digests, boot.digests)
    altered = [
        raw[moment] for moment, each in tables.items() if _is_altered(each.digests, each.artifact)
    ]
    if diff.first is not None:
        return at.failed(
            f"page {diff.first} at guest-physical {format_addr(diff.first * PAGE_BYTES)} "
            f"changed over the kexec; {say_diff(diff)} differ{say_altered(altered)}",
            observed=say_diff(diff),
            expected="0 pages differ",
        )
    if altered:
        return at.error(f"evidence altered: {', '.join(altered)}")
    equal = f"{diff.pages} pages equal"
    at = replace(at, files=())
    return _judge_variety(at, freeze) or at.passed(equal, equal)


def _judge_moments(at: GuestHop, freeze: PageDigests, boot: PageDigests) -> Finding | None:
    """Reject digests that were taken while the guest ran: whether they are equal proves nothing."""
    paused_ns = at.paused_ns
    if paused_ns is None:
        return replace(at, files=(slots.MARKS.path(at.hop),)).missing("the moment of the pause")
    at = replace(at, files=())
    if freeze.began_ns < paused_ns:
        return at.error("the freeze digests were begun before the guest was paused")
    if boot.began_ns < freeze.ended_ns:
        return at.error("the boot digests were begun before the freeze digests ended")
    if at.resumed_ns is not None and boot.ended_ns > at.resumed_ns:
        late = format_ns(boot.ended_ns - at.resumed_ns)
        return at.error(
            f"the boot digests ended {late} after the guest went on, so the guest may have changed "
            "what they show: the control host had too little CPU time to digest in the blackout"
        )
    return None


def _judge_variety(at: GuestHop, freeze: PageDigests) -> Finding | None:
    """Reject digests of other memory: the payload's pattern has no two pages alike."""
    pattern_pages = at.trace.pattern.pages if at.trace and at.trace.pattern else 0
    distinct = count_distinct(freeze.digests)
    if distinct < pattern_pages:
        return at.error(
            f"{distinct} different digests, but the guest's pattern alone has "
            f"{pattern_pages} different pages: something else was hashed"
        )
    return None


def _judge_pattern(at: GuestHop) -> Iterator[Finding]:
    """Judge the guest's own check of its pattern, from inside; only the shipped payload has one."""
    if not at.guest.kind.payload:
        return
    pattern = at.trace.pattern if at.trace else None
    planned = (at.guest.pattern_bytes or 0) // PAGE_BYTES
    if pattern is None and at.is_rolled_back:
        yield at.skipped("rolled back, the guest did not check its pattern")
    elif pattern is None:
        yield at.missing("the guest's own check of its pattern")
    elif pattern.bad != 0:
        yield at.failed(
            f"the guest found {pattern.bad} of {pattern.pages} pattern pages changed",
            observed=f"{pattern.bad} bad pages",
            expected="0 bad pages",
        )
    elif pattern.pages < max(planned, 1):
        yield at.error(f"the guest checked {pattern.pages} of {planned} pattern pages")
    else:
        yield at.passed(f"{pattern.pages} pattern pages intact")


def judge_placement(context: Context) -> Iterator[Finding]:
    """Require that every page of every guest is on the same page frame as before."""
    for at in context.guests():
        if at.is_rolled_back:
            yield at.skipped("rolled back, no incoming kernel to ask")
        else:
            yield _judge_pfns(at)


def _judge_pfns(at: GuestHop) -> Finding:
    memory = at.context.memory(at.hop, at.guest.name)
    tables = (slots.PFNS_BEFORE, slots.PFNS_AFTER)
    files = tuple(slot.raw_path(at.hop, at.guest.name) for slot in tables)
    if memory is None or memory.pfns_before is None:
        return replace(at, files=files[:1]).missing("page frames before the kexec")
    if memory.pfns_after is None:
        return replace(at, files=files[1:]).missing("page frames after the kexec")
    placed = replace(at, files=files)
    frames = (memory.pfns_before, memory.pfns_after)
    for moment, each in zip(("before", "after"), frames, strict=True):
        what = f"page frames {moment} the kexec"
        if short := _judge_cover(placed, what, each.pages, each.pfns):
            return short
    altered = [
        path
        for path, each in zip(files, frames, strict=True)
        if _is_altered(each.pfns, each.artifact)
    ]
    before, after = (each.pfns for each in frames)
    # frame 0 is what pagemap gives for a page that is not present, or to a reader without privilege
    if absent := count_zero(before):
        return at.error(f"{absent} pages had no page frame before the kexec")
    if absent := count_zero(after):
        return at.error(f"{absent} pages have no page frame after the kexec")
    diff = compare_words(before, after)
    if diff.first is not None:
        return placed.failed(
            f"page {diff.first} moved from {_frame(before, diff.first)} to "
            f"{_frame(after, diff.first)}; {say_diff(diff)} moved{say_altered(altered)}",
            observed=say_diff(diff),
            expected="0 pages moved",
        )
    if altered:
        return placed.error(f"evidence altered: {', '.join(altered)}")
    if count_distinct(before) != diff.pages:
        return at.error("pagemap gave the same page frame for several pages")
    return placed.passed(f"{diff.pages} pages in place", f"{diff.pages} pages in place")


def _frame(pfns: bytes, page: int) -> str:
    pfn = int.from_bytes(pfns[page * _WORD : (page + 1) * _WORD], "little")
    return format_addr(pfn * PAGE_BYTES)


def _not_digested(asked: Asked) -> str | None:
    return None if asked.scenario.observe.memory else "observe.memory is false"


CHECKS = (
    CheckRow(id="memory.content", judge=judge_content, skip=_not_digested),
    CheckRow(id="memory.placement", judge=judge_placement),
)
