# SPDX-License-Identifier: Apache-2.0
"""handover.kho, handover.generation, handover.session: did the new kernel take over."""

from __future__ import annotations

from itertools import pairwise

from liveupdate.core.units import MIB, format_size
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.clockfit import fit_slope
from liveupdate.judging.context import (
    KERNEL_KINDS,
    Context,
    Finding,
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
from liveupdate.model.verdict import Outcome

#: free memory that may go missing per hop before it is called a leak, and for how many hops
LEAK_BYTES_PER_HOP = 8 * MIB
LEAK_HOPS = 4


def say_kernel(release: str, build_id: str) -> str:
    """Format a kernel's release and the start of its build id."""
    return f"{release} (build id {build_id[:12] or 'none'})"


def judge_kho(context: Context) -> list[Finding]:
    """Require that every hop ended in the planned kernel, which found the data of the outgoing one.

    Without KHO in the mechanism, the incoming kernel has no data to find and only has to be the
    planned one.
    """
    findings = [
        error_finding(f"hop {incident.hop}: {say_incident(incident)}")
        for incident in context.troubles()
    ]
    for hop in context.plan.hops:
        findings.extend(_judge_kho_hop(context, hop))
    return findings


def _judge_kho_hop(context: Context, hop: Hop) -> list[Finding]:
    where = f"hop {hop.number}"
    if gone := _gone(context, hop.number):
        return gone
    facts = context.hop(hop.number)
    files = (
        slots.KERNEL_BEFORE.path(hop.number),
        slots.KERNEL_AFTER.path(hop.number),
    )
    if facts is None or facts.before is None:
        return [context.missing("the outgoing kernel's facts", hop.number, paths=files[:1])]
    if facts.after is None:
        return [context.missing("the incoming kernel's facts", hop.number, paths=files[1:])]
    findings: list[Finding] = []
    if facts.after.boot_id == facts.before.boot_id:
        findings.append(
            failed(
                f"{where}: boot_id did not change, the kernel was not replaced",
                observed=facts.after.boot_id,
                expected="another boot_id",
                evidence=files,
            )
        )
    if KHO in context.plan.witnesses and not facts.after.kho_found:
        findings.append(
            failed(
                f"{where}: the incoming kernel found no handover data (KHO)",
                observed=facts.after.release,
                expected="KHO: found kexec handover data",
                evidence=files[1:],
            )
        )
    findings += _judge_kernel(where, hop.incoming, facts.after, files[1])
    if not findings:
        # the outgoing kernel and SSH only show whether this is the right machine
        outgoing = _judge_kernel(where, context.outgoing(hop), facts.before, files[0])
        findings += [error_finding(f"outgoing kernel: {each.reason}") for each in outgoing]
        findings += _judge_ssh(context, facts, facts.after)
    return findings or [
        passed(
            f"{where}: {say_kernel(facts.before.release, facts.before.build_id)} handed over to "
            f"{say_kernel(facts.after.release, facts.after.build_id)}",
            observed=facts.after.boot_id,
            evidence=files,
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


def _judge_kernel(where: str, planned: KernelImage, found: KernelFacts, path: str) -> list[Finding]:
    same_release = found.release == planned.release
    # an image without a build id note is only known by its release
    same_build = not planned.build_id or found.build_id == planned.build_id
    if same_release and same_build:
        return []
    return [
        failed(
            f"{where}: runs {say_kernel(found.release, found.build_id)}, planned was "
            f"{say_kernel(planned.release, planned.build_id)}",
            observed=say_kernel(found.release, found.build_id),
            expected=say_kernel(planned.release, planned.build_id),
            evidence=(path,),
        )
    ]


def _judge_ssh(context: Context, facts: HopEvidence, after: KernelFacts) -> list[Finding]:
    path = slots.SSH.path(facts.number)
    where = f"hop {facts.number}"
    if facts.ssh_boot_id is None or facts.ssh_nonce_ok is None:
        return [context.missing("boot_id and nonce over SSH", facts.number, paths=(path,))]
    if not facts.ssh_nonce_ok:
        return [
            error_finding(
                f"{where}: the nonce read over SSH is not that of this run", evidence=(path,)
            )
        ]
    if facts.ssh_boot_id != after.boot_id:
        return [
            error_finding(
                f"{where}: SSH and the agent channel reach different boots",
                observed=f"{facts.ssh_boot_id} over SSH, {after.boot_id} over the agent channel",
                evidence=(path,),
            )
        ]
    return []


def judge_generation(context: Context) -> list[Finding]:
    """Require that KHO's generation advanced by exactly one in every hop: 1, 2, … N."""
    findings: list[Finding] = []
    for hop in context.plan.hops:
        if gone := _gone(context, hop.number):
            findings += gone
            continue
        facts = context.hop(hop.number)
        paths = [each.path(hop.number) for each in (slots.KERNEL_BEFORE, slots.KERNEL_AFTER)]
        if facts is None or facts.before is None or facts.after is None:
            findings.append(context.missing("the KHO generation", hop.number, paths=paths))
            continue
        expected = facts.before.generation + 1
        found = facts.after.generation
        good = found == expected == hop.number
        findings.append(
            Finding(
                status=Outcome.PASS if good else Outcome.FAIL,
                reason=f"hop {hop.number}: generation {facts.before.generation} → {found}",
                observed=str(found),
                expected=str(hop.number),
                evidence=tuple(paths),
            )
        )
    return findings


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
        paths = (
            slots.SESSIONS.path(hop.number),
            slots.KERNEL_AFTER.path(hop.number),
        )
        if facts is None or facts.after is None:
            findings.append(context.missing("sessions", hop.number, paths=paths))
            continue
        if LUO in context.plan.witnesses and not (facts.after.liveupdate and facts.after.kho_found):
            lack = "no /dev/liveupdate" if not facts.after.liveupdate else "no handover data"
            findings.append(
                failed(
                    f"hop {hop.number}: the incoming kernel has {lack}: no session could be "
                    "retrieved",
                    expected=", ".join(session_name(guest.name) for guest in context.plan.guests),
                    evidence=paths,
                )
            )
            continue
        findings += _judge_sessions(context, hop.number, facts.sessions)
        findings += _judge_luo_number(context, hop.number, facts.after, findings)
    return findings + _judge_leak(context)


def _judge_sessions(
    context: Context, hop: int, sessions: tuple[SessionFacts, ...]
) -> list[Finding]:
    path = slots.SESSIONS.path(hop)
    by_name = {session.name: session for session in sessions}
    agents = by_name.get(AGENT_SESSION)
    if agents is not None and agents.error is not None:
        # The manifest, which names the guests, could not be read.
        return [
            failed(
                f"hop {hop}: nothing was taken over: {agents.error}",
                observed=agents.error,
                expected=", ".join(session_name(guest.name) for guest in context.plan.guests),
                evidence=(path,),
            )
        ]
    names = [session_name(guest.name) for guest in context.plan.guests]
    if AGENT_SESSION in by_name:
        names.append(AGENT_SESSION)
    findings: list[Finding] = []
    for name in names:
        session = by_name.get(name)
        if session is None:
            guest = name.removeprefix("lu.guest.")
            findings.append(context.missing(f"session '{name}'", hop, guest, paths=(path,)))
        elif session.error is not None:
            findings.append(
                failed(
                    f"hop {hop}: session '{name}' was not retrieved: {session.error}",
                    observed=session.error,
                    expected="retrieved",
                    evidence=(path,),
                )
            )
        elif session.tokens < 1:
            findings.append(failed(f"hop {hop}: session '{name}' is empty", evidence=(path,)))
        else:
            findings.append(passed(f"hop {hop}: session '{name}' retrieved", evidence=(path,)))
    return findings


def _judge_luo_number(
    context: Context, hop: int, after: KernelFacts, so_far: list[Finding]
) -> list[Finding]:
    """Compare the kernel's own count of live updates, unless something failed before."""
    if LUO not in context.plan.witnesses:
        return []
    if any(finding.status is Outcome.FAIL for finding in so_far):
        return []
    path = slots.KERNEL_AFTER.path(hop)
    if after.luo_number is None:
        return [context.missing("'Retrieved live update data' in the kernel log", hop)]
    if after.luo_number != hop:
        return [
            failed(
                f"hop {hop}: the kernel says this is live update number {after.luo_number}",
                observed=str(after.luo_number),
                expected=str(hop),
                evidence=(path,),
            )
        ]
    return []


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
    falling = all(late < early for early, late in pairwise(series))
    text = f"{format_size(abs(round(slope)))} per hop over {len(series)} hops"
    if falling and -slope > LEAK_BYTES_PER_HOP:
        return [
            failed(
                f"free memory falls by {text}: preserved memory is leaked",
                observed=text,
                expected=f"at most {format_size(LEAK_BYTES_PER_HOP)} per hop",
            )
        ]
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
