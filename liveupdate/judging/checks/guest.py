# SPDX-License-Identifier: Apache-2.0
"""guest.clock, guest.network, guest.storage and budget.blackout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from liveupdate.core.units import format_ns
from liveupdate.judging.check import CheckRow, unless_any
from liveupdate.judging.checks.liveness import Window, find_window, judge_asked
from liveupdate.judging.clockfit import ClockChange, Reading, find_disagreement, fit_clock
from liveupdate.judging.compare import (
    Asked,
    Gap,
    first_regress,
    gap_over,
    journal_changes,
    network_gap,
    tick_changes,
    vcpu_gap,
)
from liveupdate.judging.context import Context, Finding, GuestHop, skipped
from liveupdate.judging.sleep import RTC_SECOND_NS, SLEEP_CLOCKS, has_slept, sleep_files
from liveupdate.model import slots
from liveupdate.model.device_models import NAMESPACE_BYTES
from liveupdate.model.evidence import Echo, GuestTrace
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.model.guest_kinds import Watch
from liveupdate.model.scenario import CONTINUOUS
from liveupdate.model.targets import Capability

#: a clock may be off by this much at a step before it counts as one: a reading taken late by a
#: busy control host looks like a small step
CLOCK_STEP_TOLERANCE_NS = 100_000_000
#: by how much a clock that is to go on through the blackout may be off after it
CONTINUOUS_TOLERANCE_NS = 10_000_000
#: bytes of one journal record
_RECORD_BYTES = 512
_TICK_CLOCKS = ("monotonic", "boottime", "realtime")


# --- clock


def readings(trace: GuestTrace, clock: str) -> list[Reading]:
    """Pair host and guest times of one clock, only where the reading was fresh."""
    if clock == "realtime" and trace.agent_pings and not trace.ticks:
        return [
            (ping.host_ns, ping.realtime_ns)
            for ping in trace.agent_pings
            if ping.realtime_ns is not None
        ]
    return [(tick.host_ns, int(getattr(tick, f"{clock}_ns"))) for tick in tick_changes(trace.ticks)]


def clock_gap(trace: GuestTrace, paused_ns: int | None, resumed_ns: int | None) -> Gap | None:
    """Find the interval without a reading of the guest's clocks over the update."""
    if trace.ticks:
        return vcpu_gap(trace.ticks, paused_ns, resumed_ns)
    answered = [ping.host_ns for ping in trace.agent_pings if ping.realtime_ns is not None]
    return gap_over(answered, paused_ns, resumed_ns)


def judge_clock(context: Context) -> Iterator[Finding]:
    """Require that no guest clock went back, jumped forward, lost more than the blackout or runs at
    a wrong rate.

    Clocks that count sleep may gain the second of an RTC over the blackout of a guest that slept.
    """
    for at in context.reached():
        clock = at.guest.kind.clock
        if clock is None:
            what = "the clock of a user's image is not seen on the network"
            yield skipped(f"{at.guest.name}: {what}")
            continue
        at = at.on(slots.TICKS if clock is Watch.TICKS else slots.PINGS)
        trace, window = at.trace, find_window(at)
        if at.is_unreadable or trace is None:
            yield at.missing("clock readings")
        elif isinstance(window, Finding):
            yield window
        elif len({tick.boot for tick in trace.ticks}) > 1:
            # the clocks of another boot say nothing; guest.liveness says FAIL
            yield at.missing("clock readings of one boot")
        else:
            at = at.on(slots.TICKS if trace.ticks else slots.PINGS)
            yield from _judge_clocks(at, trace, window)


def _judge_clocks(at: GuestHop, trace: GuestTrace, window: Window) -> Iterator[Finding]:
    gap = clock_gap(trace, window.paused_ns, window.resumed_ns)
    if gap is None and window.paused_ns is not None:
        yield at.missing("clock readings on both sides of the update")
        return
    said: list[str] = []
    has_ticks = at.guest.kind.clock is Watch.TICKS
    for clock in _TICK_CLOCKS if has_ticks else ("realtime",):
        change = fit_clock(readings(trace, clock), gap)
        slept = clock in SLEEP_CLOCKS and has_slept(at)
        finding = _judge_clock(at, clock, change, gap, 0 if slept is False else RTC_SECOND_NS)
        if finding is not None:
            yield finding
        elif slept is None and _is_forward(change):
            yield replace(at, files=sleep_files(at)).missing("whether it slept")
        elif gap is not None and (change.step_ns is None or change.inner_step_ns is None):
            yield at.missing(f"enough {clock} clock readings")
        elif change.ppm_after is None and has_ticks:
            yield at.missing(f"the rate of the {clock} clock")
        else:
            said.append(_say_clock(clock, change))
    slept = has_slept(at)
    wrong = find_disagreement(trace.ticks, window.paused_ns, window.resumed_ns, slept is not False)
    if (
        slept is None
        and wrong is None
        and find_disagreement(trace.ticks, window.paused_ns, window.resumed_ns)
    ):
        yield replace(at, files=sleep_files(at)).missing("whether it slept")
    if wrong:
        text, lasts = wrong
        if lasts:
            yield at.failed(text, expected="clocks that agree")
        else:
            yield at.error(
                f"{text} for one tick, and the guest was not silent for so long: the evidence was "
                "altered"
            )
    if said:
        yield at.passed("; ".join(said), said[0])


def _judge_clock(
    at: GuestHop, clock: str, change: ClockChange, gap: Gap | None, gain_ns: int
) -> Finding | None:
    """Return what is wrong with one clock, or nothing.

    :param gain_ns: what it may gain over the blackout.
    """
    if change.went_back is not None:
        old, new = change.went_back
        back = f"{clock} clock went back by {format_ns(old - new)}"
        return at.failed(back, f"{new} after {old}", "never back")
    inner = change.inner_step_ns
    if inner is not None and abs(inner) > CLOCK_STEP_TOLERANCE_NS:
        return at.failed(
            f"{clock} clock was stepped by {_signed(inner)} outside the blackout",
            observed=_signed(inner),
            expected=f"within {format_ns(CLOCK_STEP_TOLERANCE_NS)}",
        )
    step, length_ns = change.step_ns, gap.length_ns if gap else 0
    goes_on = at.context.plan.clock == CONTINUOUS and not at.is_rolled_back
    if step is not None and goes_on and (finding := _judge_continuous(at, clock, step)):
        return finding
    if step is not None and not (
        -length_ns - CLOCK_STEP_TOLERANCE_NS <= step <= gain_ns + CLOCK_STEP_TOLERANCE_NS
    ):
        how = "jumped forward" if step > 0 else "lost more than the blackout"
        return at.failed(
            f"{clock} clock {how}: {_signed(step)} over a blackout of {format_ns(length_ns)}",
            observed=_signed(step),
            expected=f"between {_signed(-length_ns)} and {_signed(gain_ns) if gain_ns else 0}",
        )
    limit, ppm = at.context.plan.budget.clock_ppm, change.ppm_after
    if ppm is not None and abs(ppm) > limit:
        before = "" if change.ppm_before is None else f", {change.ppm_before:+.0f} ppm before"
        return at.failed(
            f"{clock} clock runs wrong by {ppm:+.0f} ppm after the update{before}",
            observed=f"{ppm:+.0f} ppm",
            expected=f"within {limit:g} ppm",
        )
    return None


def _judge_continuous(at: GuestHop, clock: str, step_ns: int) -> Finding | None:
    """Require that a clock went on through the blackout."""
    if abs(step_ns) <= CONTINUOUS_TOLERANCE_NS:
        return None
    watched = at.trace.watched if at.trace else None
    hole_ns = watched.longest_hole_ns if watched else 0
    if abs(step_ns) <= CONTINUOUS_TOLERANCE_NS + hole_ns and hole_ns > CONTINUOUS_TOLERANCE_NS:
        return at.error(
            f"{clock} clock: a step of {_signed(step_ns)} cannot be told from a late look: the "
            f"guest was not looked at for up to {format_ns(hole_ns)}"
        )
    return at.failed(
        f"{clock} clock did not go on: {_signed(step_ns)} over the update",
        observed=_signed(step_ns),
        expected=f"within {format_ns(CONTINUOUS_TOLERANCE_NS)}",
    )


def _is_forward(change: ClockChange) -> bool:
    return change.step_ns is not None and change.step_ns > CLOCK_STEP_TOLERANCE_NS


def _say_clock(clock: str, change: ClockChange) -> str:
    step = "never paused" if change.step_ns is None else f"step {_signed(change.step_ns)}"
    if _is_forward(change):
        step += " (allowed: it slept, and its host's clock comes from an RTC that counts seconds)"
    rate = "unknown" if change.ppm_after is None else f"{change.ppm_after:+.0f} ppm"
    return f"{clock} {step}, rate {rate}"


def _signed(duration_ns: int) -> str:
    return ("-" if duration_ns < 0 else "+") + format_ns(abs(duration_ns))


# --- network


def judge_network(context: Context) -> Iterator[Finding]:
    """Require that every guest answers on the network after the update, in the same boot."""
    for at in context.reached():
        if not at.guest.kind.answers and not at.guest.address:
            yield skipped(f"{at.guest.name}: a user's image without an address")
            continue
        at = at.on(slots.ECHOES)
        window = find_window(at)
        if at.is_unreadable or at.trace is None or not at.trace.echoes:
            yield at.missing("network echoes")
        elif isinstance(window, Finding):
            yield window
        else:
            yield _judge_echoes(at, at.trace.echoes, window)


def _judge_echoes(at: GuestHop, echoes: Sequence[Echo], window: Window) -> Finding:
    answered = [echo for echo in echoes if echo.received_ns is not None]
    boots = {echo.boot for echo in answered}
    if at.guest.kind.payload:
        ticks = {tick.boot for tick in at.trace.ticks} if at.trace else set()
        # a guest that rebooted is guest.liveness's; here one that is none of those that tick
        seen = (boots - {None}) | (ticks if len(ticks) == 1 else set())
        if len(seen) > 1:
            return at.failed(
                "replies come from another boot of the guest",
                observed=", ".join(f"{boot:016x}" for boot in seen if boot is not None),
                expected="one boot",
            )
        if None in boots:
            return at.error("replies without a boot value")
    return judge_asked(at, Asked.by_echoes(echoes), window, "the guest")


# --- storage


def judge_storage(context: Context) -> Iterator[Finding]:
    """Require that all durable records are still on the disk, in order, and that the journal
    grows again.
    """
    for at in context.reached():
        if not at.guest.kind.journal:
            yield skipped(f"{at.guest.name}: a user's image keeps no journal")
            continue
        trace = at.trace
        before = trace.journal_before if trace else None
        after = trace.journal_after if trace else None
        if trace is not None and after is None and at.is_rolled_back:
            # after a roll-back there is no scan; that the journal grows is still seen
            yield _judge_growth(at, trace)
            continue
        scans = (slots.JOURNAL_BEFORE, slots.JOURNAL_AFTER)
        for slot, facts in zip(scans, (before, after), strict=True):
            if facts is None:
                yield at.on(slot).missing(f"the {slot.format} scan")
        earlier = at.context.trace(at.hop - 1, at.guest.name)
        kept = earlier.journal_after if earlier else None
        if before is not None and kept is not None and before.last_seq < kept.last_seq:
            yield at.on(slots.JOURNAL_BEFORE).failed(
                f"record {kept.last_seq} was durable after the hop before, the newest when this hop"
                f" began is {before.last_seq}",
                observed=f"record {before.last_seq}",
                expected=f"at least {kept.last_seq}",
            )
            continue
        if trace is not None and before is not None and after is not None:
            wrong = _judge_journal(at.on(*scans), at.guest.disk_bytes, before, after)
            yield wrong or _judge_growth(at, trace)
    for at in context.reached():
        yield from _judge_own_disks(at)


def _judge_own_disks(at: GuestHop) -> Iterator[Finding]:
    """Judge the journals on passed-through NVMe disks; ``device.*`` judges whether they grow."""
    for device in at.context.plan.devices:
        if device.guest != at.guest.name or device.kind != "nvme" or at.is_rolled_back:
            continue
        trace = at.context.device(at.hop, device.name)
        use = trace.facts.use if trace and trace.facts else None
        disk = replace(at, files=(slots.DEVICE.path(at.hop, device.name),))
        if use is None or use.journal_before is None or use.journal_after is None:
            yield disk.missing(f"the journal on {device.name}")
            continue
        disk = replace(disk, where=f"{at.where}, {device.name}")
        before, after = use.journal_before, use.journal_after
        yield _judge_journal(disk, NAMESPACE_BYTES, before, after) or disk.passed(
            f"nothing durable was lost, {after.last_seq - before.last_seq} records more than "
            "before the update",
            f"newest record {after.last_seq}",
        )


def _judge_journal(
    at: GuestHop, disk_bytes: int, before: JournalFacts, after: JournalFacts
) -> Finding | None:
    if before.records < 1 or before.missing or before.corrupt or before.foreign:
        return at.error("the journal was not whole before the update")
    wrong: str | None = None
    if after.missing:
        wrong = f"{len(after.missing)} records are missing, first {after.missing[0]}"
    elif after.corrupt:
        wrong = f"{after.corrupt} records are corrupt"
    elif after.foreign:
        wrong = f"{after.foreign} records are not this guest's or out of order"
    elif after.last_seq < before.last_seq:
        wrong = f"record {before.last_seq} was durable, the newest now is {after.last_seq}"
    elif after.first_seq > _oldest_kept(disk_bytes, before, after):
        wrong = f"records {before.first_seq} to {after.first_seq - 1} are gone"
    elif after.records != after.last_seq - after.first_seq + 1:
        wrong = f"{after.records} records for {after.first_seq} to {after.last_seq}"
    elif after.boot != before.boot:
        wrong = "the newest record is of another boot of the guest"
    if wrong is None:
        return None
    return at.failed(
        wrong,
        observed=f"records {after.first_seq} to {after.last_seq}",
        expected=f"all of {before.first_seq} to {before.last_seq}, and more",
    )


def _oldest_kept(disk_bytes: int, before: JournalFacts, after: JournalFacts) -> int:
    """Return the highest number that the oldest record may have: the journal is a ring over the
    disk.
    """
    return max(before.first_seq, after.last_seq - disk_bytes // _RECORD_BYTES + 1)


def _judge_growth(at: GuestHop, trace: GuestTrace) -> Finding:
    at = at.on(slots.JOURNAL_SEEN)
    window = find_window(at)
    if isinstance(window, Finding):
        return window
    if at.is_unreadable or not trace.journal:
        return at.missing("the growth of the journal")
    samples = sorted(trace.journal, key=lambda sample: sample.host_ns)
    back = first_regress(sample.seq for sample in samples)
    if back is not None:
        return at.failed(f"the journal went back from record {back[0]} to {back[1]}")
    newest = f"newest record {samples[-1].seq}"
    grown = [each.host_ns for each in journal_changes(samples) if each.host_ns > window.resumed_ns]
    silent_ns = window.watched.ended_ns - max(grown, default=window.resumed_ns)
    limit_ns, hole_ns = at.context.plan.budget.stall_s * 1e9, window.watched.longest_hole_ns
    if silent_ns > limit_ns >= silent_ns - hole_ns:
        return at.error(
            f"no growth of the journal was seen for {format_ns(silent_ns)}, but the guest was not"
            f" looked at for {format_ns(hole_ns)} (control host too busy)"
        )
    if not grown or silent_ns > limit_ns:
        return at.failed(
            f"the journal stopped growing, {format_ns(silent_ns)} before the end of the "
            "observation",
            observed=newest,
            expected="growth until the end of the observation",
        )
    lost = f"nothing durable was lost, {len(grown)} times grown after the resume"
    return at.passed(lost, newest)


# --- blackout


def blackout_ns(at: GuestHop) -> int | None:
    """Return how long a guest was out: the longer of pause to resume and its own silence, as its
    kind of guest shows it.
    """
    paused, resumed = at.paused_ns, at.resumed_ns
    if paused is None or resumed is None:
        return None
    gap, trace = None, at.trace
    if trace is not None and at.guest.kind.alive is Watch.ECHOES:
        gap = network_gap(trace.echoes, paused, resumed)
    elif trace is not None:
        gap = clock_gap(trace, paused, resumed)
    return max(resumed - paused, gap.length_ns if gap else 0)


_NO_CLOCK = unless_any(lambda kind: kind.clock, "no guest can be asked for its clock")
_SILENT = unless_any(lambda kind: kind.answers, "no guest answers on the network")
_NO_JOURNAL = unless_any(
    lambda kind: kind.journal, "no guest runs the shipped payload, which keeps the journal"
)

CHECKS = (
    CheckRow(id="guest.clock", judge=judge_clock, needs=Capability.CLOCK, skip=_NO_CLOCK),
    CheckRow(id="guest.network", judge=judge_network, needs=Capability.WIRE, skip=_SILENT),
    CheckRow(id="guest.storage", judge=judge_storage, needs=Capability.PROCESS, skip=_NO_JOURNAL),
)
