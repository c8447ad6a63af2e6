# SPDX-License-Identifier: Apache-2.0
"""Evidence taken apart by the table of slots, to be put into a run directory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from liveupdate.evidence import RunDir
from liveupdate.model import slots
from liveupdate.model.evidence import Evidence, Mark, SshFacts, VmmStatus
from liveupdate.model.slots import Document, Series, Slot


def values_of(evidence: Evidence) -> Iterator[tuple[Slot[Any], Any, int, str]]:
    """Yield what evidence has: slot, value, hop, and the guest or device."""
    if evidence.provenance is not None:
        yield slots.PROVENANCE, evidence.provenance, 0, ""
    yield slots.INCIDENTS, evidence.incidents, 0, ""
    for hop in evidence.hops:
        parts: dict[str, list[tuple[str, object]]] = {
            "": [("", hop)],
            "costs": [("", hop.costs)],
            "iommu": [("", hop.iommu)] if hop.iommu else [],
            "memory": [(each.guest, each) for each in hop.memory],
            "guests": [(each.guest, each) for each in hop.guests],
            "devices": list(hop.devices.items()),
        }
        for slot in slots.SLOTS:
            part, _, field = slot.field.rpartition(".")
            for of, owner in parts[part] if "{hop}" in slot.place else []:
                value = value_of(slot, owner, field)
                if value is not None:
                    yield slot, value, hop.number, of


def value_of(slot: Slot[Any], owner: Any, field: str) -> object:
    if slot is slots.SSH:
        return SshFacts(boot_id=owner.ssh_boot_id, nonce_ok=owner.ssh_nonce_ok)
    if slot is slots.VMM:
        return VmmStatus(status=owner.vmm_status)
    if slot is slots.MARKS:
        return tuple(
            Mark(what=what, guest=guest, at_ns=at_ns)
            for what, times in (("paused", owner.paused_ns), ("resumed", owner.resumed_ns))
            for guest, at_ns in times.items()
        )
    return getattr(owner, field)


def put(record: RunDir, evidence: Evidence) -> None:
    """Put everything there is."""
    for slot, value, hop, of in values_of(evidence):
        put_value(record, slot, value, hop, of)


def put_value(record: RunDir, slot: Slot[Any], value: Any, hop: int, of: str) -> None:
    if slot is slots.INCIDENTS:
        for incident in value:
            record.add_incident(incident)
    elif isinstance(slot, Series):
        record.add(slot, value, hop, of)
    else:
        assert isinstance(slot, Document)
        record.put(slot, value, hop, of)


def files_of(evidence: Evidence) -> Iterator[tuple[str, Slot[Any]]]:
    """Yield the files of evidence, those of bytes too."""
    for slot, value, hop, of in values_of(evidence):
        if value or not isinstance(slot, Series):
            yield slot.path(hop, of), slot
        for each in value if isinstance(slot, Series) else (value,):
            if slot.raw_field:
                yield slot.raw_path(hop, of, each), slot
