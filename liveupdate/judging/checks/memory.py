# SPDX-License-Identifier: Apache-2.0
"""memory.content and memory.placement: the same bytes, on the same page frames."""

from __future__ import annotations

import hashlib

from liveupdate.core.units import PAGE_BYTES, format_addr
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.compare import PageDiff, compare_words, count_distinct, count_zero
from liveupdate.judging.context import Context, Finding, error_finding, failed, passed, skipped
from liveupdate.model import slots
from liveupdate.model.evidence import Artifact, GuestMemory, PageDigests
from liveupdate.model.scenario import GuestSpec

_WORD = 8


def say_diff(diff: PageDiff) -> str:
    """Say which pages differ: the count, the first ranges."""
    shown = ", ".join(
        f"{first}" if first == last else f"{first}-{last}" for first, last in diff.ranges[:4]
    )
    more = ", …" if len(diff.ranges) > 4 else ""
    return f"{diff.changed} of {diff.pages} pages ({shown}{more})"


def _is_altered(raw: bytes, artifact: Artifact | None) -> bool:
    return artifact is not None and hashlib.sha256(raw).hexdigest() != artifact.sha256


def judge_content(context: Context) -> list[Finding]:
    """Require that every page of every guest has the same content at the freeze and before the
    resume.
    """
    findings: list[Finding] = []
    for hop, _facts, guest in context.guests():
        if not context.rolled_back(hop.number) or context.trace(hop.number, guest.name):
            findings += _judge_pattern(context, hop.number, guest)
        if context.rolled_back(hop.number):
            findings.append(
                skipped(f"hop {hop.number}, {guest.name}: rolled back, no incoming kernel to ask")
            )
        elif not context.plan.observe.memory:
            findings.append(skipped("page digests were left out (observe.memory = false)"))
        else:
            findings.append(_judge_digests(context, hop.number, guest))
    return findings


def _judge_digests(context: Context, hop: int, guest: GuestSpec) -> Finding:
    where = f"hop {hop}, {guest.name}"
    memory = context.memory(hop, guest.name)
    paths = {
        moment: (slot.raw_path(hop, guest.name), slot.path(hop, guest.name))
        for moment, slot in slots.DIGESTS.items()
    }
    if memory is None or memory.freeze is None:
        return context.missing("page digests at the freeze", hop, guest.name, paths["freeze"])
    if memory.boot is None:
        return context.missing("page digests after the kexec", hop, guest.name, paths["boot"])
    files = (paths["freeze"][0], paths["boot"][0])
    pages = guest.memory_bytes // PAGE_BYTES
    for moment, digests in (("freeze", memory.freeze), ("boot", memory.boot)):
        if digests.pages != pages or len(digests.digests) != pages * _WORD:
            return error_finding(
                f"{where}: the {moment} digests cover {len(digests.digests) // _WORD} "
                f"of {pages} pages",
                evidence=files,
            )
    diff = compare_words(memory.freeze.digests, memory.boot.digests)
    altered = [
        path
        for path, digests in zip(files, (memory.freeze, memory.boot), strict=True)
        if _is_altered(digests.digests, digests.artifact)
    ]
    if diff.first is not None:
        alteration = f" (or evidence altered: {', '.join(altered)})" if altered else ""
        return failed(
            f"{where}: page {diff.first} at guest-physical {format_addr(diff.first * PAGE_BYTES)} "
            f"changed over the kexec; {say_diff(diff)} differ{alteration}",
            observed=say_diff(diff),
            expected="0 pages differ",
            evidence=files,
        )
    if altered:
        return error_finding(f"{where}: evidence altered: {', '.join(altered)}", evidence=files)
    return _judge_moments(context, hop, guest, memory.freeze, memory.boot) or passed(
        f"{where}: {pages} pages equal", observed=f"{pages} pages equal", evidence=files
    )


def _judge_moments(
    context: Context, hop: int, guest: GuestSpec, freeze: PageDigests, boot: PageDigests
) -> Finding | None:
    """Reject digests of the wrong time or of the wrong memory: if equal, they prove nothing."""
    where = f"hop {hop}, {guest.name}"
    facts = context.hop(hop)
    paused = facts.paused_ns.get(guest.name) if facts else None
    resumed = facts.resumed_ns.get(guest.name) if facts else None
    if paused is None:
        marks = slots.MARKS.path(hop)
        return context.missing("the moment of the pause", hop, guest.name, (marks,))
    if freeze.began_ns < paused:
        return error_finding(f"{where}: the freeze digests were begun before the guest was paused")
    if boot.began_ns < freeze.ended_ns:
        return error_finding(
            f"{where}: the boot digests were begun before the freeze digests ended"
        )
    if resumed is not None and boot.ended_ns > resumed:
        return error_finding(
            f"{where}: the boot digests were still being taken when the guest went on"
        )
    trace = context.trace(hop, guest.name)
    pattern_pages = trace.pattern.pages if trace and trace.pattern else 0
    distinct = count_distinct(freeze.digests)
    if distinct < pattern_pages:
        # no two pages of the payload's pattern are alike
        return error_finding(
            f"{where}: {distinct} different digests, but the guest's pattern alone has "
            f"{pattern_pages} different pages: something else was hashed"
        )
    return None


def _judge_pattern(context: Context, hop: int, guest: GuestSpec) -> list[Finding]:
    """Judge the guest's own check of its pattern, from inside; only the shipped payload has one."""
    if not guest.kind.payload:
        return []
    where = f"hop {hop}, {guest.name}"
    path = slots.PATTERN.path(hop, guest.name)
    trace = context.trace(hop, guest.name)
    if trace is None or trace.pattern is None:
        if context.rolled_back(hop):
            return [skipped(f"{where}: rolled back, the guest did not check its pattern")]
        return [context.missing("the guest's own check of its pattern", hop, guest.name, (path,))]
    pattern = trace.pattern
    if pattern.bad > 0:
        return [
            failed(
                f"{where}: the guest found {pattern.bad} of {pattern.pages} pattern pages changed",
                observed=f"{pattern.bad} bad pages",
                expected="0 bad pages",
                evidence=(path,),
            )
        ]
    planned = (guest.pattern_bytes or 0) // PAGE_BYTES
    if pattern.pages < max(planned, 1):
        return [
            error_finding(
                f"{where}: the guest checked {pattern.pages} of {planned} pattern pages",
                evidence=(path,),
            )
        ]
    return [passed(f"{where}: {pattern.pages} pattern pages intact", evidence=(path,))]


def judge_placement(context: Context) -> list[Finding]:
    """Require that every page of every guest is on the same page frame as before."""
    findings: list[Finding] = []
    for hop, _facts, guest in context.guests():
        if context.rolled_back(hop.number):
            findings.append(
                skipped(f"hop {hop.number}, {guest.name}: rolled back, no incoming kernel to ask")
            )
        else:
            memory = context.memory(hop.number, guest.name)
            findings.append(_judge_pfns(context, hop.number, guest, memory))
    return findings


def _judge_pfns(
    context: Context, hop: int, guest: GuestSpec, memory: GuestMemory | None
) -> Finding:
    where = f"hop {hop}, {guest.name}"
    tables = (slots.PFNS_BEFORE, slots.PFNS_AFTER)
    files = tuple(slot.raw_path(hop, guest.name) for slot in tables)
    if memory is None or memory.pfns_before is None:
        return context.missing("page frames before the kexec", hop, guest.name, files[:1])
    if memory.pfns_after is None:
        return context.missing("page frames after the kexec", hop, guest.name, files[1:])
    pages = guest.memory_bytes // PAGE_BYTES
    frames = (memory.pfns_before, memory.pfns_after)
    for moment, each in zip(("before", "after"), frames, strict=True):
        if each.pages != pages or len(each.pfns) != pages * _WORD:
            return error_finding(
                f"{where}: page frames {moment} the kexec cover {len(each.pfns) // _WORD} "
                f"of {pages} pages",
                evidence=files,
            )
    altered = [
        path
        for path, each in zip(files, frames, strict=True)
        if _is_altered(each.pfns, each.artifact)
    ]
    before, after = (each.pfns for each in frames)
    # frame 0 is what pagemap gives for a page that is not present, or to a reader without privilege
    if absent := count_zero(before):
        return error_finding(f"{where}: {absent} pages had no page frame before the kexec")
    if absent := count_zero(after):
        return error_finding(f"{where}: {absent} pages have no page frame after the kexec")
    diff = compare_words(before, after)
    if diff.first is not None:
        alteration = f" (or evidence altered: {', '.join(altered)})" if altered else ""
        return failed(
            f"{where}: page {diff.first} moved from {_frame(before, diff.first)} to "
            f"{_frame(after, diff.first)}; {say_diff(diff)} moved{alteration}",
            observed=say_diff(diff),
            expected="0 pages moved",
            evidence=files,
        )
    if altered:
        return error_finding(f"{where}: evidence altered: {', '.join(altered)}", evidence=files)
    if count_distinct(before) != pages:
        return error_finding(f"{where}: pagemap gave the same page frame for several pages")
    return passed(f"{where}: {pages} pages in place", f"{pages} pages in place", files)


def _frame(pfns: bytes, page: int) -> str:
    pfn = int.from_bytes(pfns[page * _WORD : (page + 1) * _WORD], "little")
    return format_addr(pfn * PAGE_BYTES)


def _not_digested(asked: Asked) -> str | None:
    return None if asked.scenario.observe.memory else "observe.memory is false"


CHECKS = (
    CheckRow(id="memory.content", judge=judge_content, skip=_not_digested),
    CheckRow(id="memory.placement", judge=judge_placement),
)
