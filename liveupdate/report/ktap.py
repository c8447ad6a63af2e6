# SPDX-License-Identifier: Apache-2.0
"""KTAP version 1 (``Documentation/dev-tools/ktap.rst``), for kernel CI: one test per check, in the
order of the check ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Check, Outcome, Verdict
from liveupdate.report.common import clean

_DIRECTIVES = {Outcome.SKIP: "SKIP", Outcome.ERROR: "ERROR"}


def render_ktap(plan: Plan, evidence: Evidence, verdict: Verdict) -> str:
    """Render the verdict; ends with a newline."""
    lines = ["KTAP version 1", f"1..{len(verdict.checks)}"]
    for number, check in enumerate(verdict.checks, 1):
        lines += _lines(number, check, verdict)
    return "\n".join(lines) + "\n"


def _lines(number: int, check: Check, verdict: Verdict) -> Iterator[str]:
    """Write the diagnostics of a check that failed, then its result."""
    reason = _plain(check.reason)
    if check.status is Outcome.FAIL:
        yield f"# {check.id}: {reason}".rstrip()
        for word, value in (("observed", check.observed), ("expected", check.expected)):
            if value:
                yield f"# {check.id}: {word} {_plain(value)}"
    ok = "ok" if check.status in (Outcome.PASS, Outcome.SKIP) else "not ok"
    directive = _DIRECTIVES.get(check.status, "")
    if directive == "ERROR" and verdict.timed_out:
        directive = "TIMEOUT"
    yield f"{ok} {number} {check.id}" + (f" # {directive} {reason}".rstrip() if directive else "")


def _plain(text: str) -> str:
    return re.sub("\t+", " ", clean(text)).strip()
