# SPDX-License-Identifier: Apache-2.0
"""KTAP, for kernel CI: one test per check, in the order of the check ids."""

from __future__ import annotations

from liveupdate.formats.ktap import KtapTest, render
from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Check, Outcome, Verdict
from liveupdate.report.common import clean

_DIRECTIVES = {Outcome.SKIP: "SKIP", Outcome.ERROR: "ERROR"}


def render_ktap(plan: Plan, evidence: Evidence, verdict: Verdict) -> str:
    """Render the verdict; ends with a newline."""
    tests = [_make_test(number, check, verdict) for number, check in enumerate(verdict.checks, 1)]
    return "\n".join(render(tests)) + "\n"


def _make_test(number: int, check: Check, verdict: Verdict) -> KtapTest:
    directive = _DIRECTIVES.get(check.status, "")
    if directive == "ERROR" and verdict.timed_out:
        directive = "TIMEOUT"
    reason = clean(check.reason)
    details = [f"{check.id}: {reason}"] if check.status is Outcome.FAIL else []
    for word, value in (("observed", check.observed), ("expected", check.expected)):
        if value and check.status is Outcome.FAIL:
            details.append(f"{check.id}: {word} {clean(value)}")
    return KtapTest(
        ok=check.status in (Outcome.PASS, Outcome.SKIP),
        number=number,
        name=check.id,
        directive=directive,
        text=reason if directive else "",
        diagnostics=tuple(details),
    )
