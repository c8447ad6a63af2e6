# SPDX-License-Identifier: Apache-2.0
"""Tests of the VT-d table decoders on tables that are well formed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from liveupdate.formats.iommu import (
    READ,
    SUPERVISOR,
    WRITE,
    IommuFormatError,
    MappingSet,
    Requester,
    Run,
    Translation,
    parse_bdf,
)
from liveupdate.formats.vtd.paging import find_leaf
from liveupdate.formats.vtd.regs import RootPointer
from liveupdate.formats.vtd.tables import decode_pasid_entry, decode_unit, find_entry
from tests.support.iommu_tables import (
    Memory,
    Page,
    VtdPageTable,
    VtdUnit,
    merge_pages,
    page_lists,
)

IGB = parse_bdf("01:00.0")
ADDRESS_BITS = {3: 39, 4: 48, 5: 57}


def legacy_unit(pages: list[Page], levels: int = 4) -> tuple[Memory, VtdUnit, VtdPageTable]:
    memory = Memory()
    unit = VtdUnit(memory)
    table = VtdPageTable(memory, levels=levels)
    table.map_pages(pages)
    unit.set_legacy(IGB.bus, IGB.devfn, top=table.top, levels=levels)
    return memory, unit, table


def only_set(memory: Memory, unit: VtdUnit) -> MappingSet:
    decoded = decode_unit(memory, unit.rtaddr)
    assert decoded.is_complete, (decoded.faults, [item.faults for item in decoded.sets])
    (found,) = decoded.sets
    return found


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_second_stage_mappings_are_found_as_they_were_made(levels: int) -> None:
    @settings(max_examples=25, deadline=None)
    @given(page_lists(address_bits=ADDRESS_BITS[levels]))
    def check(pages: list[Page]) -> None:
        memory, unit, table = legacy_unit(pages, levels)
        found = only_set(memory, unit)
        assert found.runs == merge_pages(pages)
        assert found.requester == IGB
        assert found.binding.translation is Translation.SECOND_STAGE
        assert (found.binding.domain_id, found.binding.levels) == (7, levels)
        assert found.binding.top == table.top

    check()


@pytest.mark.parametrize("levels", [4, 5])
def test_first_stage_mappings_are_found_as_they_were_made(levels: int) -> None:
    accesses = (READ, READ | WRITE, READ | SUPERVISOR, READ | WRITE | SUPERVISOR)

    @settings(max_examples=25, deadline=None)
    @given(page_lists(accesses=accesses, address_bits=ADDRESS_BITS[levels] - 1))
    def check(pages: list[Page]) -> None:
        memory = Memory()
        unit = VtdUnit(memory, is_scalable=True)
        table = VtdPageTable(memory, levels=levels, is_first_stage=True)
        table.map_pages(pages)
        directory = unit.set_directory(IGB.bus, IGB.devfn)
        unit.set_pasid(directory, 0, kind=1, first_top=table.top, first_levels=levels)
        found = only_set(memory, unit)
        assert found.runs == merge_pages(pages)
        assert found.binding.translation is Translation.FIRST_STAGE
        assert found.requester == parse_bdf("01:00.0", pasid=0)

    check()


@pytest.mark.parametrize(("levels", "bits"), [(4, 48), (5, 57)])
def test_upper_half_of_a_first_stage_is_sign_extended(levels: int, bits: int) -> None:
    memory = Memory()
    unit = VtdUnit(memory, is_scalable=True)
    table = VtdPageTable(memory, levels=levels, is_first_stage=True)
    table.map_page(0, 0x1000, READ, 4096)
    table.map_page((1 << bits) - 4096, 0x2000, READ | WRITE, 4096)
    directory = unit.set_directory(IGB.bus, IGB.devfn)
    unit.set_pasid(directory, 0, kind=1, first_top=table.top, first_levels=levels)
    assert only_set(memory, unit).runs == (
        Run(0, 0x1000, 4096, READ, 4096),
        Run((1 << 64) - 4096, 0x2000, 4096, READ | WRITE, 4096),
    )


def test_access_is_what_every_level_allows() -> None:
    pages = [
        Page(0x1000, 0x5000, READ | WRITE, 4096),
        Page(0x2000, 0x6000, READ, 4096),
        Page(0x3000, 0x7000, WRITE, 4096),
    ]
    memory, unit, table = legacy_unit(pages)
    upper = table.slot(0x1000, 2)
    memory.put(upper, memory.get(upper) & ~2)
    # the write-only page cannot be reached at all, the two others can be read
    assert only_set(memory, unit).runs == (Run(0x1000, 0x5000, 0x2000, READ, 4096),)
    memory.put(upper, memory.get(upper) & ~3 | 2)
    assert only_set(memory, unit).runs == (
        Run(0x1000, 0x5000, 0x1000, WRITE, 4096),
        Run(0x3000, 0x7000, 0x1000, WRITE, 4096),
    )


def test_supervisor_at_any_level_closes_a_first_stage_page_to_users() -> None:
    memory = Memory()
    unit = VtdUnit(memory, is_scalable=True)
    table = VtdPageTable(memory, is_first_stage=True)
    table.map_page(0x20_0000, 0x40_0000, READ | WRITE, 1 << 21)
    upper = table.slot(0x20_0000, 4)
    memory.put(upper, memory.get(upper) & ~4)
    directory = unit.set_directory(IGB.bus, IGB.devfn)
    unit.set_pasid(directory, 0, kind=1, first_top=table.top)
    (run,) = only_set(memory, unit).runs
    assert run.access == READ | WRITE | SUPERVISOR


def test_pages_of_different_size_do_not_merge() -> None:
    pages = [Page(0x1F_F000, 0x3F_F000, 3, 4096), Page(0x20_0000, 0x40_0000, 3, 1 << 21)]
    memory, unit, _ = legacy_unit(pages)
    assert [run.page for run in only_set(memory, unit).runs] == [4096, 1 << 21]


def test_entries_without_access_are_not_present_whatever_else_they_hold() -> None:
    memory, unit, table = legacy_unit([Page(0x1000, 0x5000, 3, 4096)])
    memory.put(table.slot(0x2000, 1), 0xF_F000 | 1 << 11 | 1 << 62)
    memory.put(table.slot(1 << 39, 4), 0x7777_F000 | 1 << 7)
    assert only_set(memory, unit).runs == (Run(0x1000, 0x5000, 0x1000, 3, 4096),)


def test_ignored_bits_do_not_reach_the_address() -> None:
    memory, unit, table = legacy_unit([])
    ignored = 1 << 63 | 0x3FF << 52 | 1 << 11 | 0x7F << 2 & ~(1 << 7)
    memory.put(table.slot(0x1000, 1), 0x5000 | 3 | ignored)
    assert only_set(memory, unit).runs == (Run(0x1000, 0x5000, 0x1000, 3, 4096),)


def test_first_stage_large_page_may_hold_its_pat_bit() -> None:
    memory = Memory()
    unit = VtdUnit(memory, is_scalable=True)
    table = VtdPageTable(memory, is_first_stage=True)
    memory.put(table.slot(0, 2), 0x40_0000 | 1 << 12 | 1 << 7 | 7)
    directory = unit.set_directory(IGB.bus, IGB.devfn)
    unit.set_pasid(directory, 0, kind=1, first_top=table.top)
    assert only_set(memory, unit).runs == (Run(0, 0x40_0000, 1 << 21, READ | WRITE, 1 << 21),)


def test_all_devices_of_a_unit_are_found_and_a_shared_domain_is_walked_once() -> None:
    memory, unit, table = legacy_unit([Page(0x1000, 0x5000, 3, 4096)])
    unit.set_legacy(0, 0xFF, top=table.top)
    unit.set_legacy(255, 8, kind=2, domain=1)
    decoded = decode_unit(memory, unit.rtaddr, segment=2)
    assert [item.requester.bdf for item in decoded.sets] == [
        "0002:00:1f.7",
        "0002:01:00.0",
        "0002:ff:01.0",
    ]
    assert decoded.sets[0].runs is decoded.sets[1].runs
    assert decoded.sets[2].binding.translation is Translation.PASS_THROUGH
    assert decoded.sets[2].binding.domain_id == 1


def test_device_tlb_contexts_are_second_stage() -> None:
    memory, unit, table = legacy_unit([Page(0x1000, 0x5000, 3, 4096)])
    unit.set_legacy(IGB.bus, IGB.devfn, top=table.top, kind=1)
    assert only_set(memory, unit).binding.translation is Translation.SECOND_STAGE


def test_only_the_devices_asked_for_are_decoded_and_absent_ones_are_blocked() -> None:
    memory, unit, table = legacy_unit([Page(0x1000, 0x5000, 3, 4096)])
    unit.set_legacy(2, 0, top=table.top)
    absent, no_bus = parse_bdf("01:00.1"), parse_bdf("77:00.0")
    decoded = decode_unit(memory, unit.rtaddr, only=[absent, IGB, no_bus])
    assert decoded.is_complete
    assert [(item.requester, item.binding.translation) for item in decoded.sets] == [
        (IGB, Translation.SECOND_STAGE),
        (absent, Translation.BLOCKED),
        (no_bus, Translation.BLOCKED),
    ]
    found = next(item for item in decoded.sets if item.requester == IGB)
    assert found.runs
    assert parse_bdf("02:00.0") not in [item.requester for item in decoded.sets]


def test_scalable_mode_finds_every_pasid_of_both_halves_of_a_bus() -> None:
    memory = Memory()
    unit = VtdUnit(memory, is_scalable=True)
    tables = [VtdPageTable(memory) for _ in range(3)]
    for number, table in enumerate(tables):
        table.map_page(0x1000, 0x10_0000 * number, 3, 4096)
    low = unit.set_directory(3, 0x7F, size_code=0)
    high = unit.set_directory(3, 0x80, size_code=7)
    unit.set_pasid(low, 0, top=tables[0].top, domain=10)
    unit.set_pasid(low, 128 * 64 - 1, top=tables[1].top, domain=11)
    unit.set_pasid(high, (1 << 20) - 1, top=tables[2].top, domain=12)
    decoded = decode_unit(memory, unit.rtaddr)
    assert decoded.is_complete, decoded.faults
    assert [
        (item.requester.devfn, item.requester.pasid, item.binding.domain_id, item.runs[0].phys)
        for item in decoded.sets
    ] == [(0x7F, 0, 10, 0), (0x7F, 8191, 11, 0x10_0000), (0x80, 0xFFFFF, 12, 0x20_0000)]


def test_nested_and_pass_through_pasids_are_told_apart() -> None:
    memory = Memory()
    unit = VtdUnit(memory, is_scalable=True)
    table = VtdPageTable(memory, levels=3)
    table.map_page(0x1000, 0x5000, READ, 4096)
    directory = unit.set_directory(IGB.bus, IGB.devfn)
    unit.set_pasid(directory, 0, kind=3, top=table.top, levels=3, first_top=0xABC000)
    unit.set_pasid(directory, 1, kind=4, domain=1)
    nested, through = decode_unit(memory, unit.rtaddr).sets
    assert nested.binding.translation is Translation.NESTED
    assert nested.binding.first_top == 0xABC000
    assert nested.runs == (Run(0x1000, 0x5000, 0x1000, READ, 4096),)
    assert (through.binding.translation, through.runs) == (Translation.PASS_THROUGH, ())


def test_abort_mode_blocks_everyone() -> None:
    memory, unit, _ = legacy_unit([Page(0x1000, 0x5000, 3, 4096)])
    decoded = decode_unit(memory, unit.root | 3 << 10, only=[IGB])
    assert [item.binding.translation for item in decoded.sets] == [Translation.BLOCKED]
    assert decode_unit(memory, unit.root | 3 << 10).sets == ()


def test_root_pointer_is_split() -> None:
    root = RootPointer.decode(0x1234_5000 | 1 << 10)
    assert (root.address, root.is_scalable) == (0x1234_5000, True)


def test_pasid_entry_of_another_size_is_refused() -> None:
    with pytest.raises(IommuFormatError, match="8"):
        decode_pasid_entry(Requester(bus=0, devfn=0), (1, 2, 3))


@pytest.mark.parametrize("is_scalable", [False, True])
@pytest.mark.parametrize("devfn", [0, 0x7F, 0x80, 0xFF])
def test_context_entry_is_found_by_its_address(is_scalable: bool, devfn: int) -> None:
    memory = Memory()
    unit = VtdUnit(memory, is_scalable=is_scalable)
    address = unit.context_address(1, devfn)
    requester = Requester(bus=1, devfn=devfn)
    assert find_entry(memory, unit.rtaddr, requester) == address
    with pytest.raises(IommuFormatError, match="no context table for 0000:02:"):
        find_entry(memory, unit.rtaddr, Requester(bus=2, devfn=devfn))


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_leaf_of_an_address_is_found(levels: int) -> None:
    memory, _, table = legacy_unit(
        [Page(0x1000, 0x5000, 3, 4096), Page(0x20_0000, 0x40_0000, 3, 1 << 21)], levels
    )
    assert find_leaf(memory, table.top, levels, 0x1FFF) == table.slot(0x1000, 1)
    assert find_leaf(memory, table.top, levels, 0x21_2345) == table.slot(0x20_0000, 2)
    for iova in (0, 0x40_0000, 1 << 38):
        with pytest.raises(IommuFormatError, match=f"nothing maps {iova:#x}"):
            find_leaf(memory, table.top, levels, iova)


def test_walking_can_be_left_out() -> None:
    memory, unit, table = legacy_unit([Page(0x1000, 0x5000, 3, 4096)])
    whole = decode_unit(memory, unit.rtaddr, only=[IGB])
    bare = decode_unit(memory, unit.rtaddr, only=[IGB], is_walking=False)
    assert bare.sets[0].binding == whole.sets[0].binding
    assert (bare.sets[0].runs, bool(whole.sets[0].runs)) == ((), True)
    assert bare.paging_fingerprint().pages == ()
    assert len(whole.paging_fingerprint().pages) == 4
    assert table.top in [page.phys for page in whole.paging_fingerprint().pages]
