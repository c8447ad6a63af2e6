# SPDX-License-Identifier: Apache-2.0
"""budget.blackout: no guest was out for longer than the user will accept."""

from __future__ import annotations

from liveupdate.core.units import format_ns
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.checks.guest import blackout_ns, reached
from liveupdate.judging.context import Context, Finding, failed, passed, skipped
from liveupdate.model import slots


def judge_blackout(context: Context) -> list[Finding]:
    """Require that no guest was out for longer than the budget."""
    limit_s = context.plan.budget.blackout_s
    if limit_s is None:
        return [skipped("no budget set (budget.blackout)")]
    findings: list[Finding] = []
    for hop, guest in reached(context):
        length_ns = blackout_ns(context, hop, guest.name)
        if length_ns is None and context.rolled_back(hop):
            findings.append(skipped(f"hop {hop}, {guest.name}: rolled back, no blackout"))
            continue
        if length_ns is None:
            path = slots.MARKS.path(hop)
            findings.append(context.missing("the blackout", hop, guest.name, (path,)))
            continue
        findings.append(
            (failed if length_ns > limit_s * 1e9 else passed)(
                f"hop {hop}, {guest.name}: blackout {format_ns(length_ns)}, budget {limit_s:g} s",
                observed=format_ns(length_ns),
            )
        )
    return findings


def _no_bound(asked: Asked) -> str | None:
    return "the scenario sets no bound" if asked.scenario.budget.blackout_s is None else None


CHECKS = (CheckRow(id="budget.blackout", judge=judge_blackout, skip=_no_bound),)
