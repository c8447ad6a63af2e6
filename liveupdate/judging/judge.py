# SPDX-License-Identifier: Apache-2.0
"""The judge: ``(Plan, Evidence) -> Verdict``. Pure; the only place that says PASS or FAIL.

Not passed is the default. A check is PASS only when every planned hop and guest gave evidence for
it. Evidence that is missing, cut or altered is ERROR. SKIP is for checks that the plan excludes,
that a kind of guest cannot show, or whose evidence was lost with a loss that another check calls
FAIL. Rules: ``docs/judging.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from liveupdate.judging.context import (
    Context,
    Finding,
    error_finding,
    say_incident,
    skipped,
    to_check,
)
from liveupdate.judging.contradictions import find_contradictions, find_unproven
from liveupdate.judging.metrics import measure
from liveupdate.judging.table import CHECKS
from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Check, Metric, Outcome, Verdict, reduce


def judge(plan: Plan, evidence: Evidence) -> Verdict:
    """Judge a plan by its evidence; every check id gets a result."""
    context = Context(plan, evidence)
    skips = dict(plan.skips)
    found: dict[str, Check] = {}
    for row in sorted(CHECKS, key=lambda row: not row.first):
        # judged even when skipped: liveness says which guests are dead
        try:
            findings = list(row.judge(context))
        except Exception as error:
            findings = [error_finding(f"the evidence breaks this check: {error!r}")]
        if row.id in skips:
            findings = [skipped(skips[row.id])]
        found[row.id] = to_check(row.id, findings)
    unproven = find_unproven(context)
    rest = list(unproven)
    metrics: tuple[Metric, ...] = ()
    try:
        metrics = measure(context)
        if not {check.status for check in found.values()} & {Outcome.ERROR, Outcome.FAIL}:
            rest += find_contradictions(context)
    except Exception as error:
        rest.append(error_finding(f"the evidence breaks the measuring: {error!r}"))
    checks = _cover_the_rest(context, {row.id: found[row.id] for row in CHECKS}, rest)
    outcome = reduce(check.status for check in checks)
    return Verdict(
        outcome=outcome,
        checks=checks,
        metrics=metrics,
        reason=_say_why(outcome, checks),
        rolled_back=_is_rolled_back(evidence, checks) and not unproven,
        timed_out=any(incident.kind == "deadline" for incident in context.troubles()),
    )


def _cover_the_rest(
    context: Context, found: Mapping[str, Check], rest: list[Finding]
) -> tuple[Check, ...]:
    """Ensure that no trouble is lost between the checks, and none of ``rest``.

    Trouble on the control host and an unreadable file must show as ERROR somewhere, a loss as FAIL;
    ``handover.kho`` takes those that no other check reports.
    """
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
