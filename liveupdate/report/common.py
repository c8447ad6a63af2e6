# SPDX-License-Identifier: Apache-2.0
"""What several reports share. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from liveupdate.core.units import format_ns, format_size
from liveupdate.model.evidence import Artifact, Evidence, HopEvidence, KernelFacts, Struck
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import ExitCode, Metric, Verdict

#: everything but tab that a terminal or XML 1.0 should not see; texts may come from a console
_UNSAFE = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]"
    # marks that change the order in which text is shown, or are not shown
    r"|[\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)

#: names of the four gaps, in the order in which they are shown
GAPS = ("gap.vcpu", "gap.clock", "gap.network", "gap.storage")


def clean(text: str) -> str:
    """Make text from a machine under test safe to show: no escapes, no control characters."""
    return _UNSAFE.sub("", text.replace("\r\n", "\n").replace("\n", " "))


def say_seal(evidence: Evidence) -> str:
    """Say whether the run directory is sealed, and its seal; "": it was not read from one."""
    if evidence.seal is None:
        return "unsealed: the run directory is of an earlier version, what was taken out is unseen"
    return f"seal {evidence.seal}" if evidence.seal else ""


def say_kernel(facts: KernelFacts | None) -> str:
    """Format a kernel's release and build id; "unknown" when there are no facts."""
    if facts is None:
        return "unknown"
    return f"{facts.release} (build id {facts.build_id or 'none'})"


def say_outcome(verdict: Verdict) -> str:
    """Return the headline; an update that was rolled back with no loss is not called a failure."""
    if verdict.exit_code is ExitCode.ROLLED_BACK:
        return "ROLLED BACK"
    return verdict.outcome.value


def say_struck(struck: Struck) -> str:
    """Format what a fault changed."""
    changed = f"{struck.what} ({struck.where}): {struck.before} became {struck.after}"
    return f"{struck.fault}: {changed}; seen from {struck.view}"


def say_metric(metric: Metric) -> str:
    """Format a metric's value for people."""
    return say_value(metric.value, metric.unit)


def say_value(value: float, unit: str) -> str:
    """Format a value that is in ns, in bytes, or a number of something."""
    sign = "-" if value < 0 else ""
    if unit == "ns":
        return sign + format_ns(abs(value))
    if unit == "bytes":
        return sign + format_size(abs(round(value)))
    return f"{value:.0f} {unit}"


def find_metrics(verdict: Verdict, name: str, **labels: str) -> Iterator[Metric]:
    """Find the metrics of that name which carry at least these labels."""
    for metric in verdict.metrics:
        if metric.name == name and labels.items() <= metric.labels.items():
            yield metric


def guests_of(plan: Plan, hop: HopEvidence) -> list[str]:
    """Names of guests, the plan's first, then any that only the evidence knows."""
    names = [guest.name for guest in plan.guests]
    seen = [trace.guest for trace in hop.guests] + list(hop.paused_ns)
    return list(dict.fromkeys([*names, *seen]))


def artifacts_of(evidence: Evidence) -> tuple[Artifact, ...]:
    """Return the raw files that the evidence was made from, each path once."""
    found: dict[str, Artifact] = {}
    for artifact in _all_artifacts(evidence):
        if artifact is not None:
            found.setdefault(artifact.path, artifact)
    return tuple(found[path] for path in sorted(found))


def _all_artifacts(evidence: Evidence) -> Iterable[Artifact | None]:
    for hop in evidence.hops:
        for memory in hop.memory:
            for table in (memory.freeze, memory.boot, memory.pfns_before, memory.pfns_after):
                yield table.artifact if table else None
        for trace in hop.guests:
            yield from trace.artifacts
        for device in hop.devices.values():
            yield from device.artifacts
