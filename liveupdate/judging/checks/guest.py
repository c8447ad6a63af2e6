# SPDX-License-Identifier: Apache-2.0
"""guest.clock, guest.network, guest.storage and budget.blackout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from liveupdate.core.units import format_ns
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.checks.liveness import Window, find_window
from liveupdate.judging.clockfit import ClockChange, Reading, fit_clock
from liveupdate.judging.compare import (
    Gap,
    first_regress,
    gap_over,
    journal_changes,
    tick_changes,
    unanswered_run,
    vcpu_gap,
)
from liveupdate.judging.context import Context, Finding, error_finding, failed, passed, skipped
from liveupdate.judging.sleep import RTC_SECOND_NS, SLEEP_CLOCKS, has_slept, sleep_files
from liveupdate.model import slots
from liveupdate.model.device_models import NAMESPACE_BYTES
from liveupdate.model.evidence import Echo, GuestTrace
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.model.guest_kinds import Watch
from liveupdate.model.scenario import GuestSpec
from liveupdate.model.targets import Capability

#: a clock may be off by this much at a step before it counts as one: a reading taken late by a
#: busy control host looks like a small step
CLOCK_STEP_TOLERANCE_NS = 100_000_000
#: bytes of one journal record
_RECORD_BYTES = 512
_TICK_CLOCKS = ("monotonic", "boottime", "realtime")


def reached(context: Context) -> Iterator[tuple[int, GuestSpec]]:
    """Yield the guests of each hop that was reached before the update was given up."""
    for hop, _facts, guest in context.guests():
        given_up = context.rolled_back_hop
        if given_up is None or hop.number <= given_up:
            yield hop.number, guest


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


def judge_clock(context: Context) -> list[Finding]:
    """Require that no guest clock went back, jumped forward, lost more than the blackout or runs at
    a wrong rate.

    Clocks that count sleep may gain the second of an RTC over the blackout of a guest that slept.
    """
    findings: list[Finding] = []
    for hop, guest in reached(context):
        clock = guest.kind.clock
        if clock is None:
            findings.append(
                skipped(f"{guest.name}: the clock of a user's image is not seen on the network")
            )
            continue
        readings = slots.TICKS if clock is Watch.TICKS else slots.PINGS
        path = readings.path(hop, guest.name)
        trace = context.trace(hop, guest.name)
        window = find_window(context, hop, guest.name)
        if path in context.evidence.unreadable or trace is None:
            findings.append(context.missing("clock readings", hop, guest.name, (path,)))
        elif isinstance(window, Finding):
            findings.append(window)
        elif len({tick.boot for tick in trace.ticks}) > 1:
            # the clocks of another boot say nothing; guest.liveness says FAIL
            findings.append(context.missing("clock readings of one boot", hop, guest.name))
        else:
            findings += _judge_clocks(context, hop, guest, trace, window)
    return findings


def _judge_clocks(
    context: Context, hop: int, guest: GuestSpec, trace: GuestTrace, window: Window
) -> list[Finding]:
    path = (slots.TICKS if trace.ticks else slots.PINGS).path(hop, guest.name)
    gap = clock_gap(trace, window.paused_ns, window.resumed_ns)
    if gap is None and window.paused_ns is not None:
        return [context.missing("clock readings on both sides of the update", hop, guest.name)]
    findings: list[Finding] = []
    said: list[str] = []
    where = f"hop {hop}, {guest.name}"
    clocks = _TICK_CLOCKS if guest.kind.clock is Watch.TICKS else ("realtime",)
    for clock in clocks:
        change = fit_clock(readings(trace, clock), gap)
        slept = clock in SLEEP_CLOCKS and has_slept(context, hop, guest.name)
        gain_ns = 0 if slept is False else RTC_SECOND_NS
        finding = _judge_clock(context, f"{where}: {clock} clock", change, gap, path, gain_ns)
        if finding is not None:
            findings.append(finding)
        elif slept is None and _is_forward(change):
            paths = sleep_files(context, hop, guest.name)
            findings.append(context.missing("whether it slept", hop, guest.name, paths))
        elif gap is not None and (change.step_ns is None or change.inner_step_ns is None):
            findings.append(context.missing(f"enough {clock} clock readings", hop, guest.name))
        elif change.ppm_after is None and guest.kind.clock is Watch.TICKS:
            findings.append(context.missing(f"the rate of the {clock} clock", hop, guest.name))
        else:
            said.append(_say_clock(clock, change))
    if said:
        findings.append(passed(f"{where}: {'; '.join(said)}", said[0], (path,)))
    return findings


def _judge_clock(
    context: Context, where: str, change: ClockChange, gap: Gap | None, path: str, gain_ns: int
) -> Finding | None:
    """Return what is wrong with one clock, or nothing.

    :param gain_ns: what it may gain over the blackout.
    """
    if change.went_back is not None:
        old, new = change.went_back
        return failed(
            f"{where} went back by {format_ns(old - new)}",
            observed=f"{new} after {old}",
            expected="never back",
            evidence=(path,),
        )
    inner = change.inner_step_ns
    if inner is not None and abs(inner) > CLOCK_STEP_TOLERANCE_NS:
        return failed(
            f"{where} was stepped by {_signed(inner)} outside the blackout",
            observed=_signed(inner),
            expected=f"within {format_ns(CLOCK_STEP_TOLERANCE_NS)}",
            evidence=(path,),
        )
    step, length_ns = change.step_ns, gap.length_ns if gap else 0
    if step is not None and not (
        -length_ns - CLOCK_STEP_TOLERANCE_NS <= step <= gain_ns + CLOCK_STEP_TOLERANCE_NS
    ):
        how = "jumped forward" if step > 0 else "lost more than the blackout"
        return failed(
            f"{where} {how}: {_signed(step)} over a blackout of {format_ns(length_ns)}",
            observed=_signed(step),
            expected=f"between {_signed(-length_ns)} and {_signed(gain_ns) if gain_ns else 0}",
            evidence=(path,),
        )
    limit = context.plan.budget.clock_ppm
    if change.ppm_after is not None and abs(change.ppm_after) > limit:
        before = "" if change.ppm_before is None else f", {change.ppm_before:+.0f} ppm before"
        return failed(
            f"{where} runs wrong by {change.ppm_after:+.0f} ppm after the update{before}",
            observed=f"{change.ppm_after:+.0f} ppm",
            expected=f"within {limit:g} ppm",
            evidence=(path,),
        )
    return None


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


def judge_network(context: Context) -> list[Finding]:
    """Require that every guest answers on the network after the update, in the same boot."""
    findings: list[Finding] = []
    for hop, guest in reached(context):
        if not guest.kind.answers and not guest.address:
            findings.append(skipped(f"{guest.name}: a user's image without an address"))
            continue
        path = slots.ECHOES.path(hop, guest.name)
        trace = context.trace(hop, guest.name)
        window = find_window(context, hop, guest.name)
        if path in context.evidence.unreadable or trace is None or not trace.echoes:
            findings.append(context.missing("network echoes", hop, guest.name, (path,)))
        elif isinstance(window, Finding):
            findings.append(window)
        else:
            findings.append(_judge_echoes(context, hop, guest, trace.echoes, window))
    return findings


def _judge_echoes(
    context: Context, hop: int, guest: GuestSpec, echoes: Sequence[Echo], window: Window
) -> Finding:
    where = f"hop {hop}, {guest.name}"
    path = slots.ECHOES.path(hop, guest.name)
    answered = [echo for echo in echoes if echo.received_ns is not None]
    boots = {echo.boot for echo in answered}
    if guest.kind.payload:
        if len(boots - {None}) > 1:
            return failed(
                f"{where}: replies come from another boot of the guest",
                observed=", ".join(f"{boot:016x}" for boot in boots if boot is not None),
                expected="one boot",
                evidence=(path,),
            )
        if None in boots:
            return error_finding(f"{where}: replies without a boot value", evidence=(path,))
    if window.paused_ns is not None and not any(
        echo.sent_ns < window.paused_ns for echo in answered
    ):
        return error_finding(f"{where}: no echo was answered before the update", evidence=(path,))
    after = [echo for echo in echoes if echo.sent_ns >= window.resumed_ns]
    limit_ns = context.plan.budget.stall_s * 1e9
    if not after or max(echo.sent_ns for echo in after) < window.watched.ended_ns - limit_ns:
        return context.missing("echoes until the end of the observation", hop, guest.name)
    replies = [echo for echo in after if echo.received_ns is not None]
    run = unanswered_run(after, window.resumed_ns)
    silent_ns = run.length_ns if run else 0
    if not replies or silent_ns > limit_ns:
        return failed(
            f"{where}: {len(replies)} of {len(after)} echoes answered after the resume, silent "
            f"for {format_ns(silent_ns)}",
            observed=f"silent for {format_ns(silent_ns)}",
            expected=f"at most {context.plan.budget.stall_s:g} s",
            evidence=(path,),
        )
    return passed(
        f"{where}: {len(replies)} of {len(after)} echoes answered after the resume",
        observed=f"{len(replies)} of {len(after)} answered",
        evidence=(path,),
    )


# --- storage


def judge_storage(context: Context) -> list[Finding]:
    """Require that all durable records are still on the disk, in order, and that the journal
    grows again.
    """
    findings: list[Finding] = []
    for hop, guest in reached(context):
        if not guest.kind.journal:
            findings.append(skipped(f"{guest.name}: a user's image keeps no journal"))
            continue
        trace = context.trace(hop, guest.name)
        before = trace.journal_before if trace else None
        after = trace.journal_after if trace else None
        if trace is not None and after is None and context.rolled_back(hop):
            # after a roll-back there is no scan; that the journal grows is still seen
            findings.append(_judge_growth(context, hop, guest, trace))
            continue
        scans = (slots.JOURNAL_BEFORE, slots.JOURNAL_AFTER)
        files = tuple(slot.path(hop, guest.name) for slot in scans)
        for slot, path, facts in zip(scans, files, (before, after), strict=True):
            if facts is None:
                findings.append(
                    context.missing(f"the {slot.format} scan", hop, guest.name, (path,))
                )
        if trace is None or before is None or after is None:
            continue
        where = f"hop {hop}, {guest.name}"
        findings.append(
            _judge_journal(where, guest.disk_bytes, before, after, files)
            or _judge_growth(context, hop, guest, trace)
        )
    findings += _judge_own_disks(context)
    return findings


def _judge_own_disks(context: Context) -> Iterator[Finding]:
    """Judge the journals on passed-through NVMe disks; ``device.*`` judges whether they grow."""
    for hop, guest in reached(context):
        for device in context.plan.devices:
            if device.guest != guest.name or device.kind != "nvme" or context.rolled_back(hop):
                continue
            facts = context.hop(hop)
            trace = facts.devices.get(device.name) if facts is not None else None
            use = trace.facts.use if trace is not None and trace.facts is not None else None
            path = slots.DEVICE.path(hop, device.name)
            if use is None or use.journal_before is None or use.journal_after is None:
                what = f"the journal on {device.name}"
                yield context.missing(what, hop, guest.name, (path,))
                continue
            where = f"hop {hop}, {guest.name}, {device.name}"
            before, after = use.journal_before, use.journal_after
            wrong = _judge_journal(where, NAMESPACE_BYTES, before, after, (path,))
            yield wrong or passed(
                f"{where}: nothing durable was lost, {after.last_seq - before.last_seq} records"
                " more than before the update",
                observed=f"newest record {after.last_seq}",
                evidence=(path,),
            )


def _judge_journal(
    where: str,
    disk_bytes: int,
    before: JournalFacts,
    after: JournalFacts,
    files: tuple[str, ...],
) -> Finding | None:
    if before.records < 1 or before.missing or before.corrupt or before.foreign:
        return error_finding(
            f"{where}: the journal was not whole before the update", evidence=files
        )
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
    return failed(
        f"{where}: {wrong}",
        observed=f"records {after.first_seq} to {after.last_seq}",
        expected=f"all of {before.first_seq} to {before.last_seq}, and more",
        evidence=files,
    )


def _oldest_kept(disk_bytes: int, before: JournalFacts, after: JournalFacts) -> int:
    """Return the highest number that the oldest record may have: the journal is a ring over the
    disk.
    """
    return max(before.first_seq, after.last_seq - disk_bytes // _RECORD_BYTES + 1)


def _judge_growth(context: Context, hop: int, guest: GuestSpec, trace: GuestTrace) -> Finding:
    where = f"hop {hop}, {guest.name}"
    path = slots.JOURNAL_SEEN.path(hop, guest.name)
    window = find_window(context, hop, guest.name)
    if isinstance(window, Finding):
        return window
    if path in context.evidence.unreadable or not trace.journal:
        return context.missing("the growth of the journal", hop, guest.name, (path,))
    samples = sorted(trace.journal, key=lambda sample: sample.host_ns)
    back = first_regress(sample.seq for sample in samples)
    if back is not None:
        return failed(
            f"{where}: the journal went back from record {back[0]} to {back[1]}", evidence=(path,)
        )
    grown = [each.host_ns for each in journal_changes(samples) if each.host_ns > window.resumed_ns]
    silent_ns = window.watched.ended_ns - max(grown, default=window.resumed_ns)
    if not grown or silent_ns > context.plan.budget.stall_s * 1e9:
        return failed(
            f"{where}: the journal stopped growing, {format_ns(silent_ns)} before the end of the "
            "observation",
            observed=f"newest record {samples[-1].seq}",
            expected="growth until the end of the observation",
            evidence=(path,),
        )
    return passed(
        f"{where}: nothing durable was lost, {len(grown)} times grown after the resume",
        observed=f"newest record {samples[-1].seq}",
        evidence=(path,),
    )


# --- blackout


def blackout_ns(context: Context, hop: int, guest: str) -> int | None:
    """Return how long a guest was out: the longer of pause to resume and its own silence."""
    facts = context.hop(hop)
    trace = context.trace(hop, guest)
    paused = facts.paused_ns.get(guest) if facts else None
    resumed = facts.resumed_ns.get(guest) if facts else None
    if paused is None or resumed is None:
        return None
    gap = vcpu_gap(trace.ticks, paused, resumed) if trace else None
    return max(resumed - paused, gap.length_ns if gap else 0)


def _no_clock(asked: Asked) -> str | None:
    unseen = asked.no_guest(lambda kind: kind.clock)
    return "no guest can be asked for its clock" if unseen else None


def _no_answers(asked: Asked) -> str | None:
    silent = asked.no_guest(lambda kind: kind.answers)
    return "no guest answers on the network" if silent else None


def _no_journal(asked: Asked) -> str | None:
    if asked.no_guest(lambda kind: kind.journal):
        return "no guest runs the shipped payload, which keeps the journal"
    return None


CHECKS = (
    CheckRow(id="guest.clock", judge=judge_clock, needs=Capability.CLOCK, skip=_no_clock),
    CheckRow(id="guest.network", judge=judge_network, needs=Capability.WIRE, skip=_no_answers),
    CheckRow(id="guest.storage", judge=judge_storage, needs=Capability.PROCESS, skip=_no_journal),
)
