# SPDX-License-Identifier: Apache-2.0
"""The table of evidence: what it says of fields, checks and files is so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from liveupdate.evidence import RunDir
from liveupdate.judging.context import Context
from liveupdate.judging.table import CHECK_IDS
from liveupdate.model import slots
from liveupdate.model.base import Value
from liveupdate.model.costs import HopCosts
from liveupdate.model.evidence import (
    DeviceTrace,
    Evidence,
    GuestMemory,
    GuestTrace,
    HopEvidence,
    IommuEvidence,
)
from liveupdate.model.slots import Document, Series, Slot
from tests.support import evidence_builder as make

DOCUMENT = Path(__file__).parents[3] / "docs" / "run-directory.md"
PARTS: Mapping[str, type] = {
    "costs": HopCosts,
    "memory": GuestMemory,
    "guests": GuestTrace,
    "devices": DeviceTrace,
    "iommu": IommuEvidence,
}
NAMES = [slot.place for slot in slots.SLOTS]


def owner_of(slot: Slot[Any]) -> type:
    part = slot.field.rpartition(".")[0]
    return PARTS[part] if part else HopEvidence if "{hop}" in slot.place else Evidence


@pytest.mark.parametrize("slot", slots.SLOTS, ids=NAMES)
def test_a_slot_fills_a_field_of_its_type(slot: Slot[Any]) -> None:
    if slot.unpack is not None:
        return
    hint = get_type_hints(owner_of(slot))[slot.field.rpartition(".")[2]]
    held = tuple[slot.holds, ...] if isinstance(slot, Series) else slot.holds  # type: ignore[name-defined]
    assert hint == held or held in get_args(hint)


@pytest.mark.parametrize("slot", slots.SLOTS, ids=NAMES)
def test_a_path_belongs_to_one_slot(slot: Slot[Any]) -> None:
    path = slot.path(12, "nic0")
    match = slot.pattern.fullmatch(path)
    assert match is not None
    assert match.groupdict() in ({"hop": "12", "of": "nic0"}, {"hop": "12"}, {})
    assert [each for each in slots.SLOTS if each.pattern.fullmatch(path)] == [slot]
    assert path.endswith(".jsonl" if isinstance(slot, Series) else ".json")


def test_the_checks_that_want_something_exist() -> None:
    wanted = {check for slot in slots.SLOTS for check in slot.checks}
    # a blackout is measured from ticks and marks, and only judged where a bound was set
    assert set(CHECK_IDS) - wanted == {"budget.blackout"}
    assert wanted <= set(CHECK_IDS)


class Noise(Value, frozen=True, kw_only=True):
    """How loud a fan is."""

    decibels: int


def test_a_new_kind_of_evidence_is_a_type_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fan = Document("evidence/hop-{hop}/fan.json", Noise)
    heard = Series("evidence/hop-{hop}/{guest}/noises.jsonl", Noise)
    monkeypatch.setattr(slots, "SLOTS", (*slots.SLOTS, fan, heard))
    record = RunDir.create(tmp_path, plan=make.make_plan(), scenario="")
    record.put(fan, Noise(decibels=40), 1)
    record.add(heard, [Noise(decibels=1)], 1, "vm0")
    record.add(heard, [Noise(decibels=2)], 1, "vm0")
    record.close()
    evidence = RunDir.open(record.path).load_evidence()
    hop = Context(make.make_plan(), evidence).hop(1)
    assert hop is not None and evidence.unreadable == {}
    assert fan.read_from(hop) == Noise(decibels=40)
    assert heard.read_from(hop, "vm0") == (Noise(decibels=1), Noise(decibels=2))
    assert heard.read_from(hop, "vm1") == ()
    spoilt = record.path / fan.path(1)
    spoilt.write_text(spoilt.read_text().replace("40", "41"))
    assert "altered" in RunDir.open(record.path).load_evidence().unreadable[fan.path(1)]


def summary(slot: Slot[Any]) -> str:
    """The first sentence of its type's docstring."""
    holds = get_args(slot.holds)[0] if get_args(slot.holds) else slot.holds
    return re.split(r"[.;](?:\s|$)", holds.__doc__ or "")[0].replace("\n    ", " ")


def table() -> str:
    """The table of evidence as it has to stand in the document."""
    lines = ["| file | holds | wanted by |", "|---|---|---|"]
    for slot in slots.SLOTS:
        files = "<br>".join(f"`{each}`" for each in (slot.place, slot.raw_place) if each)
        holds = "the update was given up" if slot is slots.ROLLED_BACK else summary(slot)
        checks = " ".join(f"`{check}`" for check in slot.checks)
        lines.append(f"| {files} | {holds} | {checks} |")
    return "\n".join(lines) + "\n"


def test_the_document_has_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert table() in text, f"{DOCUMENT} has to hold this table:\n{table()}"
