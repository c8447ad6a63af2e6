# SPDX-License-Identifier: Apache-2.0
"""Tests of the inside view: what debugfs prints must decode to what memory decodes to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from liveupdate.formats.iommu import (
    READ,
    SUPERVISOR,
    WRITE,
    Binding,
    FaultKind,
    IommuFormatError,
    Requester,
    Translation,
    parse_bdf,
)
from liveupdate.formats.vtd.debugfs import parse_dmar_translation, parse_domain_translation
from liveupdate.formats.vtd.tables import decode_unit
from tests.support.iommu_debugfs import print_domain, print_unit
from tests.support.iommu_tables import Memory, Page, VtdPageTable, VtdUnit, page_lists

IGB = parse_bdf("01:00.0")


def second_stage() -> tuple[Memory, VtdUnit, VtdPageTable]:
    memory = Memory()
    unit = VtdUnit(memory)
    table = VtdPageTable(memory)
    table.map_page(0x1000, 0x5000, READ | WRITE, 4096)
    table.map_page(0x2000, 0x6000, READ | WRITE, 4096)
    table.map_page(0x20_0000, 0x40_0000, READ, 1 << 21)
    unit.set_legacy(IGB.bus, IGB.devfn, top=table.top)
    return memory, unit, table


def bindings(memory: Memory, unit: VtdUnit) -> dict[Requester, Binding]:
    (parsed,) = parse_dmar_translation(print_unit(memory, unit))
    assert parsed.root == unit.root and not parsed.faults
    return {binding.requester: binding for binding in parsed.bindings}


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_inside_and_outside_agree_on_a_second_stage(levels: int) -> None:
    @settings(max_examples=10, deadline=None)
    @given(page_lists(address_bits={3: 39, 4: 48, 5: 57}[levels], max_pages=10))
    def check(pages: list[Page]) -> None:
        memory = Memory()
        unit = VtdUnit(memory)
        table = VtdPageTable(memory, levels=levels)
        table.map_pages(pages)
        unit.set_legacy(IGB.bus, IGB.devfn, top=table.top, levels=levels)
        text = print_domain(memory, IGB.bdf, table.top, levels)
        inside = parse_domain_translation(text, bindings(memory, unit)[IGB])
        assert (inside,) == decode_unit(memory, unit.rtaddr).sets

    check()


@pytest.mark.parametrize("levels", [4, 5])
def test_inside_and_outside_agree_on_a_first_stage(levels: int) -> None:
    accesses = (READ, READ | WRITE, READ | SUPERVISOR)
    requester = parse_bdf("01:00.0", pasid=3)

    @settings(max_examples=10, deadline=None)
    @given(page_lists(accesses=accesses, address_bits={4: 48, 5: 57}[levels], max_pages=10))
    def check(pages: list[Page]) -> None:
        memory = Memory()
        unit = VtdUnit(memory, is_scalable=True)
        table = VtdPageTable(memory, levels=levels, is_first_stage=True)
        table.map_pages(pages)
        directory = unit.set_directory(IGB.bus, IGB.devfn)
        unit.set_pasid(directory, 3, kind=1, first_top=table.top, first_levels=levels)
        text = print_domain(memory, IGB.bdf, table.top, levels, pasid=3)
        inside = parse_domain_translation(text, bindings(memory, unit)[requester])
        assert (inside,) == decode_unit(memory, unit.rtaddr).sets

    check()


def test_bindings_of_every_kind_agree() -> None:
    memory = Memory()
    unit = VtdUnit(memory, is_scalable=True)
    directory = unit.set_directory(IGB.bus, IGB.devfn)
    unit.set_pasid(directory, 0, kind=4, domain=1)
    unit.set_pasid(directory, 64, kind=3, top=memory.alloc(), first_top=0x7000, domain=3)
    unit.set_pasid(unit.set_directory(0xFF, 0xFF), 5, kind=2, top=memory.alloc(), levels=5)
    outside = {found.requester: found.binding for found in decode_unit(memory, unit.rtaddr).sets}
    assert bindings(memory, unit) == outside
    assert len(outside) == 3


def test_several_units_and_one_that_is_off() -> None:
    memory, unit, _ = second_stage()
    text = "DMA Remapping is not enabled on dmar0\n" + print_unit(memory, unit, "dmar1")
    off, on = parse_dmar_translation(text, segment=1)
    assert (off.name, off.root, off.bindings) == ("dmar0", None, ())
    assert (on.name, on.root) == ("dmar1", unit.root)
    assert [each.requester for each in on.bindings] == [parse_bdf("0001:01:00.0")]


def test_entry_that_makes_no_sense_is_a_fault_of_the_unit() -> None:
    memory = Memory()
    unit = VtdUnit(memory)
    unit.set_legacy(IGB.bus, IGB.devfn, kind=3)
    (parsed,) = parse_dmar_translation(print_unit(memory, unit))
    assert parsed.bindings[0].translation is Translation.UNKNOWN
    assert parsed.faults[0].kind is FaultKind.RESERVED
    assert "01:00.0" in parsed.faults[0].detail


def test_every_cut_through_the_listing_is_noticed_unless_it_is_between_lines() -> None:
    memory, unit, table = second_stage()
    binding = bindings(memory, unit)[IGB]
    text = print_domain(memory, IGB.bdf, table.top, 4)
    whole = parse_domain_translation(text, binding)
    for length in range(len(text) - 1):
        if text[length] == "\n" or text[length - 1] == "\n":
            continue
        if text[: length + 1].count("\n") < 2 and "IOVA" in text[:length]:
            # the column titles carry nothing
            continue
        with pytest.raises(IommuFormatError):
            parse_domain_translation(text[:length], binding)
    assert whole.runs


def test_every_cut_through_the_unit_listing_is_noticed_unless_it_is_between_lines() -> None:
    memory, unit, _ = second_stage()
    text = print_unit(memory, unit)
    start = text.index("01:00.0")
    for length in range(start + 1, len(text) - 2):
        with pytest.raises(IommuFormatError):
            parse_dmar_translation(text[:length])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Device 0000:01:00.0", "Device 0000:01:00.1"),
        ("Device 0000:01:00.0 @", "Device 0000:01:00.0 with pasid 0 @"),
        ("@0x", "@0x1"),
        ("IOVA_PFN", "IOVA"),
        ("0x0000000000002 |", "0x0000000000000 |"),
        ("0x0000000000002 |", "0x0000000000002 !"),
        ("0x0000000000002 |", "garbage |"),
    ],
)
def test_listing_of_something_else_is_refused(old: str, new: str) -> None:
    memory, unit, table = second_stage()
    text = print_domain(memory, IGB.bdf, table.top, 4)
    assert old in text
    with pytest.raises(IommuFormatError, match="line"):
        parse_domain_translation(text.replace(old, new), bindings(memory, unit)[IGB])


def test_empty_listing_means_no_tables_and_nothing_else() -> None:
    memory, unit, table = second_stage()
    with pytest.raises(IommuFormatError, match="no page tables"):
        parse_domain_translation("", bindings(memory, unit)[IGB])
    through = Binding(requester=IGB, translation=Translation.PASS_THROUGH, domain_id=1)
    assert parse_domain_translation("\n", through).runs == ()
    with pytest.raises(IommuFormatError, match="pass-through"):
        parse_domain_translation(print_domain(memory, IGB.bdf, table.top, 4), through)
