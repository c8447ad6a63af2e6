# SPDX-License-Identifier: Apache-2.0
"""JUnit XML, for CI systems: one suite per run, one case per check."""

from __future__ import annotations

import shlex

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Check, Outcome, Verdict
from liveupdate.report.common import clean, say_metric

_HEADER = '<?xml version="1.0" encoding="utf-8"?>\n'
_RESULTS = {Outcome.FAIL: Failure, Outcome.ERROR: Error, Outcome.SKIP: Skipped}


def render_junit(plan: Plan, evidence: Evidence, verdict: Verdict) -> str:
    """Render the verdict as JUnit XML."""
    suite = TestSuite(clean(f"liveupdate.{plan.scenario}"))
    provenance = evidence.provenance
    if provenance is not None:
        suite.timestamp = clean(provenance.started_utc)
        for name, value in (
            ("run_id", provenance.run_id),
            ("tool_version", provenance.tool_version),
            ("command", shlex.join(provenance.argv)),
            ("accel", provenance.accel),
            ("accel_reason", provenance.accel_reason),
            ("qemu_version", provenance.qemu_version),
        ):
            suite.add_property(name, clean(value))
    for number, image in enumerate([plan.images.outgoing, *(hop.incoming for hop in plan.hops)]):
        suite.add_property(f"kernel.{number}", clean(f"{image.release} {image.build_id}"))
    for metric in verdict.metrics:
        labels = ",".join(f"{name}={value}" for name, value in metric.labels.items())
        suite.add_property(clean(f"{metric.name}{{{labels}}}"), say_metric(metric))
    for check in verdict.checks:
        suite.add_testcase(_make_case(plan, check))
    document = JUnitXml()
    document.add_testsuite(suite)
    # junitparser ships no types for this one
    rendered: object = document.tostring()  # type: ignore[no-untyped-call]
    text = rendered.decode() if isinstance(rendered, bytes) else str(rendered)
    return f"{_HEADER}{text}\n"


def _make_case(plan: Plan, check: Check) -> TestCase:
    case = TestCase(check.id, classname=clean(f"liveupdate.{plan.scenario}"))
    # no duration of its own: a check is a conclusion, the run took the time
    case.time = 0.0
    kind = _RESULTS.get(check.status)
    reason = clean(check.reason)
    if kind is not None:
        result = kind(reason)
        if check.status is not Outcome.SKIP:
            result.type = check.status.value
            result.text = _details(check)
        case.result = [result]
    else:
        case.system_out = f"{reason}\n{_details(check)}"
    return case


def _details(check: Check) -> str:
    lines = [
        f"observed: {clean(check.observed)}" if check.observed else "",
        f"expected: {clean(check.expected)}" if check.expected else "",
        *(f"evidence: {clean(path)}" for path in check.evidence),
    ]
    return "\n".join(filter(None, lines))
