# SPDX-License-Identifier: Apache-2.0
"""device.dma-continuity: every frame sent to a device arrived, also while no kernel drove it.

Two oracles: the control host's own list of the frames it sent, and the account of the driver on the
host under update, which is kept in memory that goes through the kexec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from liveupdate.core.units import format_ns
from liveupdate.formats import qemu_trace
from liveupdate.formats.pci_config import COMMAND, COMMAND_MASTER
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.compare import say_ranges
from liveupdate.judging.context import Context, Finding, Place, skipped
from liveupdate.judging.hop_devices import QUIESCE
from liveupdate.model import slots
from liveupdate.model.device_models import FED_KINDS
from liveupdate.model.evidence import (
    DeviceFacts,
    DeviceTrace,
    FrameAccount,
    FrameSent,
    IommuEvidence,
    Landed,
)
from liveupdate.model.scenario import DeviceSpec
from liveupdate.model.verdict import Outcome

#: VT-d global status register, TES
_TRANSLATION = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeviceHop(Place):
    """A device of the plan in a hop."""

    context: Context
    hop: int
    device: DeviceSpec

    @property
    def trace(self) -> DeviceTrace | None:
        return self.context.device(self.hop, self.device.name)

    def missing(self, what: str) -> Finding:
        return self.context.missing(what, self.hop, self.device.guest, self.files)


def judge_continuity(context: Context) -> Iterator[Finding]:
    """Require that every frame sent to a continuous device was received once, whole and in
    order, also during the blackout.
    """
    if not (context.plan.hops and context.plan.devices):
        yield skipped("the plan has no device whose DMA is to go on")
    for hop in context.plan.hops:
        for device in context.plan.devices:
            where = f"hop {hop.number}, {device.name}"
            files = (slots.DEVICE.path(hop.number, device.name),)
            at = _DeviceHop(
                where=where, files=files, context=context, hop=hop.number, device=device
            )
            if context.rolled_back(hop.number):
                yield at.skipped("rolled back, there was no kexec")
            elif device.guest is not None:
                yield _judge_guests_own(at, device.guest)
            elif device.tier == QUIESCE:
                yield _judge_rest(at)
            else:
                yield _judge_device(at)


def _judge_rest(at: _DeviceHop) -> Finding:
    """Judge tier quiesce: it is no failure that DMA stopped, but it is one that it does not
    start again.
    """
    facts = at.trace.facts if at.trace else None
    if facts is None or facts.frozen is None or facts.frozen_ns is None:
        return at.missing("the device's account")
    if facts.error is not None or facts.adopted_ns is None:
        why = facts.error or "the agent did not report that it did"
        return at.failed(f"the driver did not start it again: {why}", expected="a device at work")
    if facts.after is None:
        return at.missing("the device's account after the update")
    done = facts.after.received - facts.frozen.received
    if done <= 0:
        return at.failed(
            "nothing was received after the update, although it was started again",
            observed=f"{facts.after.received} received before and after",
            expected="more than before",
        )
    return at.skipped(
        "tier quiesce: its driver stopped DMA on purpose for"
        f" {format_ns(facts.adopted_ns - facts.frozen_ns)}; {done} received since"
    )


def _judge_guests_own(at: _DeviceHop, guest: str) -> Finding:
    """Judge a guest's own device: it stopped while the guest slept, and was used again after it."""
    name = at.device.name
    use = at.trace.facts.use if at.trace and at.trace.facts else None
    if use is None or use.asleep_ns is None:
        return at.missing(f"how {guest} uses {name}")
    what = "echoes answered" if at.device.kind in FED_KINDS else "records written"
    if not use.before:
        return at.error(f"{guest} was not seen to use it before the update")
    if use.first_ns is None or not use.after:
        if at.context.loss(at.hop, guest) is not None:
            return at.missing(f"how {guest} uses {name} again")
        awake = "is awake, but" if use.awake_ns is not None else "did not wake up, and"
        return at.failed(
            f"{guest} {awake} was not seen to use it again",
            observed=f"{use.before} {what} before, none after",
            expected="some after",
        )
    return at.skipped(
        f"tier quiesce: DMA stopped, as {guest} slept, until it was seen again"
        f" {format_ns(use.first_ns - use.asleep_ns)} later; {use.after} {what} since"
    )


def _judge_device(at: _DeviceHop) -> Finding:
    name, trace, evidence = at.device.name, at.trace, at.context.hop(at.hop)
    at = replace(at, files=(*at.files, slots.FRAMES.path(at.hop, name)))
    unreadable = any(path in at.context.evidence.unreadable for path in at.files)
    if evidence is None or trace is None or trace.facts is None or unreadable:
        return at.missing(f"frames of {name}")
    facts = trace.facts
    stopped = _judge_stop(at, facts, trace, evidence.iommu)
    if stopped is not None:
        return stopped
    before, after = facts.before, facts.after
    if at.device.kind not in FED_KINDS:
        return _judge_own(at, facts)
    if before is None or after is None or not trace.frames:
        return at.missing(f"frames received by {name}")
    if facts.landed is None or facts.frozen is None or facts.frozen_ns is None:
        return at.missing(f"frames that came in during the blackout at {name}")
    if not _is_contiguous(trace.frames) or trace.frames[0].number != before.expected:
        return at.error("the list of frames sent has gaps")
    sent = len(trace.frames)
    limited = _find_limited(at.device.ring, facts, trace.frames)
    findings = (
        _judge_account(at, facts, before, after, trace.frames, limited),
        _judge_blackout(at, facts.landed, facts.frozen_ns, trace.frames, limited),
    )
    wrong = [each for each in findings if each is not None]
    # a frame that the system lost counts more than those that it was never given
    wrong.sort(key=lambda each: each.status is not Outcome.FAIL)
    return next(
        iter(wrong),
        at.passed(
            f"{sent} frames sent, {sent} received in order, none twice, none damaged; "
            f"{facts.landed.found} of them landed during the blackout",
            f"{sent} of {sent} frames",
        ),
    )


def _judge_own(at: _DeviceHop, facts: DeviceFacts) -> Finding:
    """Judge what a device does on its driver's order: numbered frames that it copies or reads.

    The transfers that were in flight before the blackout must have landed when the incoming agent
    reads the memory. A controller may complete its queue in any order, so the first to land need
    not be the oldest.
    """
    before, frozen, landed, after = facts.before, facts.frozen, facts.landed, facts.after
    if before is None or frozen is None or landed is None or after is None:
        return at.missing(f"what {facts.device} did by itself")
    counts = {
        "missing": after.missing - before.missing,
        "twice": after.duplicate - before.duplicate,
        "out of order": after.reordered - before.reordered,
        "damaged": after.damaged + after.foreign - before.damaged - before.foreign,
    }
    wrong = _say_counts(counts)
    done, whole = after.expected - before.expected, after.received - before.received
    if wrong or whole != done or done < 0:
        return at.failed(
            f"of {done} transfers {wrong or f'{whole} whole'}",
            observed=wrong or f"{whole}",
            expected=f"{done} in order, none damaged",
        )
    if not landed.found or landed.first is None or landed.first < frozen.expected:
        return at.failed(
            f"{landed.found} transfers landed during the blackout, the first is {landed.first}",
            observed=f"{landed.found} from {landed.first}",
            expected=f"those in flight, from {frozen.expected} on",
        )
    last = landed.last if landed.last is not None else -1
    if after.expected <= last + 1:
        return at.failed(
            "nothing was transferred after what had landed during the blackout",
            observed=f"next {after.expected}",
            expected=f"more than {last + 1}",
        )
    return at.passed(
        f"{done} transfers of its own, whole and in order; {landed.found} in flight at the freeze"
        f" landed during the blackout, {after.expected - last - 1} came after it",
        f"{done} transfers",
    )


def _say_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _is_contiguous(frames: Sequence[FrameSent]) -> bool:
    first = frames[0].number
    return all(frame.number == first + index for index, frame in enumerate(frames))


def _judge_stop(
    at: Place, facts: DeviceFacts, trace: DeviceTrace, seen_outside: IommuEvidence | None
) -> Finding | None:
    """Return FAIL if the device itself did not come through, else None."""
    why = facts.error
    if why is None and facts.landed is not None and facts.adopted_ns is None:
        why = "the incoming kernel did not adopt it"
    if why is None:
        return None
    sent = len(trace.frames)
    breakers = _say_breakers(facts, seen_outside)
    landed = facts.landed.found if facts.landed is not None else 0
    more = f"; before the kexec: {facts.not_kept}" if facts.not_kept else ""
    return at.failed(
        f"DMA did not continue: {breakers}{why}{more}",
        observed=f"{landed} frames landed during the blackout"
        + (f", {_refused(trace.frames)} of {sent} were not taken by the device" if sent else ""),
        expected="every frame received" if sent else "every transfer done",
    )


def _say_breakers(facts: DeviceFacts, seen_outside: IommuEvidence | None) -> str:
    """Name the known ways to stop DMA that were seen from outside, in the order of time."""
    if facts.frozen_ns is None or seen_outside is None:
        return ""
    times = {
        "bus mastering went off": [
            event.host_ns
            for event in seen_outside.events
            if event.what == qemu_trace.CONFIG_WRITE
            and (event.where, event.offset) == (facts.bdf, COMMAND)
            and not event.value & COMMAND_MASTER
        ],
        "translation went off": [
            sample.host_ns for sample in seen_outside.samples if not sample.gsts & _TRANSLATION
        ],
        "it was reset": [
            event.host_ns for event in seen_outside.events if event.what == qemu_trace.RESET
        ],
    }
    first = {
        what: min((at for at in seen if at > facts.frozen_ns), default=None)
        for what, seen in times.items()
    }
    known = sorted((at, what) for what, at in first.items() if at is not None)
    said = [f"{what} {format_ns(at - facts.frozen_ns)} after the last look" for at, what in known]
    return f"{', '.join(said)}; " if said else ""


def _refused(frames: Sequence[FrameSent]) -> int:
    return sum(1 for frame in frames if frame.sent_ns is None)


def _find_limited(ring: int, facts: DeviceFacts, frames: Sequence[FrameSent]) -> frozenset[int]:
    """Find the frames that no system could have received: their wire did not take them, or they
    came when the ring, which no driver read, had no descriptor left.
    """
    first = facts.frozen.expected if facts.frozen is not None else 0
    until_ns = facts.adopted_ns or 0
    unread = [
        frame.number
        for frame in frames
        if frame.sent_ns is not None and frame.number >= first and frame.sent_ns < until_ns
    ]
    refused = [frame.number for frame in frames if frame.sent_ns is None]
    return frozenset([*refused, *unread[ring - 1 :]])


def _judge_account(
    at: _DeviceHop,
    facts: DeviceFacts,
    before: FrameAccount,
    after: FrameAccount,
    frames: Sequence[FrameSent],
    limited: frozenset[int],
) -> Finding | None:
    sent = len(frames)
    received = after.received - before.received
    # what came after the last good frame is missing without leaving a gap
    missing = after.missing - before.missing + frames[-1].number + 1 - after.expected
    counts = {
        "missing": missing,
        "received twice": after.duplicate - before.duplicate,
        "out of order": after.reordered - before.reordered,
        "damaged": after.damaged - before.damaged,
    }
    wrong = _say_counts(counts)
    if not wrong and received == sent:
        return None
    if received < 0 or missing < 0 or after.expected < before.expected:
        return at.failed(
            "the account ran backwards over the kexec: its memory was not preserved",
            observed=f"{received} received, next {after.expected}",
            expected=f"{sent} received, next {frames[-1].number + 1}",
        )
    gaps = [gap for gap in after.gaps if gap not in before.gaps]
    if after.expected <= frames[-1].number:
        gaps.append((after.expected, frames[-1].number))
    named = {
        frame.number for frame in frames if any(low <= frame.number <= high for low, high in gaps)
    }
    whole = received + missing == sent and missing == sum(count for count in counts.values())
    if whole and named <= limited and missing <= len(limited):
        return _say_limited(at, facts, frames, missing)
    return at.failed(
        f"of {sent} frames {wrong or f'{received} received'}"
        + (f" (number {say_ranges(gaps)})" if gaps else ""),
        observed=f"{received} received in order",
        expected=f"{sent}",
    )


def _say_limited(
    at: _DeviceHop, facts: DeviceFacts, frames: Sequence[FrameSent], missing: int
) -> Finding:
    """Say what kept frames from the device, and what to do about it."""
    refused, ring = _refused(frames), at.device.ring
    unread_ns = (facts.adopted_ns or 0) - (facts.frozen_ns or 0)
    said = [f"{refused} were never taken by the wire"] if refused else []
    if missing > refused or (facts.landed is not None and facts.landed.is_full):
        said.append(f"the ring of {ring} was full before the blackout was over")
    return at.error(
        f"{missing} of {len(frames)} frames were never given to the device: {', '.join(said)}. "
        f"No driver read the ring for {format_ns(max(unread_ns, 0))}: set the device's 'rate' below"
        f" {max(1, int((ring - 1) * 5e8 / max(unread_ns, 1)))}, or run with less load beside it",
        f"{missing} frames not tested",
    )


def _judge_blackout(
    at: Place,
    landed: Landed,
    frozen_ns: int,
    frames: Sequence[FrameSent],
    limited: frozenset[int],
) -> Finding | None:
    """Require that frames landed while they were sent, and were not queued until the driver was
    back.
    """
    # The agent's look is dated by the arrival of its message, which may be late. So the frames of
    # the first half must have landed by then; the others are counted as well.
    middle_ns = (frozen_ns + landed.host_ns) // 2
    due = [
        frame.number
        for frame in frames
        if frame.sent_ns is not None
        and frozen_ns < frame.sent_ns < middle_ns
        and frame.number not in limited
    ]
    if not due:
        return at.error(
            "no frame was sent during the blackout: nothing was tested. The sender was behind: "
            "run with less load beside it"
        )
    last = landed.last if landed.last is not None else -1
    if landed.found == 0 or last < due[-1]:
        late = sum(1 for number in due if number > last)
        return at.failed(
            f"{late} of {len(due)} frames sent during the blackout had not landed when "
            "the incoming kernel's agent looked",
            observed=f"{landed.found} landed, the last is {landed.last}",
            expected=f"all up to {due[-1]}",
        )
    whole = sum(
        frame.sent_ns is not None and (landed.first or 0) <= frame.number <= last
        for frame in frames
    )
    if landed.found != whole:
        return at.failed(
            f"{landed.found} frames landed from {landed.first} to {landed.last}",
            expected=f"{whole}",
        )
    return None


def without_device(asked: Asked) -> str | None:
    """Return why there is no DMA to judge."""
    if asked.scenario.devices:
        return None
    return "the scenario has no device whose DMA is to go on"


CHECKS = (CheckRow(id="device.dma-continuity", judge=judge_continuity, skip=without_device),)
