# SPDX-License-Identifier: Apache-2.0
"""budget.blackout: no guest was out for longer than the user will accept."""

from __future__ import annotations

from collections.abc import Iterator

from liveupdate.core.units import format_ns
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.checks.guest import blackout_ns
from liveupdate.judging.context import Context, Finding, skipped
from liveupdate.model import slots


def judge_blackout(context: Context) -> Iterator[Finding]:
    """Require that no guest was out for longer than the budget."""
    limit_s = context.plan.budget.blackout_s
    if limit_s is None:
        yield skipped("no budget set (budget.blackout)")
        return
    for at in context.reached():
        length_ns = blackout_ns(at)
        if length_ns is not None:
            judge = at.failed if length_ns > limit_s * 1e9 else at.passed
            length = format_ns(length_ns)
            yield judge(f"blackout {length}, budget {limit_s:g} s", length)
        elif at.is_rolled_back:
            yield at.skipped("rolled back, no blackout")
        else:
            yield at.on(slots.MARKS).missing("the blackout")


def _no_bound(asked: Asked) -> str | None:
    return "the scenario sets no bound" if asked.scenario.budget.blackout_s is None else None


CHECKS = (CheckRow(id="budget.blackout", judge=judge_blackout, skip=_no_bound),)
