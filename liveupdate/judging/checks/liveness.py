# SPDX-License-Identifier: Apache-2.0
"""guest.liveness: the guest itself makes progress over time. A statement of its VMM proves nothing.

Runs before the other guest checks and notes in ``context.dead`` which guests it found dead, so that
their silence elsewhere reads as a consequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from liveupdate.core.units import format_ns
from liveupdate.judging.check import CheckRow
from liveupdate.judging.compare import (
    Gap,
    first_regress,
    longest_silence,
    tick_changes,
    unanswered_run,
    vcpu_gap,
)
from liveupdate.judging.context import (
    GUEST_KINDS,
    Context,
    Finding,
    error_finding,
    failed,
    passed,
    say_incident,
    skipped,
)
from liveupdate.model import slots
from liveupdate.model.evidence import GuestTrace, Watched
from liveupdate.model.guest_kinds import Watch
from liveupdate.model.scenario import GuestSpec
from liveupdate.model.verdict import Outcome

#: part of the planned observation that must really have been watched
_WATCHED_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The pause and what was watched around it; ``paused_ns`` None: the guest was never paused."""

    paused_ns: int | None
    resumed_ns: int
    watched: Watched


def find_window(context: Context, hop: int, guest: str) -> Window | Finding:
    """Find when a guest was paused, resumed and watched, or say why that is not known."""
    trace = context.trace(hop, guest)
    path = slots.WATCHED.path(hop, guest)
    if trace is None or trace.watched is None:
        return context.missing("when the guest was watched", hop, guest, (path,))
    facts = context.hop(hop)
    paused = facts.paused_ns.get(guest) if facts else None
    resumed = facts.resumed_ns.get(guest) if facts else None
    if resumed is None and context.rolled_back(hop):
        # The outgoing agent resumes its guests without an event: the first sign of life counts.
        gap = vcpu_gap(trace.ticks, paused, None)
        resumed = gap.ended_ns if gap else (paused or trace.watched.began_ns)
        return Window(paused_ns=paused, resumed_ns=resumed, watched=trace.watched)
    if paused is None or resumed is None:
        what = "the moment of the pause" if paused is None else "the moment of the resume"
        return context.missing(what, hop, guest, (slots.MARKS.path(hop),))
    return Window(paused_ns=paused, resumed_ns=resumed, watched=trace.watched)


def judge_liveness(context: Context) -> list[Finding]:
    """Require that every guest is in the same boot as before and makes progress until the end."""
    findings: list[Finding] = []
    for hop, _facts, guest in context.guests():
        finding = _judge_guest(context, hop.number, guest)
        if finding.status is Outcome.FAIL:
            context.dead[(hop.number, guest.name)] = finding.reason
        findings.append(finding)
    return findings


def _judge_guest(context: Context, hop: int, guest: GuestSpec) -> Finding:
    where = f"hop {hop}, {guest.name}"
    given_up = context.rolled_back_hop
    if given_up is not None and hop > given_up:
        return skipped(f"{where}: not reached, rolled back before")
    for incident in context.incidents(GUEST_KINDS, hop):
        if incident.guest in ("", guest.name):
            return failed(
                f"{where}: the guest did not survive: {say_incident(incident)}",
                observed=incident.kind,
                expected="running",
            )
    if (earlier := context.loss(hop - 1, guest.name)) is not None:
        return skipped(f"{where}: already lost ({earlier})")
    facts = context.hop(hop)
    loss = context.loss(hop, guest.name)
    if loss is not None and (facts is None or guest.name not in facts.resumed_ns):
        return failed(f"{where}: the guest did not come back ({loss})", expected="resumed")
    trace = context.trace(hop, guest.name)
    if trace is None:
        return context.missing("the guest's liveness", hop, guest.name)
    if trace.vmm_status is None and not context.rolled_back(hop):
        path = slots.VMM.path(hop, guest.name)
        return context.missing("the VMM's status", hop, guest.name, (path,))
    if trace.vmm_status not in ("running", None):
        return failed(
            f"{where}: the VMM says '{trace.vmm_status}'",
            observed=trace.vmm_status,
            expected="running",
        )
    window = find_window(context, hop, guest.name)
    if isinstance(window, Finding):
        return window
    length_ns = window.watched.ended_ns - window.resumed_ns
    if length_ns < context.plan.observe.after_s * _WATCHED_SHARE * 1e9:
        return error_finding(
            f"{where}: watched for {format_ns(max(length_ns, 0))} after the resume, planned were "
            f"{context.plan.observe.after_s:g} s"
        )
    alive = guest.kind.alive
    if alive is None:
        return error_finding(f"{where}: liveness '{guest.liveness}' is not known to the judge")
    return _WATCHES[alive](context, hop, guest, trace, window)


def _judge_ticks(
    context: Context, hop: int, guest: GuestSpec, trace: GuestTrace, window: Window
) -> Finding:
    where = f"hop {hop}, {guest.name}"
    path = slots.TICKS.path(hop, guest.name)
    if path in context.evidence.unreadable or not trace.ticks:
        return context.missing("ticks", hop, guest.name, (path,))
    if (rebooted := _judge_boot(context, hop, guest, trace, path)) is not None:
        return rebooted
    ticks = sorted(trace.ticks, key=lambda tick: tick.host_ns)
    back = first_regress(tick.seq for tick in ticks)
    if back is not None:
        return failed(
            f"{where}: the guest went back in time: tick {back[1]} after tick {back[0]}",
            observed=str(back[1]),
            expected=f"more than {back[0]}",
            evidence=(path,),
        )
    if window.paused_ns is not None and ticks[0].host_ns >= window.paused_ns:
        return error_finding(f"{where}: no tick was seen before the pause", evidence=(path,))
    changes = [tick.host_ns for tick in tick_changes(ticks)]
    after = [time for time in changes if time > window.resumed_ns]
    ended = window.watched.ended_ns
    if not after:
        return failed(
            f"{where}: the VMM says '{trace.vmm_status}', but ticks stand still: none in "
            f"{format_ns(ended - window.resumed_ns)} after the resume",
            observed="0 ticks after the resume",
            expected="ticks until the end of the observation",
            evidence=(path,),
        )
    gap = vcpu_gap(ticks, window.paused_ns, window.resumed_ns)
    silences = [longest_silence(after, window.resumed_ns, ended)]
    if gap is not None and gap.began_ns > window.watched.began_ns:
        silences.append(longest_silence(changes, window.watched.began_ns, gap.began_ns))
    worst = max(silences, key=lambda silence: silence.length_ns)
    return _judge_stall(context, where, trace, window, worst, path) or passed(
        f"{where}: same boot, {len(after)} ticks seen in {format_ns(ended - window.resumed_ns)} "
        f"after the resume, longest silence {format_ns(worst.length_ns)}",
        observed=f"longest silence {format_ns(worst.length_ns)}",
        evidence=(path,),
    )


def _judge_boot(
    context: Context, hop: int, guest: GuestSpec, trace: GuestTrace, path: str
) -> Finding | None:
    """Compare the guest's random boot value over this hop and with the hop before."""
    boots = list(dict.fromkeys(tick.boot for tick in trace.ticks))
    earlier = context.trace(hop - 1, guest.name)
    if earlier is not None and earlier.ticks and earlier.ticks[-1].boot != boots[0]:
        boots.insert(0, earlier.ticks[-1].boot)
    if len(boots) == 1:
        return None
    return failed(
        f"hop {hop}, {guest.name}: the guest rebooted (its boot value changed)",
        observed=" → ".join(f"{boot:016x}" for boot in boots),
        expected=f"{boots[0]:016x}",
        evidence=(path,),
    )


def _judge_stall(
    context: Context, where: str, trace: GuestTrace, window: Window, worst: Gap, path: str
) -> Finding | None:
    limit_ns = context.plan.budget.stall_s * 1e9
    if worst.length_ns <= limit_ns:
        return None
    hole_ns = window.watched.longest_hole_ns
    if worst.length_ns - hole_ns <= limit_ns:
        return error_finding(
            f"{where}: no tick seen for {format_ns(worst.length_ns)}, but none was looked for in "
            f"{format_ns(hole_ns)} (control host too busy)",
            evidence=(path,),
        )
    last = " and to the end" if worst.ended_ns >= window.watched.ended_ns else ""
    return failed(
        f"{where}: ticks stood still for {format_ns(worst.length_ns)}{last} although the VMM says "
        f"'{trace.vmm_status}'",
        observed=format_ns(worst.length_ns),
        expected=f"at most {context.plan.budget.stall_s:g} s",
        evidence=(path,),
    )


def _judge_pings(
    context: Context, hop: int, guest: GuestSpec, trace: GuestTrace, window: Window
) -> Finding:
    """Judge a user's image that has a QEMU guest agent."""
    where = f"hop {hop}, {guest.name}"
    path = slots.PINGS.path(hop, guest.name)
    pings = sorted(trace.agent_pings, key=lambda ping: ping.host_ns)
    after = [ping for ping in pings if ping.host_ns > window.resumed_ns]
    if path in context.evidence.unreadable or not after:
        return context.missing("guest agent answers after the resume", hop, guest.name, (path,))
    if not any(ping.realtime_ns is not None for ping in pings if ping not in after) and (
        window.paused_ns is not None
    ):
        return error_finding(f"{where}: the guest agent never answered before the pause")
    answered = [ping for ping in after if ping.realtime_ns is not None]
    # one late answer proves nothing; two in a row at the end mean that the guest is gone
    if not answered or all(ping.realtime_ns is None for ping in after[-2:]):
        return failed(
            f"{where}: the VMM says '{trace.vmm_status}', but the guest agent does not answer",
            observed=f"{len(answered)} of {len(after)} answered",
            expected="answers until the end of the observation",
            evidence=(path,),
        )
    return passed(
        f"{where}: guest agent answered {len(answered)} of {len(after)} times after the resume "
        "(a reboot of a user's image cannot be told this way)",
        evidence=(path,),
    )


def _judge_answers(
    context: Context, hop: int, guest: GuestSpec, trace: GuestTrace, window: Window
) -> Finding:
    """Judge a user's image that is only seen to answer on the network."""
    where = f"hop {hop}, {guest.name}"
    path = slots.ECHOES.path(hop, guest.name)
    after = [echo for echo in trace.echoes if echo.sent_ns >= window.resumed_ns]
    if path in context.evidence.unreadable or not after:
        return context.missing("network answers after the resume", hop, guest.name, (path,))
    answered = [echo for echo in after if echo.received_ns is not None]
    run = unanswered_run(after, window.resumed_ns)
    limit_ns = context.plan.budget.stall_s * 1e9
    if not answered or (run is not None and run.length_ns > limit_ns):
        return failed(
            f"{where}: the VMM says '{trace.vmm_status}', but the guest answered only "
            f"{len(answered)} of {len(after)} requests after the resume",
            observed=f"silent for {format_ns(run.length_ns if run else 0)}",
            expected=f"at most {context.plan.budget.stall_s:g} s",
            evidence=(path,),
        )
    return passed(
        f"{where}: answered {len(answered)} of {len(after)} requests after the resume "
        "(a reboot of a user's image cannot be told this way)",
        evidence=(path,),
    )


_WATCHES: Mapping[Watch, Callable[[Context, int, GuestSpec, GuestTrace, Window], Finding]] = (
    MappingProxyType(
        {Watch.TICKS: _judge_ticks, Watch.PINGS: _judge_pings, Watch.ECHOES: _judge_answers}
    )
)


CHECKS = (CheckRow(id="guest.liveness", judge=judge_liveness, first=True),)
