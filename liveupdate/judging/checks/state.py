# SPDX-License-Identifier: Apache-2.0
"""handover.state: each guest's VM state came over as it was saved."""

from __future__ import annotations

from collections.abc import Iterator

from liveupdate.core.units import format_ns
from liveupdate.judging.check import CheckRow
from liveupdate.judging.context import Context, Finding, GuestHop
from liveupdate.model import slots
from liveupdate.model.targets import Capability
from liveupdate.model.vm_state import StateFacts, StateSeen, StateSum

Sum = StateSum | StateSeen


def judge_state(context: Context) -> Iterator[Finding]:
    """Require that length and digest of every VM state are the same when it was saved, in the
    host's memory as seen from outside, and before it was loaded.
    """
    for at in context.guests():
        if context.plan.state_digests is not True:
            yield at.skipped("the version that made this run took no digest of the VM state")
        elif at.is_rolled_back:
            yield at.skipped("rolled back, no VM state went over")
        else:
            yield _judge_guest(at.on(slots.STATE))


def _judge_guest(at: GuestHop) -> Finding:
    memory = at.context.memory(at.hop, at.guest.name)
    state = memory.state if memory else None
    if state is None or state.saved is None:
        return at.missing("the digest of the VM state at the freeze")
    if not state.saved.state_digest or state.saved.state_bytes < 1:
        return at.error("the VM state at the freeze is empty")
    if difference := _find_difference(at, state):
        return difference
    if state.read is None:
        return at.missing("the digest of the VM state before it was loaded")
    if at.context.plan.target_has(Capability.PHYSICAL_MEMORY):
        if unseen := _judge_outside(at, state):
            return unseen
        seen = "seen from outside in the blackout"
    else:
        seen = "not seen from outside"
    told = f"{state.saved.state_bytes} bytes with digest {state.saved.state_digest}"
    return at.passed(f"the VM state came over as it was saved, {seen}: {told}", told)


def _find_difference(at: GuestHop, state: StateFacts) -> Finding | None:
    """Compare what came over, or else what lay in memory, with what was saved."""
    saved = state.saved
    assert saved is not None
    if state.read is not None:
        return _compare(at, saved, state.read, "before it was loaded")
    # not read by any agent, because what carries it was refused before: memory shows why
    if state.freeze is None or state.boot is None or _say(saved, state.freeze):
        return None
    return _compare(at, saved, state.boot, "as seen from outside after the kexec")


def _compare(at: GuestHop, saved: Sum, found: Sum, when: str) -> Finding | None:
    told = _say(saved, found)
    if told is None:
        return None
    what, observed, expected = told
    said = f"the VM state changed over the kexec: {when} its {what} is {observed}"
    return at.failed(f"{said}, saved was {expected}", observed, expected)


def _say(saved: Sum, found: Sum) -> tuple[str, str, str] | None:
    """Say what differs: the thing, as found, as saved; None: nothing."""
    if found.state_bytes != saved.state_bytes:
        return "length", f"{found.state_bytes} bytes", f"{saved.state_bytes} bytes"
    if found.state_digest != saved.state_digest:
        return "digest", found.state_digest, saved.state_digest
    return None


def _judge_outside(at: GuestHop, state: StateFacts) -> Finding | None:
    """Require that the state was seen from outside, in time and as the agents tell of it."""
    freeze, boot = state.freeze, state.boot
    if freeze is None or boot is None:
        when = "at the freeze" if freeze is None else "after the kexec"
        return at.missing(f"the digest of the VM state from outside {when}")
    if state.hello_ns is None:
        return at.missing("the moment of the incoming agent's hello")
    if at.paused_ns is None:
        return at.on(slots.MARKS).missing("the moment of the pause")
    if boot.ended_ns > state.hello_ns:
        late = format_ns(boot.ended_ns - state.hello_ns)
        return at.error(
            f"the VM state was read from outside {late} after the incoming agent had it: the"
            " control host had too little CPU time to read it in the blackout"
        )
    times = (at.paused_ns, freeze.began_ns, freeze.ended_ns, boot.began_ns, boot.ended_ns)
    resumed_ns = at.resumed_ns or state.hello_ns
    if list(times) != sorted(times) or state.hello_ns > resumed_ns:
        return at.error("the times at which the VM state was seen are out of order")
    for when, each in (("at the freeze", freeze), ("after the kexec", boot)):
        assert state.saved is not None
        if told := _say(state.saved, each):
            what, observed, expected = told
            return at.error(
                f"inside and outside contradict each other: the VM state's {what} {when} is"
                f" {observed} as seen from outside, the agents say {expected}"
            )
    return None


CHECKS = (CheckRow(id="handover.state", judge=judge_state),)
