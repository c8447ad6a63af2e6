# SPDX-License-Identifier: Apache-2.0
"""handover.kho, handover.generation, handover.session: did the new kernel take over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from liveupdate.core.units import MIB, format_size
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.clockfit import fit_slope
from liveupdate.judging.context import (
    KERNEL_KINDS,
    Context,
    Finding,
    Place,
    error_finding,
    failed,
    passed,
    say_incident,
    say_kernel_incident,
    session_name,
    skipped,
)
from liveupdate.model import slots
from liveupdate.model.evidence import HopEvidence, KernelFacts, SessionFacts
from liveupdate.model.mechanism import AGENT_SESSION, KHO, LUO
from liveupdate.model.plan import Hop, KernelImage
from liveupdate.model.slots import Slot
from liveupdate.model.verdict import Outcome

#: free memory that may go missing per hop before it is called a leak, and for how many hops
LEAK_BYTES_PER_HOP = 8 * MIB
LEAK_HOPS = 4


def say_kernel(kernel: KernelFacts | KernelImage) -> str:
    """Format a kernel's release and the start of its build id."""
    return f"{kernel.release} (build id {kernel.build_id[:12] or 'none'})"


def judge_kho(context: Context) -> Iterator[Finding]:
    """Require that every hop ended in the planned kernel, which found the data of the outgoing one.

    Without KHO in the mechanism, the incoming kernel has no data to find and only has to be the
    planned one.
    """
    for incident in context.troubles():
        yield error_finding(f"hop {incident.hop}: {say_incident(incident)}")
    for hop in context.plan.hops:
        yield from _gone(context, hop.number) or _judge_kho_hop(context, hop)


def _place(hop: int, *found: Slot[Any]) -> Place:
    return Place(f"hop {hop}", tuple(slot.path(hop) for slot in found))


def _judge_kho_hop(context: Context, hop: Hop) -> list[Finding]:
    facts = context.hop(hop.number)
    at = _place(hop.number, slots.KERNEL_BEFORE, slots.KERNEL_AFTER)
    if facts is None or facts.before is None:
        return [context.missing("the outgoing kernel's facts", hop.number, paths=at.files[:1])]
    if facts.after is None:
        return [context.missing("the incoming kernel's facts", hop.number, paths=at.files[1:])]
    incoming = _place(hop.number, slots.KERNEL_AFTER)
    earlier = context.hop(hop.number - 1)
    if earlier is not None and earlier.after is not None:
        ended = earlier.after.boot_id
        if facts.before.boot_id != ended:
            said = "it began in another boot than the hop before it ended in"
            return [at.failed(said, facts.before.boot_id, ended)]
    findings: list[Finding] = []
    if facts.after.boot_id == facts.before.boot_id:
        said = "boot_id did not change, the kernel was not replaced"
        findings.append(at.failed(said, facts.after.boot_id, "another boot_id"))
    if KHO in context.plan.witnesses and not facts.after.kho_found:
        said = "the incoming kernel found no handover data (KHO)"
        expected = "KHO: found kexec handover data"
        findings.append(incoming.failed(said, facts.after.release, expected))
    findings += _judge_kernel(incoming, hop.incoming, facts.after)
    if not findings:
        # the outgoing kernel and SSH only show whether this is the right machine
        outgoing = _judge_kernel(at, context.outgoing(hop), facts.before)
        findings += [error_finding(f"outgoing kernel: {each.reason}") for each in outgoing]
        findings += _judge_ssh(context, facts, facts.after)
    return findings or [
        at.passed(
            f"{say_kernel(facts.before)} handed over to {say_kernel(facts.after)}",
            facts.after.boot_id,
        )
    ]


def _gone(context: Context, hop: int) -> list[Finding]:
    """Return the findings of a hop that was rolled back, broke off, or was never reached."""
    if context.rolled_back(hop):
        refused = context.incidents(("freeze-refused",), hop)
        why = say_incident(refused[0]) if refused else "the update was given up"
        if hop != context.rolled_back_hop:
            return [skipped(f"hop {hop}: not reached, rolled back before")]
        return [failed(f"hop {hop}: rolled back to the outgoing kernel: {why}")]
    if incidents := context.incidents(KERNEL_KINDS, hop):
        return [failed(say_kernel_incident(incident)) for incident in incidents]
    if refused := context.incidents(("freeze-refused",), hop):
        return [failed(f"hop {hop}: {say_incident(each)}") for each in refused]
    return []


def _judge_kernel(at: Place, planned: KernelImage, found: KernelFacts) -> Iterator[Finding]:
    # an image without a build id note is only known by its release
    same_build = not planned.build_id or found.build_id == planned.build_id
    if found.release != planned.release or not same_build:
        runs, wanted = say_kernel(found), say_kernel(planned)
        yield at.failed(f"runs {runs}, planned was {wanted}", runs, wanted)


def _judge_ssh(context: Context, facts: HopEvidence, after: KernelFacts) -> Iterator[Finding]:
    at = _place(facts.number, slots.SSH)
    if facts.ssh_boot_id is None or facts.ssh_nonce_ok is None:
        yield context.missing("boot_id and nonce over SSH", facts.number, paths=at.files)
    elif not facts.ssh_nonce_ok:
        yield at.error("the nonce read over SSH is not that of this run")
    elif facts.ssh_boot_id != after.boot_id:
        yield at.error(
            "SSH and the agent channel reach different boots",
            f"{facts.ssh_boot_id} over SSH, {after.boot_id} over the agent channel",
        )


def judge_generation(context: Context) -> Iterator[Finding]:
    """Require that KHO's generation advanced by exactly one in every hop: 1, 2, … N."""
    for hop in context.plan.hops:
        if gone := _gone(context, hop.number):
            yield from gone
            continue
        facts = context.hop(hop.number)
        at = _place(hop.number, slots.KERNEL_BEFORE, slots.KERNEL_AFTER)
        if facts is None or facts.before is None or facts.after is None:
            yield context.missing("the KHO generation", hop.number, paths=at.files)
            continue
        found = facts.after.generation
        good = found == facts.before.generation + 1 == hop.number
        yield Finding(
            status=Outcome.PASS if good else Outcome.FAIL,
            reason=f"{at.where}: generation {facts.before.generation} → {found}",
            observed=str(found),
            expected=str(hop.number),
            evidence=at.files,
        )


def judge_session(context: Context) -> list[Finding]:
    """Require that the mechanism returned what carried every guest (LUO: a session), and that no
    memory leaks.
    """
    findings: list[Finding] = []
    for hop in context.plan.hops:
        if gone := _gone(context, hop.number):
            findings += gone
            continue
        facts = context.hop(hop.number)
        at = _place(hop.number, slots.SESSIONS, slots.KERNEL_AFTER)
        if facts is None or facts.after is None:
            findings.append(context.missing("sessions", hop.number, paths=at.files))
            continue
        if LUO in context.plan.witnesses and not (facts.after.liveupdate and facts.after.kho_found):
            lack = "no /dev/liveupdate" if not facts.after.liveupdate else "no handover data"
            said = f"the incoming kernel has {lack}: no session could be retrieved"
            findings.append(at.failed(said, expected=_expected_sessions(context)))
            continue
        findings += _judge_sessions(context, hop.number, facts.sessions)
        if not any(finding.status is Outcome.FAIL for finding in findings):
            findings += _judge_luo_number(context, hop.number, facts.after)
    return findings + _judge_leak(context)


def _expected_sessions(context: Context) -> str:
    return ", ".join(session_name(guest.name) for guest in context.plan.guests)


def _judge_sessions(
    context: Context, hop: int, sessions: tuple[SessionFacts, ...]
) -> Iterator[Finding]:
    at = _place(hop, slots.SESSIONS)
    by_name = {session.name: session for session in sessions}
    agents = by_name.get(AGENT_SESSION)
    if agents is not None and agents.error is not None:
        # The manifest, which names the guests, could not be read.
        said = f"nothing was taken over: {agents.error}"
        yield at.failed(said, agents.error, _expected_sessions(context))
        return
    names = [session_name(guest.name) for guest in context.plan.guests]
    if AGENT_SESSION in by_name:
        names.append(AGENT_SESSION)
    for name in names:
        session = by_name.get(name)
        if session is None:
            guest = name.removeprefix("lu.guest.")
            yield context.missing(f"session '{name}'", hop, guest, at.files)
        elif session.error is not None:
            said = f"session '{name}' was not retrieved: {session.error}"
            yield at.failed(said, session.error, "retrieved")
        elif session.tokens < 1:
            yield at.failed(f"session '{name}' is empty")
        else:
            yield at.passed(f"session '{name}' retrieved")
    for session in sessions:
        if session.name not in names and session.error is not None:
            # of a device
            said = f"session '{session.name}' was not retrieved: {session.error}"
            yield at.failed(said, session.error, "retrieved")


def _judge_luo_number(context: Context, hop: int, after: KernelFacts) -> Iterator[Finding]:
    """Compare the kernel's own count of live updates."""
    if LUO not in context.plan.witnesses:
        return
    if after.luo_number is None:
        yield context.missing("'Retrieved live update data' in the kernel log", hop)
    elif after.luo_number != hop:
        said = f"the kernel says this is live update number {after.luo_number}"
        yield _place(hop, slots.KERNEL_AFTER).failed(said, str(after.luo_number), str(hop))


def free_memory(context: Context) -> list[int]:
    """Return the free memory of the incoming kernel after each hop, up to the first unknown one."""
    series: list[int] = []
    for hop in context.plan.hops:
        facts = context.hop(hop.number)
        if facts is None or facts.after is None:
            break
        series.append(facts.after.mem_free_bytes)
    return series


def _judge_leak(context: Context) -> list[Finding]:
    series = free_memory(context)
    slope = fit_slope(series)
    if slope is None or len(series) < LEAK_HOPS:
        return []
    # hops two apart end in the same kernel, which is what uses most; one hop may go up by chance
    pairs = zip(series, series[2:], strict=False)
    falling = all(early - late > LEAK_BYTES_PER_HOP for early, late in pairs)
    text = f"{format_size(abs(round(slope)))} per hop over {len(series)} hops"
    if falling and -slope > LEAK_BYTES_PER_HOP:
        said = f"free memory falls by {text}: preserved memory is leaked"
        expected = f"at most {format_size(LEAK_BYTES_PER_HOP)} per hop"
        return [failed(said, observed=text, expected=expected)]
    return [passed(f"no leak: free memory changes by {text}")]


def _not_counted(asked: Asked) -> str | None:
    if KHO in asked.mechanism.witnesses:
        return None
    return f"mechanism '{asked.mechanism.name}' does without KHO, which counts the generations"


CHECKS = (
    CheckRow(id="handover.kho", judge=judge_kho),
    CheckRow(id="handover.generation", judge=judge_generation, skip=_not_counted),
    CheckRow(id="handover.session", judge=judge_session),
)
