# SPDX-License-Identifier: Apache-2.0
"""guest.liveness: the guest itself makes progress over time. A statement of its VMM proves nothing.

Runs before the other guest checks and notes in ``context.dead`` which guests it found dead, so that
their silence elsewhere reads as a consequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from liveupdate.core.units import format_ns
from liveupdate.judging.check import CheckRow
from liveupdate.judging.compare import (
    Asked,
    Gap,
    first_regress,
    longest_silence,
    tick_changes,
    vcpu_gap,
)
from liveupdate.judging.context import GUEST_KINDS, Context, Finding, GuestHop, say_incident
from liveupdate.model import slots
from liveupdate.model.evidence import GuestTrace, Watched
from liveupdate.model.guest_kinds import Watch
from liveupdate.model.slots import Slot
from liveupdate.model.verdict import Outcome

#: part of the planned observation that must really have been watched
_WATCHED_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The pause and what was watched around it; ``paused_ns`` None: the guest was never paused."""

    paused_ns: int | None
    resumed_ns: int
    watched: Watched


def find_window(at: GuestHop) -> Window | Finding:
    """Find when a guest was paused, resumed and watched, or say why that is not known."""
    trace, paused, resumed = at.trace, at.paused_ns, at.resumed_ns
    if trace is None or trace.watched is None:
        return at.on(slots.WATCHED).missing("when the guest was watched")
    if resumed is None and at.is_rolled_back:
        # The outgoing agent resumes its guests without an event: the first sign of life counts.
        gap = vcpu_gap(trace.ticks, paused, None)
        resumed = gap.ended_ns if gap else (paused or trace.watched.began_ns)
    elif paused is None or resumed is None:
        what = "the moment of the pause" if paused is None else "the moment of the resume"
        return at.on(slots.MARKS).missing(what)
    return Window(paused_ns=paused, resumed_ns=resumed, watched=trace.watched)


def judge_liveness(context: Context) -> Iterator[Finding]:
    """Require that every guest is in the same boot as before and makes progress until the end."""
    for at in context.guests():
        finding = _judge_guest(at)
        if finding.status is Outcome.FAIL:
            context.dead[(at.hop, at.guest.name)] = finding.reason
        yield finding


def _judge_guest(at: GuestHop) -> Finding:
    context, name = at.context, at.guest.name
    given_up = context.rolled_back_hop
    if given_up is not None and at.hop > given_up:
        return at.skipped("not reached, rolled back before")
    for incident in context.incidents(GUEST_KINDS, at.hop):
        if incident.guest in ("", name):
            return at.failed(
                f"the guest did not survive: {say_incident(incident)}", incident.kind, "running"
            )
    if (earlier := context.loss(at.hop - 1, name)) is not None:
        return at.skipped(f"already lost ({earlier})")
    loss = context.loss(at.hop, name)
    if loss is not None and at.resumed_ns is None:
        return at.failed(f"the guest did not come back ({loss})", expected="resumed")
    trace = at.trace
    if trace is None:
        return at.missing("the guest's liveness")
    if trace.vmm_status is None and not at.is_rolled_back:
        return at.on(slots.VMM).missing("the VMM's status")
    if trace.vmm_status not in ("running", None):
        return at.failed(f"the VMM says '{trace.vmm_status}'", trace.vmm_status, "running")
    window = find_window(at)
    if isinstance(window, Finding):
        return window
    length_ns = window.watched.ended_ns - window.resumed_ns
    if length_ns < context.plan.observe.after_s * _WATCHED_SHARE * 1e9:
        return at.error(
            f"watched for {format_ns(max(length_ns, 0))} after the resume, planned were "
            f"{context.plan.observe.after_s:g} s"
        )
    alive = at.guest.kind.alive
    if alive is None:
        return at.error(f"liveness '{at.guest.liveness}' is not known to the judge")
    slot, judge = _WATCHES[alive]
    return judge(at.on(slot), trace, window)


def _judge_ticks(at: GuestHop, trace: GuestTrace, window: Window) -> Finding:
    if at.is_unreadable or not trace.ticks:
        return at.missing("ticks")
    if (rebooted := _judge_boot(at, trace)) is not None:
        return rebooted
    ticks = sorted(trace.ticks, key=lambda tick: tick.host_ns)
    back = first_regress(tick.seq for tick in ticks)
    if back is not None:
        return at.failed(
            f"the guest went back in time: tick {back[1]} after tick {back[0]}",
            observed=str(back[1]),
            expected=f"more than {back[0]}",
        )
    if window.paused_ns is not None and ticks[0].host_ns >= window.paused_ns:
        return at.error("no tick was seen before the pause")
    changes = [tick.host_ns for tick in tick_changes(ticks)]
    if window.paused_ns is not None:
        before = longest_silence(changes, window.watched.began_ns, window.paused_ns)
        if before.length_ns > at.context.plan.budget.stall_s * 1e9:
            return at.error(f"no tick was seen for {format_ns(before.length_ns)} before the pause")
    after = [time for time in changes if time > window.resumed_ns]
    ended = window.watched.ended_ns
    if not after:
        return at.failed(
            f"the VMM says '{trace.vmm_status}', but ticks stand still: none in "
            f"{format_ns(ended - window.resumed_ns)} after the resume",
            observed="0 ticks after the resume",
            expected="ticks until the end of the observation",
        )
    gap = vcpu_gap(ticks, window.paused_ns, window.resumed_ns)
    silences = [longest_silence(after, window.resumed_ns, ended)]
    if gap is not None and gap.began_ns > window.watched.began_ns:
        silences.append(longest_silence(changes, window.watched.began_ns, gap.began_ns))
    worst = max(silences, key=lambda silence: silence.length_ns)
    silence = f"longest silence {format_ns(worst.length_ns)}"
    return _judge_stall(at, trace, window, worst) or at.passed(
        f"same boot, {len(after)} ticks seen in {format_ns(ended - window.resumed_ns)} "
        f"after the resume, {silence}",
        silence,
    )


def _judge_boot(at: GuestHop, trace: GuestTrace) -> Finding | None:
    """Compare the guest's random boot value over this hop and with the hop before."""
    boots = list(dict.fromkeys(tick.boot for tick in trace.ticks))
    earlier = at.context.trace(at.hop - 1, at.guest.name)
    if earlier is not None and earlier.ticks and earlier.ticks[-1].boot != boots[0]:
        boots.insert(0, earlier.ticks[-1].boot)
    if len(boots) == 1:
        return None
    return at.failed(
        "the guest rebooted (its boot value changed)",
        observed=" → ".join(f"{boot:016x}" for boot in boots),
        expected=f"{boots[0]:016x}",
    )


def _judge_stall(at: GuestHop, trace: GuestTrace, window: Window, worst: Gap) -> Finding | None:
    limit_s = at.context.plan.budget.stall_s
    if worst.length_ns <= limit_s * 1e9:
        return None
    length = format_ns(worst.length_ns)
    hole_ns = window.watched.longest_hole_ns
    if worst.length_ns - hole_ns <= limit_s * 1e9:
        return at.error(
            f"no tick seen for {length}, but none was looked for in {format_ns(hole_ns)} "
            "(control host too busy)"
        )
    last = " and to the end" if worst.ended_ns >= window.watched.ended_ns else ""
    return at.failed(
        f"ticks stood still for {length}{last} although the VMM says '{trace.vmm_status}'",
        observed=length,
        expected=f"at most {limit_s:g} s",
    )


def judge_asked(at: GuestHop, asked: Asked, window: Window, what: str) -> Finding:
    """Judge a guest by its answers: no silence before the pause or after the resume is longer
    than the budget.

    A silence in which the guest was not asked for so long says nothing of it, and is ERROR; so is
    one before the pause, where nothing was lost yet.

    :param what: what answers, for the reasons.
    """
    limit_s, watched = at.context.plan.budget.stall_s, window.watched
    limit_ns = round(limit_s * 1e9)
    began, ended = window.resumed_ns, watched.ended_ns
    if window.paused_ns is not None:
        before = asked.silence(watched.began_ns, window.paused_ns).length_ns
        if not any(time < window.paused_ns for time in asked.answers_ns):
            return at.error(f"{what} never answered before the pause")
        if before > limit_ns:
            return at.error(
                f"{what} was silent for {format_ns(before)} before the pause, at most {limit_s:g} s"
                " is allowed (budget.stall): nothing is known to lose"
            )
    questions = [each for each, _ in asked.spans_ns if began <= each <= ended]
    if at.is_unreadable or not questions:
        return at.missing(f"questions to the guest ({what}) after the resume")
    answers = [time for time in asked.answers_ns if began < time <= ended]
    worst = asked.silence(began, ended)
    hole_ns = asked.hole_ns(worst.began_ns, worst.ended_ns)
    rate = len(questions) * 1e9 / max(1, ended - began)
    said = (
        f"{what}: {len(answers)} answers and {len(questions)} questions after the resume, silent"
        f" for at most {format_ns(worst.length_ns)} (asked {rate:.1f} times a second, not for at"
        f" most {format_ns(asked.hole_ns(began, ended))})"
    )
    if worst.length_ns <= limit_ns:
        return at.passed(said, f"{len(answers)} answers")
    if worst.length_ns - hole_ns <= limit_ns:
        return at.error(
            f"{said}: the guest was not asked for {format_ns(hole_ns)} (control host too busy)"
        )
    vmm = at.trace.vmm_status if at.trace else None
    return at.failed(
        f"the VMM says '{vmm}', but {said}",
        observed=f"silent for {format_ns(worst.length_ns)}",
        expected=f"at most {limit_s:g} s",
    )


def _judge_pings(at: GuestHop, trace: GuestTrace, window: Window) -> Finding:
    """Judge a user's image that has a QEMU guest agent."""
    return _say_limit(judge_asked(at, Asked.by_pings(trace.agent_pings), window, "guest agent"))


def _judge_answers(at: GuestHop, trace: GuestTrace, window: Window) -> Finding:
    """Judge a user's image that is only seen to answer on the network."""
    return _say_limit(judge_asked(at, Asked.by_echoes(trace.echoes), window, "network"))


def _say_limit(finding: Finding) -> Finding:
    """Say what a PASS by answers alone does not show."""
    if finding.status is not Outcome.PASS:
        return finding
    more = "; a reboot of a user's image cannot be told this way"
    return replace(finding, reason=finding.reason + more)


_Judge = Callable[[GuestHop, GuestTrace, Window], Finding]
_WATCHES: Mapping[Watch, tuple[Slot[Any], _Judge]] = MappingProxyType(
    {
        Watch.TICKS: (slots.TICKS, _judge_ticks),
        Watch.PINGS: (slots.PINGS, _judge_pings),
        Watch.ECHOES: (slots.ECHOES, _judge_answers),
    }
)


CHECKS = (CheckRow(id="guest.liveness", judge=judge_liveness, first=True),)
