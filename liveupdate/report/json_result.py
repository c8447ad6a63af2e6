# SPDX-License-Identifier: Apache-2.0
"""``result.json``: the verdict for machines, and its JSON Schema.

The schema is made from the types below and stored in ``result.schema.json`` beside this module;
``liveupdate schema result`` prints it. Within one major version fields are only added. Times are
CLOCK_MONOTONIC of the control host in ns.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from liveupdate.judging.table import CHECK_IDS
from liveupdate.model import codec
from liveupdate.model.evidence import Artifact, Evidence, Incident, Phase, Provenance, Struck
from liveupdate.model.plan import KernelImage, Plan
from liveupdate.model.verdict import Check, Metric, Outcome, Verdict
from liveupdate.report.common import artifacts_of

SCHEMA_VERSION = "1.1"
SCHEMA_ID = "urn:liveupdate:schema:result:1"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class ResultKernel(Struct, frozen=True, kw_only=True):
    """A kernel of the run; boot 0 is the outgoing one of the first hop."""

    boot: Annotated[int, Meta(ge=0)]
    release: str
    build_id: str
    sha256: str
    abi: tuple[str, ...]

    @classmethod
    def of(cls, boot: int, image: KernelImage) -> ResultKernel:
        """Make one of the image that was booted."""
        names = {name: getattr(image, name) for name in ("release", "build_id", "sha256", "abi")}
        return cls(boot=boot, **names)


class ResultPhase(Struct, frozen=True, kw_only=True):
    """One timed phase of a hop; guest null: of the host."""

    hop: int
    name: str
    guest: str | None
    began_ns: int
    ended_ns: int
    duration_ns: int

    @classmethod
    def of(cls, phase: Phase) -> ResultPhase:
        """Make one of what was measured."""
        return cls(
            hop=phase.hop,
            name=phase.name,
            guest=phase.guest or None,
            began_ns=phase.began_ns,
            ended_ns=phase.ended_ns,
            duration_ns=phase.ended_ns - phase.began_ns,
        )


class Result(Struct, frozen=True, kw_only=True):
    """Result of a liveupdate run.

    Fields are only added within a major version. Times are CLOCK_MONOTONIC of the control host in
    nanoseconds.
    """

    schema: str = field(name="$schema")
    schema_version: Annotated[str, Meta(pattern=r"^1\.[0-9]+$")]
    outcome: Outcome
    exit_code: Literal[0, 1, 3, 4, 5, 124]
    reason: str
    rolled_back: bool
    timed_out: bool
    run_id: str | None
    started_utc: str | None
    scenario: str
    target: str
    mechanism: str
    fault: str | None
    #: what the fault changed, as it was read before and read back
    struck: tuple[Struck, ...]
    kernels: tuple[ResultKernel, ...]
    checks: Annotated[tuple[Check, ...], Meta(min_length=len(CHECK_IDS), max_length=len(CHECK_IDS))]
    phases: tuple[ResultPhase, ...]
    metrics: tuple[Metric, ...]
    incidents: tuple[Incident, ...]
    provenance: Provenance | None
    unreadable: Mapping[str, str]
    #: head of the chain of the run directory's index; null: the directory is not sealed
    seal: str | None
    artifacts: tuple[Artifact, ...]


def make_result(
    plan: Plan, evidence: Evidence, verdict: Verdict, artifacts: Iterable[Artifact] | None = None
) -> dict[str, object]:
    """Make the document as a value.

    :param artifacts: the run's files; None: those which the evidence names.
    """
    provenance = evidence.provenance
    kernels = [(0, plan.images.outgoing), *((hop.number, hop.incoming) for hop in plan.hops)]
    result = Result(
        schema=SCHEMA_ID,
        schema_version=SCHEMA_VERSION,
        outcome=verdict.outcome,
        exit_code=int(verdict.exit_code),  # type: ignore[arg-type]
        reason=verdict.reason,
        rolled_back=verdict.rolled_back,
        timed_out=verdict.timed_out,
        run_id=provenance.run_id if provenance else None,
        started_utc=provenance.started_utc if provenance else None,
        scenario=plan.scenario,
        target=plan.target,
        mechanism=plan.mechanism,
        fault=plan.fault.name if plan.fault else None,
        struck=tuple(each for hop in evidence.hops for each in hop.struck),
        kernels=tuple(ResultKernel.of(boot, image) for boot, image in kernels),
        checks=verdict.checks,
        phases=tuple(ResultPhase.of(phase) for hop in evidence.hops for phase in hop.phases),
        metrics=tuple(_whole(metric) for metric in verdict.metrics),
        incidents=evidence.incidents,
        provenance=provenance,
        unreadable=evidence.unreadable,
        seal=evidence.seal or None,
        artifacts=tuple(artifacts_of(evidence) if artifacts is None else artifacts),
    )
    document: dict[str, object] = codec.encode(result)
    return document


def _whole(metric: Metric) -> Metric:
    """Show a whole number as one."""
    if not metric.value.is_integer():
        return metric
    return dataclasses.replace(metric, value=int(metric.value))


def result_schema() -> dict[str, Any]:
    """Make the JSON Schema of ``result.json`` from its types."""
    made: dict[str, Any] = _as_written(msgspec.json.schema(Result))
    types = made["$defs"]
    top = types.pop("Result")
    types["Check"]["properties"]["id"] = {"enum": list(CHECK_IDS)}
    comment = "SPDX-License-Identifier: Apache-2.0"
    return {"$schema": _DIALECT, "$id": SCHEMA_ID, "$comment": comment, **top, "$defs": types}


def _as_written(node: Any) -> Any:
    """Say of each object that all its fields are written, and that others may be added."""
    if isinstance(node, list):
        return [_as_written(item) for item in node]
    if not isinstance(node, dict):
        return node
    fields = node.get("properties")
    kept = {
        key: _as_written(item)
        for key, item in node.items()
        if key != "default" and (key, item) != ("additionalProperties", False)
    }
    return {**kept, "required": list(fields)} if isinstance(fields, dict) else kept


def render_json(
    plan: Plan, evidence: Evidence, verdict: Verdict, artifacts: Iterable[Artifact] | None = None
) -> str:
    """Render the document; ends with a newline."""
    document = make_result(plan, evidence, verdict, artifacts)
    # escaped: a lone surrogate from a machine under test could not be written as UTF-8
    return json.dumps(document, indent=2) + "\n"
