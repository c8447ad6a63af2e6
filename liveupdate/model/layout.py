# SPDX-License-Identifier: Apache-2.0
"""Names of the files of a run directory, relative to it; for the store, the judge and reports.

::

    scenario.toml  plan.json  provenance.json  journal.jsonl  events.jsonl
    boot-N/console.log
    evidence/index.jsonl  evidence/incidents.jsonl  evidence/rolled-back.json
    evidence/hop-N/{before,after,ssh}.json  evidence/hop-N/{sessions,phases,marks}.jsonl
    evidence/hop-N/costs-{before,after}.json  evidence/hop-N/handed-over.json
    evidence/hop-N/device-DEVICE.json  evidence/hop-N/frames-DEVICE.jsonl
    evidence/hop-N/GUEST/{freeze,boot}.{json,xxh3}  .../pfns-{before,after}.{json,u64}
    evidence/hop-N/GUEST/{ticks,echoes,journal,pings}.jsonl
    evidence/hop-N/GUEST/{guest,vmm,watched,journal-before,journal-after,pattern}.json
    evidence/iommu/hop-N/{devices,watch}.json
    evidence/iommu/hop-N/{samples,bindings,tables,events}.jsonl
    evidence/iommu/hop-N/{mappings,configs}.jsonl  .../VIEW-MOMENT-REQUESTER.runs
    evidence/host-record.jsonl
    result.json  junit.xml  report.html
"""

from __future__ import annotations

SCENARIO = "scenario.toml"
PLAN = "plan.json"
PROVENANCE = "provenance.json"
JOURNAL = "journal.jsonl"
EVENTS = "events.jsonl"
RESULT = "result.json"
JUNIT = "junit.xml"
REPORT = "report.html"
EVIDENCE = "evidence"
INDEX = f"{EVIDENCE}/index.jsonl"
INCIDENTS = f"{EVIDENCE}/incidents.jsonl"
ROLLED_BACK = f"{EVIDENCE}/rolled-back.json"
#: what the host's agent recorded of an operator's update, as it came
HOST_RECORD = f"{EVIDENCE}/host-record.jsonl"

#: one JSON array per line, appended while the guest is watched
SERIES = ("ticks", "echoes", "journal", "pings")
#: small facts about one guest, one document each
GUEST_FACTS = ("vmm", "watched", "journal-before", "journal-after", "pattern")


def console(boot: int) -> str:
    """Console log of the ``boot``-th kernel, 0 being the first."""
    return f"boot-{boot}/console.log"


def hop_dir(hop: int) -> str:
    """Directory of the evidence of a hop."""
    return f"{EVIDENCE}/hop-{hop}"


def hop_file(hop: int, name: str) -> str:
    """``name`` with suffix, such as ``after.json``."""
    return f"{hop_dir(hop)}/{name}"


def guest_file(hop: int, guest: str, name: str) -> str:
    """``name`` with suffix, such as ``freeze.xxh3``."""
    return f"{hop_dir(hop)}/{guest}/{name}"


def device(hop: int, name: str) -> str:
    """Facts about a passed-through device."""
    return hop_file(hop, f"device-{name}.json")


def frames(hop: int, name: str) -> str:
    """The frames sent to a device, one JSON array per line."""
    return hop_file(hop, f"frames-{name}.jsonl")


def digests(hop: int, guest: str, moment: str) -> str:
    """Raw page digests; ``moment`` is freeze or boot."""
    return guest_file(hop, guest, f"{moment}.xxh3")


def pfns(hop: int, guest: str, moment: str) -> str:
    """Raw page frame numbers; ``moment`` is before or after."""
    return guest_file(hop, guest, f"pfns-{moment}.u64")


def series(hop: int, guest: str, name: str) -> str:
    """``name`` is one of :data:`SERIES`."""
    return guest_file(hop, guest, f"{name}.jsonl")


def iommu_file(hop: int, name: str) -> str:
    """What was seen of devices from outside; ``name`` with suffix, such as ``samples.jsonl``."""
    return f"{EVIDENCE}/iommu/hop-{hop}/{name}"


def runs(hop: int, view: str, moment: str, requester: str) -> str:
    """Packed mappings of one requester; ``view`` is outside or inside."""
    return iommu_file(hop, f"{view}-{moment}-{requester.replace(' ', '-')}.runs")
