# SPDX-License-Identifier: Apache-2.0
"""Tests of the VT-d decoders on tables that are cut, wrong or meant to hurt."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveupdate.formats.iommu import FaultKind, TableFault, Translation, parse_bdf
from liveupdate.formats.iommu_walk import WalkLimits
from liveupdate.formats.vtd.tables import decode_unit
from tests.support.iommu_tables import PAGE, RAM_BYTES, Memory, VtdPageTable, VtdUnit

IGB = parse_bdf("01:00.0")


class Testbed:
    """A legacy unit with one device and two mapped pages."""

    __test__ = False

    def __init__(self, *, is_scalable: bool = False) -> None:
        self.memory = Memory()
        self.unit = VtdUnit(self.memory, is_scalable=is_scalable)
        self.table = VtdPageTable(self.memory)
        self.table.map_page(0x1000, 0x5000, 3, 4096)
        self.table.map_page(0x4000_0000, 0x9000, 3, 4096)
        if is_scalable:
            self.directory = self.unit.set_directory(IGB.bus, IGB.devfn)
            self.entry = self.unit.set_pasid(self.directory, 0, top=self.table.top)
        else:
            self.entry = self.unit.set_legacy(IGB.bus, IGB.devfn, top=self.table.top)

    def faults(self, limits: WalkLimits | None = None) -> tuple[TableFault, ...]:
        decoded = decode_unit(self.memory, self.unit.rtaddr, limits=limits)
        assert not decoded.is_complete
        return (*decoded.faults, *(fault for item in decoded.sets for fault in item.faults))

    def only_fault(self) -> TableFault:
        (fault,) = self.faults()
        return fault


def test_table_outside_ram_is_a_fault_and_the_rest_is_still_walked() -> None:
    bed = Testbed()
    bed.memory.put(bed.table.slot(0x4000_0000, 2), RAM_BYTES + PAGE | 3)
    fault = bed.only_fault()
    assert (fault.kind, fault.address, fault.level) == (
        FaultKind.UNREADABLE,
        RAM_BYTES + PAGE,
        1,
    )
    (found,) = decode_unit(bed.memory, bed.unit.rtaddr).sets
    assert [run.phys for run in found.runs] == [0x5000]


def test_leaf_outside_ram_is_a_mapping_like_any_other() -> None:
    bed = Testbed()
    bed.memory.put(bed.table.slot(0x1000, 1), RAM_BYTES * 4 | 3)
    decoded = decode_unit(bed.memory, bed.unit.rtaddr)
    assert decoded.is_complete
    assert decoded.sets[0].runs[0].phys == RAM_BYTES * 4


@pytest.mark.parametrize("level", [2, 3, 4])
def test_table_that_points_back_is_a_loop(level: int) -> None:
    bed = Testbed()
    slot = bed.table.slot(0x1000, level)
    bed.memory.put(slot, bed.table.top | 3)
    fault = bed.only_fault()
    assert (fault.kind, fault.address, fault.level) == (FaultKind.LOOP, slot, level)


@pytest.mark.parametrize("level", [4, 5])
def test_large_page_above_level_3_is_reserved(level: int) -> None:
    memory = Memory()
    unit = VtdUnit(memory)
    table = VtdPageTable(memory, levels=5)
    slot = table.slot(0x1000, level)
    memory.put(slot, 1 << 7 | 3)
    unit.set_legacy(1, 0, top=table.top, levels=5)
    (fault,) = decode_unit(memory, unit.rtaddr).sets[0].faults
    assert (fault.kind, fault.address, fault.level) == (FaultKind.RESERVED, slot, level)
    assert "level" in str(fault) and "0x" in str(fault)


@pytest.mark.parametrize(("level", "bit"), [(2, 12), (2, 20), (3, 12), (3, 29)])
def test_large_page_that_is_not_aligned_is_reserved(level: int, bit: int) -> None:
    bed = Testbed()
    slot = bed.table.slot(0x8000_0000, level)
    bed.memory.put(slot, 1 << 30 | 1 << bit | 1 << 7 | 3)
    assert (bed.only_fault().kind, bed.only_fault().address) == (FaultKind.RESERVED, slot)


@pytest.mark.parametrize("width", [0, 4, 5, 6, 7])
def test_absurd_address_width_is_a_fault(width: int) -> None:
    bed = Testbed()
    bed.memory.put(bed.entry + 8, 7 << 8 | width)
    fault = bed.only_fault()
    assert (fault.kind, fault.address) == (FaultKind.LEVELS, bed.entry)


@pytest.mark.parametrize(
    ("low", "high"), [(1 << 4, 0), (1 << 11, 0), (3 << 2, 0), (0, 1 << 7), (0, 1 << 24)]
)
def test_reserved_bits_of_a_context_entry_are_a_fault(low: int, high: int) -> None:
    bed = Testbed()
    bed.memory.put(bed.entry, bed.table.top | 1 | low, 7 << 8 | 2 | high)
    assert (bed.only_fault().kind, bed.only_fault().address) == (FaultKind.RESERVED, bed.entry)
    (found,) = decode_unit(bed.memory, bed.unit.rtaddr).sets
    assert found.binding.translation is Translation.UNKNOWN


@pytest.mark.parametrize("is_scalable", [False, True])
def test_reserved_bits_of_a_root_entry_are_one_fault(is_scalable: bool) -> None:
    bed = Testbed(is_scalable=is_scalable)
    address = bed.unit.root + 16 * IGB.bus
    bed.memory.put(address, bed.memory.get(address) | 2)
    assert (bed.only_fault().kind, bed.only_fault().address) == (FaultKind.RESERVED, address)


def test_high_half_of_a_legacy_root_entry_is_reserved() -> None:
    bed = Testbed()
    bed.memory.put(bed.unit.root + 16 * IGB.bus + 8, 1)
    assert bed.only_fault().kind is FaultKind.RESERVED


def test_context_table_outside_ram_is_not_read_as_blocked() -> None:
    bed = Testbed()
    bed.memory.put(bed.unit.root + 16 * IGB.bus, RAM_BYTES | 1)
    decoded = decode_unit(bed.memory, bed.unit.rtaddr, only=[IGB])
    assert decoded.sets == ()
    assert [fault.kind for fault in decoded.faults] == [FaultKind.UNREADABLE]


def test_root_table_outside_ram_and_reserved_mode_are_faults() -> None:
    memory = Memory()
    assert decode_unit(memory, RAM_BYTES).faults[0].kind is FaultKind.UNREADABLE
    assert decode_unit(memory, 0x1000 | 2 << 10).faults[0].kind is FaultKind.RESERVED


@pytest.mark.parametrize(
    ("word", "value"), [(0, 1 << 5), (0, 1 << 8), (1, 1 << 21), (2, 1), (3, 1)]
)
def test_reserved_bits_of_a_scalable_context_are_a_fault(word: int, value: int) -> None:
    bed = Testbed(is_scalable=True)
    address = bed.unit.context_address(IGB.bus, IGB.devfn)
    bed.memory.put(address + 8 * word, bed.memory.get(address + 8 * word) | value)
    assert (bed.only_fault().kind, bed.only_fault().address) == (FaultKind.RESERVED, address)


def test_reserved_bits_of_a_pasid_directory_entry_are_a_fault() -> None:
    bed = Testbed(is_scalable=True)
    bed.memory.put(bed.directory, bed.memory.get(bed.directory) | 1 << 11)
    assert (bed.only_fault().kind, bed.only_fault().address) == (
        FaultKind.RESERVED,
        bed.directory,
    )


@pytest.mark.parametrize("kind", [0, 5, 6, 7])
def test_reserved_translation_type_of_a_pasid_is_a_fault(kind: int) -> None:
    bed = Testbed(is_scalable=True)
    bed.unit.set_pasid(bed.directory, 0, kind=kind, top=bed.table.top)
    assert (bed.only_fault().kind, bed.only_fault().address) == (FaultKind.RESERVED, bed.entry)


def test_reserved_paging_mode_of_a_pasid_is_a_fault() -> None:
    bed = Testbed(is_scalable=True)
    bed.unit.set_pasid(bed.directory, 0, kind=1, first_top=bed.table.top, first_levels=6)
    assert bed.only_fault().kind is FaultKind.LEVELS


def test_pasid_tables_outside_ram_are_faults() -> None:
    bed = Testbed(is_scalable=True)
    bed.memory.put(bed.directory, RAM_BYTES | 1)
    assert (bed.only_fault().kind, bed.only_fault().address) == (FaultKind.UNREADABLE, RAM_BYTES)
    bed.memory.put(bed.unit.context_address(IGB.bus, IGB.devfn), RAM_BYTES | 1)
    assert bed.only_fault().kind is FaultKind.UNREADABLE


def test_reader_that_gives_too_little_is_a_fault() -> None:
    bed = Testbed()

    class Short:
        def read(self, phys_addr: int, size: int) -> bytes:
            data = bed.memory.read(phys_addr, size)
            return data[:100] if phys_addr == bed.table.top else data

    (found,) = decode_unit(Short(), bed.unit.rtaddr).sets
    assert [fault.kind for fault in found.faults] == [FaultKind.SHORT_READ]


def test_tables_that_fan_out_without_end_cost_no_more_than_the_budget() -> None:
    memory = Memory()
    unit = VtdUnit(memory)
    tables = [memory.alloc() for _ in range(5)]
    for table, below in zip(tables, [*tables[1:], 0x7000_0000], strict=True):
        memory.put(table, *[below | 3] * 512)
    unit.set_legacy(1, 0, top=tables[0], levels=5)
    memory.reads = 0
    decoded = decode_unit(memory, unit.rtaddr, limits=WalkLimits(tables=200))
    assert memory.reads <= 200
    assert [fault.kind for fault in decoded.sets[0].faults] == [FaultKind.BUDGET]


def test_runs_are_bounded() -> None:
    memory = Memory()
    unit = VtdUnit(memory)
    upper, leaves = VtdPageTable(memory), memory.alloc()
    memory.put(upper.slot(0, 2) & -PAGE, *[leaves | 3] * 512)
    memory.put(leaves, *[0x5000 | 3] * 512)
    unit.set_legacy(1, 0, top=upper.top)
    decoded = decode_unit(memory, unit.rtaddr, limits=WalkLimits(runs=5000))
    assert len(decoded.sets[0].runs) < 6000
    assert decoded.sets[0].faults[0].kind is FaultKind.BUDGET


def test_requesters_are_bounded() -> None:
    bed = Testbed(is_scalable=True)
    page = bed.entry & -PAGE
    for offset in range(0, PAGE, 64):
        bed.memory.put(page + offset, 4 << 6 | 1, 1, 0, 0, 0, 0, 0, 0)
    bed.memory.put(bed.directory, *[page | 1] * 128)
    limits = WalkLimits(requesters=100)
    decoded = decode_unit(bed.memory, bed.unit.rtaddr, limits=limits)
    assert len(decoded.sets) == 100
    assert [fault.kind for fault in decoded.faults] == [FaultKind.BUDGET]


def test_large_pasid_directories_are_paid_for_page_by_page() -> None:
    memory = Memory()
    unit = VtdUnit(memory, is_scalable=True)
    for devfn in range(8):
        unit.set_directory(1, devfn, size_code=7)
    # root table, context table and one directory of 32 pages, but not two
    decoded = decode_unit(memory, unit.rtaddr, limits=WalkLimits(tables=50))
    assert [fault.kind for fault in decoded.faults] == [FaultKind.BUDGET]
    assert decode_unit(memory, unit.rtaddr, limits=WalkLimits(tables=2 + 8 * 32)).is_complete


def test_faults_are_bounded() -> None:
    bed = Testbed()
    table = bed.table.slot(0x1000, 2) & -PAGE
    bed.memory.put(table, *[RAM_BYTES | 3] * 512)
    faults = bed.faults()
    assert len(faults) == WalkLimits().faults + 1
    assert faults[-1].kind is FaultKind.BUDGET


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    is_scalable=st.booleans(),
    is_asked=st.booleans(),
    density=st.sampled_from([0.02, 0.3, 1.0]),
)
def test_random_memory_ends_within_the_budget(
    seed: int, is_scalable: bool, is_asked: bool, density: float
) -> None:
    """Every page holds pointers to the others, with all kinds of bits around them."""
    source = random.Random(seed)
    memory = Memory()
    addresses = [memory.alloc() for _ in range(8)]
    flags = [1, 3, 7, 0x83, 0x81, 0x401, 1 << 63 | 3, 0xFFF, 1 << 52 | 1, 2 << 6 | 2 << 2 | 1]
    for address in addresses:
        memory.put(
            address,
            *(
                source.choice([*addresses, RAM_BYTES, 0]) | source.choice(flags)
                if source.random() < density
                else 0
                for _ in range(512)
            ),
        )
    memory.reads = 0
    limits = WalkLimits(tables=60, runs=4000, requesters=50, faults=20)
    decoded = decode_unit(
        memory,
        addresses[0] | (1 << 10 if is_scalable else 0),
        only=[IGB, parse_bdf("00:02.0")] if is_asked else None,
        limits=limits,
    )
    # a PASID directory is one budgeted read of many pages; Memory counts pages
    assert memory.reads <= 2 * 60 + 1
    assert len(decoded.sets) <= 50
    for found in decoded.sets:
        assert all(run.size > 0 for run in found.runs)
        pairs = itertools.pairwise(found.runs)
        assert all(first.iova + first.size <= second.iova for first, second in pairs)
    assert decoded.fingerprint().recheck(memory).changes == ()
