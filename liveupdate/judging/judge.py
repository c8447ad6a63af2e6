# SPDX-License-Identifier: Apache-2.0
"""The judge: ``(Plan, Evidence) -> Verdict``. Pure; the only place that says PASS or FAIL.

Not passed is the default. A check is PASS only when every planned hop and guest gave evidence for
it. Evidence that is missing, cut or altered is ERROR. SKIP is for checks that the plan excludes,
that a kind of guest cannot show, or whose evidence was lost with a loss that another check calls
FAIL. Rules: ``docs/judging.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from liveupdate.judging.checks import (
    device,
    device_state,
    guest,
    handover,
    liveness,
    mappings,
    memory,
    translation,
)
from liveupdate.judging.context import (
    Context,
    Finding,
    error_finding,
    say_incident,
    skipped,
    to_check,
)
from liveupdate.judging.metrics import measure
from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import CHECK_IDS, Check, Outcome, Verdict, reduce

Judge = Callable[[Context], list[Finding]]

#: in the order in which they run: liveness first, as it says which guests are dead
_JUDGES: Mapping[str, Judge] = MappingProxyType(
    {
        "guest.liveness": liveness.judge_liveness,
        "handover.kho": handover.judge_kho,
        "handover.generation": handover.judge_generation,
        "handover.session": handover.judge_session,
        "memory.content": memory.judge_content,
        "memory.placement": memory.judge_placement,
        "guest.clock": guest.judge_clock,
        "guest.network": guest.judge_network,
        "guest.storage": guest.judge_storage,
        "device.dma-continuity": device.judge_continuity,
        "iommu.translation": translation.judge_translation,
        "iommu.mappings": mappings.judge_mappings,
        "iommu.faults": translation.judge_faults,
        "device.no-reset": device_state.judge_no_reset,
        "device.config-space": device_state.judge_config_space,
        "budget.blackout": guest.judge_blackout,
    }
)


def judge(plan: Plan, evidence: Evidence) -> Verdict:
    """Judge a plan by its evidence; every check id gets a result."""
    context = Context(plan, evidence)
    skips = dict(plan.skips)
    found: dict[str, Check] = {}
    for check_id, judge_one in _JUDGES.items():
        # judged even when skipped: liveness says which guests are dead
        findings = judge_one(context)
        if check_id in skips:
            findings = [skipped(skips[check_id])]
        found[check_id] = to_check(check_id, findings)
    for check_id in CHECK_IDS:
        if check_id not in found:
            finding = (
                skipped(skips[check_id])
                if check_id in skips
                else error_finding(
                    "expected by the plan, but there is no evidence that could show it"
                )
            )
            found[check_id] = to_check(check_id, [finding])
    checks = _cover_the_rest(context, {check_id: found[check_id] for check_id in CHECK_IDS})
    outcome = reduce(check.status for check in checks)
    return Verdict(
        outcome=outcome,
        checks=checks,
        metrics=measure(context),
        reason=_say_why(outcome, checks),
        rolled_back=_is_rolled_back(evidence, checks),
        timed_out=any(incident.kind == "deadline" for incident in context.troubles()),
    )


def _cover_the_rest(context: Context, found: Mapping[str, Check]) -> tuple[Check, ...]:
    """Ensure that no trouble is lost between the checks.

    Trouble on the control host and an unreadable file must show as ERROR somewhere, a loss as FAIL;
    ``handover.kho`` takes those that no other check reports.
    """
    rest: list[Finding] = []
    statuses = {check.status for check in found.values()}
    evidence = context.evidence
    if Outcome.ERROR not in statuses:
        rest += [error_finding(say_incident(incident)) for incident in context.troubles()]
        rest += [
            error_finding(f"{path} cannot be used: {why}", evidence=(path,))
            for path, why in evidence.unreadable.items()
        ]
        if evidence.provenance is None:
            rest.append(error_finding("there is no provenance: it is unknown what was run"))
        if not context.plan.hops or not context.plan.guests:
            rest.append(error_finding("the plan has no hop or no guest: nothing was tested"))
    if not statuses & {Outcome.ERROR, Outcome.FAIL}:
        losses = (
            context.loss(hop.number, each.name)
            for hop in context.plan.hops
            for each in context.plan.guests
        )
        rest += [
            Finding(status=Outcome.FAIL, reason=loss) for loss in dict.fromkeys(losses) if loss
        ]
    if not rest:
        return tuple(found.values())
    kho = found["handover.kho"]
    more = to_check("handover.kho", rest)
    status = reduce((kho.status, more.status))
    said = more.reason if kho.status is Outcome.PASS else f"{more.reason}; {kho.reason}"
    merged = replace(more, status=status, reason=said)
    return tuple(merged if check.id == "handover.kho" else check for check in found.values())


def _say_why(outcome: Outcome, checks: tuple[Check, ...]) -> str:
    if outcome is Outcome.PASS:
        return ""
    worst = next((check for check in checks if check.status is outcome), None)
    return f"{worst.id}: {worst.reason}" if worst else ""


def _is_rolled_back(evidence: Evidence, checks: tuple[Check, ...]) -> bool:
    """Whether the run was rolled back with no loss: only then does the exit code say so."""
    return evidence.rolled_back and all(
        check.status in (Outcome.PASS, Outcome.SKIP)
        for check in checks
        if check.id.startswith(("guest.", "memory."))
    )
