# SPDX-License-Identifier: Apache-2.0
"""``result.json``: the verdict for machines. Schema: ``result.schema.json`` beside this module.

Within one major version of the schema fields are only added. Times are host CLOCK_MONOTONIC in ns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from liveupdate.model import codec
from liveupdate.model.evidence import Artifact, Evidence
from liveupdate.model.plan import KernelImage, Plan
from liveupdate.model.verdict import Verdict
from liveupdate.report.common import artifacts_of

SCHEMA_VERSION = "1.0"
SCHEMA_ID = "urn:liveupdate:schema:result:1"


def make_result(
    plan: Plan, evidence: Evidence, verdict: Verdict, artifacts: Iterable[Artifact] | None = None
) -> dict[str, object]:
    """Return the document as a value.

    :param artifacts: files of the run; None: those that the evidence names.
    """
    files = artifacts_of(evidence) if artifacts is None else tuple(artifacts)
    provenance = evidence.provenance
    return {
        "$schema": SCHEMA_ID,
        "schema_version": SCHEMA_VERSION,
        "outcome": verdict.outcome.value,
        "exit_code": int(verdict.exit_code),
        "reason": verdict.reason,
        "rolled_back": verdict.rolled_back,
        "timed_out": verdict.timed_out,
        "run_id": provenance.run_id if provenance else None,
        "started_utc": provenance.started_utc if provenance else None,
        "scenario": plan.scenario,
        "target": plan.target,
        "mechanism": plan.mechanism,
        "fault": plan.fault.name if plan.fault else None,
        "kernels": [_kernel(0, plan.images.outgoing)]
        + [_kernel(hop.number, hop.incoming) for hop in plan.hops],
        "checks": [
            {
                "id": check.id,
                "status": check.status.value,
                "reason": check.reason,
                "observed": check.observed,
                "expected": check.expected,
                "evidence": list(check.evidence),
            }
            for check in verdict.checks
        ],
        "phases": [
            {
                "hop": phase.hop,
                "name": phase.name,
                "guest": phase.guest or None,
                "began_ns": phase.began_ns,
                "ended_ns": phase.ended_ns,
                "duration_ns": phase.ended_ns - phase.began_ns,
            }
            for hop in evidence.hops
            for phase in hop.phases
        ],
        "metrics": [
            {
                "name": metric.name,
                "value": int(metric.value) if metric.value.is_integer() else metric.value,
                "unit": metric.unit,
                "labels": dict(metric.labels),
            }
            for metric in verdict.metrics
        ],
        "incidents": [codec.encode(incident) for incident in evidence.incidents],
        "provenance": codec.encode(provenance),
        "unreadable": dict(evidence.unreadable),
        "artifacts": [codec.encode(artifact) for artifact in files],
    }


def _kernel(boot: int, image: KernelImage) -> dict[str, object]:
    return {
        "boot": boot,
        "release": image.release,
        "build_id": image.build_id,
        "sha256": image.sha256,
        "abi": list(image.abi),
    }


def render_json(
    plan: Plan, evidence: Evidence, verdict: Verdict, artifacts: Iterable[Artifact] | None = None
) -> str:
    """Render the document; ends with a newline."""
    document = make_result(plan, evidence, verdict, artifacts)
    # escaped: a lone surrogate from a machine under test could not be written as UTF-8
    return json.dumps(document, indent=2) + "\n"
