# SPDX-License-Identifier: Apache-2.0
"""Tests of the AMD-Vi decoders: device table, page tables of every mode and size, hostile ones."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveupdate.formats.amdvi import (
    DeviceTableBase,
    bind_device,
    decode_device_table,
)
from liveupdate.formats.iommu import (
    READ,
    WRITE,
    FaultKind,
    IommuFormatError,
    MappingSet,
    Requester,
    Run,
    TableFault,
    Translation,
    parse_bdf,
)
from liveupdate.formats.iommu_walk import WalkLimits
from tests.support.iommu_tables import (
    RAM_BYTES,
    AmdDeviceTable,
    AmdPageTable,
    Memory,
    Page,
    merge_pages,
    page_lists,
)

IGB = parse_bdf("01:00.0")
ADDRESS_BITS = {1: 21, 2: 30, 3: 39, 4: 48, 5: 57, 6: 64}
#: every size that takes few entries: a page of 2^n bytes stands in up to 256 slots
SIZES = tuple(1 << shift for shift in (12, 13, 15, 21, 22, 24, 30, 31))


class Testbed:
    """One device with page tables."""

    __test__ = False

    def __init__(self, mode: int = 4, *, is_skipping: bool = False) -> None:
        self.memory = Memory()
        self.devices = AmdDeviceTable(self.memory)
        self.table = AmdPageTable(self.memory, mode=mode, is_skipping=is_skipping)
        self.entry = self.devices.set_entry(IGB.source_id, top=self.table.top, mode=mode)

    def decode(self, limits: WalkLimits | None = None) -> MappingSet:
        decoded = decode_device_table(self.memory, self.devices.base, only=[IGB], limits=limits)
        assert not decoded.faults
        (found,) = decoded.sets
        return found

    def only_fault(self) -> TableFault:
        (fault,) = self.decode().faults
        return fault


@pytest.mark.parametrize("mode", [1, 2, 3, 4, 5, 6])
def test_mappings_are_found_as_they_were_made(mode: int) -> None:
    # the top level 6 has no pages of its own, and a page must be smaller than what a table covers
    sizes = tuple(size for size in SIZES if size < 1 << ADDRESS_BITS[mode])

    @settings(max_examples=25, deadline=None)
    @given(page_lists(sizes=sizes, address_bits=ADDRESS_BITS[mode], max_pages=10))
    def check(pages: list[Page]) -> None:
        bed = Testbed(mode)
        bed.table.map_pages(pages)
        found = bed.decode()
        assert found.faults == ()
        assert found.runs == merge_pages(pages)
        binding = found.binding
        assert (binding.translation, binding.levels) == (Translation.HOST, mode)
        assert (binding.domain_id, binding.top) == (5, bed.table.top)

    check()


@pytest.mark.parametrize("mode", [3, 4, 5, 6])
def test_skipped_levels_map_the_first_part_of_what_they_cover(mode: int) -> None:
    bed = Testbed(mode, is_skipping=True)
    pages = [Page(0x1000, 0x5000, READ, 4096), Page(0x2000, 0x9000, READ | WRITE, 4096)]
    bed.table.map_pages(pages)
    assert bed.memory.get(bed.table.top) >> 9 & 7 == 1
    found = bed.decode()
    assert found.faults == ()
    assert found.runs == merge_pages(pages)


@pytest.mark.parametrize("shift", [*range(12, 30), 30, 31, 38, 39, 40, 47, 48, 50])
def test_every_page_size_is_decoded(shift: int) -> None:
    bed = Testbed(6)
    size = 1 << shift
    bed.table.map_page(size, size, WRITE, size)
    assert bed.decode().runs == (Run(size, size, size, WRITE, size),)


def test_neighbouring_encoded_pages_merge() -> None:
    bed = Testbed()
    bed.table.map_page(0x8000, 0x1_0000, READ, 0x8000)
    bed.table.map_page(0x1_0000, 0x1_8000, READ, 0x8000)
    assert bed.decode().runs == (Run(0x8000, 0x1_0000, 0x1_0000, READ, 0x8000),)


def test_encoded_page_of_the_levels_own_size_is_accepted() -> None:
    bed = Testbed()
    # as older kernels wrote 2 MiB: size encoded in one entry of level 2
    slot = bed.table.slot(0x20_0000, 2)
    bed.memory.put(slot, 0x40_0000 | 0xF_F000 | 3 << 61 | 7 << 9 | 1)
    assert bed.decode().runs == (Run(0x20_0000, 0x40_0000, 1 << 21, READ | WRITE, 1 << 21),)


def test_encoded_page_that_is_not_in_all_its_entries_is_inconsistent() -> None:
    bed = Testbed()
    bed.table.map_page(0x1_0000, 0x4_0000, READ, 0x1_0000)
    bed.memory.put(bed.table.slot(0x1_3000, 1), 0)
    faults = bed.decode().faults
    assert faults and {fault.kind for fault in faults} == {FaultKind.INCONSISTENT}
    assert "0x10000-byte" in faults[0].detail


def test_access_is_what_every_level_and_the_device_entry_allow() -> None:
    bed = Testbed()
    bed.table.map_page(0x1000, 0x5000, READ | WRITE, 4096)
    bed.table.map_page(0x2000, 0x6000, WRITE, 4096)
    bed.table.map_page(0x3000, 0x7000, 0, 4096)
    assert [run.access for run in bed.decode().runs] == [READ | WRITE, WRITE]
    slot = bed.table.slot(0x1000, 3)
    bed.memory.put(slot, bed.memory.get(slot) & ~(1 << 62))
    assert bed.decode().runs == (Run(0x1000, 0x5000, 4096, READ, 4096),)
    bed.devices.set_entry(IGB.source_id, top=bed.table.top, access=WRITE)
    assert bed.decode().runs == ()


def test_entry_that_is_not_present_maps_nothing_whatever_else_it_holds() -> None:
    bed = Testbed()
    bed.table.map_page(0x1000, 0x5000, READ, 4096)
    bed.memory.put(bed.table.slot(0x2000, 1), 0x6000 | 3 << 61)
    bed.memory.put(bed.table.slot(1 << 39, 4), 0x6000 | 3 << 61 | 7 << 9)
    assert bed.decode().runs == (Run(0x1000, 0x5000, 0x1000, READ, 4096),)


def test_encoded_and_plain_pages_share_a_table() -> None:
    bed = Testbed()
    bed.table.map_page(0x1000, 0x5000, READ, 4096)
    bed.table.map_page(0x2000, 0x8000, READ | WRITE, 0x2000)
    assert bed.decode().runs == (
        Run(0x1000, 0x5000, 0x1000, READ, 0x1000),
        Run(0x2000, 0x8000, 0x2000, READ | WRITE, 0x2000),
    )


# ---------------------------------------------------------------- device table


@pytest.mark.parametrize(
    ("flags", "mode", "access", "translation"),
    [
        (0, 0, 0, Translation.PASS_THROUGH),
        (1, 4, 3, Translation.BLOCKED),
        (3, 0, 3, Translation.PASS_THROUGH),
        (3, 0, 0, Translation.BLOCKED),
        (3, 4, 3, Translation.HOST),
        (3, 7, 3, Translation.UNKNOWN),
        (3 | 1 << 55, 4, 3, Translation.UNKNOWN),
    ],
)
def test_device_entry_says_how_its_device_is_treated(
    flags: int, mode: int, access: int, translation: Translation
) -> None:
    bed = Testbed()
    bed.devices.set_entry(IGB.source_id, top=bed.table.top, mode=mode, access=access, flags=flags)
    found = bed.decode()
    assert found.binding.translation is translation
    assert bool(found.faults) is (translation is Translation.UNKNOWN)
    kinds = {7: FaultKind.LEVELS, 4: FaultKind.UNSUPPORTED}
    assert all(fault.kind is kinds[mode] and fault.address == bed.entry for fault in found.faults)


def test_devices_that_are_asked_for_are_found_in_order() -> None:
    bed = Testbed()
    bed.table.map_page(0x1000, 0x5000, 3, 4096)
    bed.devices.set_entry(0xFFFF, mode=0, domain=2)
    wanted = [parse_bdf("0001:ff:1f.7"), parse_bdf("0001:01:00.0", pasid=1)]
    decoded = decode_device_table(bed.memory, bed.devices.base, only=wanted)
    assert decoded.is_complete
    assert [(item.requester.bdf, item.binding.translation) for item in decoded.sets] == [
        ("0001:01:00.0", Translation.HOST),
        ("0001:ff:1f.7", Translation.PASS_THROUGH),
    ]


def test_device_beyond_the_table_is_a_fault() -> None:
    bed = Testbed()
    small = bed.devices.address
    decoded = decode_device_table(bed.memory, small, only=[parse_bdf("00:00.1"), IGB])
    assert [item.requester.devfn for item in decoded.sets] == [1]
    assert [fault.kind for fault in decoded.faults] == [FaultKind.INCONSISTENT]


def test_base_register_and_entry_are_split() -> None:
    base = DeviceTableBase.decode(0x1234_5000 | 511)
    assert (base.address, base.size) == (0x1234_5000, 2 << 20)
    words = (3, 7 | 1 << 32, 0xABC_DEC0 | 9 << 1 | 1, 0)
    binding, problem = bind_device(IGB, b"".join(word.to_bytes(8, "little") for word in words))
    assert (binding.domain_id, problem) == (7, None)
    with pytest.raises(IommuFormatError):
        bind_device(IGB, bytes(31))


# ---------------------------------------------------------------- hostile tables


@pytest.mark.parametrize(("level", "next_level"), [(1, 1), (1, 6), (2, 2), (3, 3), (3, 6), (4, 4)])
def test_next_level_that_does_not_descend_is_a_fault(level: int, next_level: int) -> None:
    bed = Testbed()
    bed.table.map_page(0x1000, 0x5000, 3, 4096)
    slot = bed.table.slot(0x1000, level)
    bed.memory.put(slot, bed.table.top | 3 << 61 | next_level << 9 | 1)
    fault = bed.only_fault()
    assert (fault.kind, fault.address, fault.level) == (FaultKind.LEVELS, slot, level)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_table_that_points_back_is_a_loop(level: int) -> None:
    bed = Testbed()
    slot = bed.table.slot(0x1000, level)
    bed.memory.put(slot, bed.table.top | 3 << 61 | level - 1 << 9 | 1)
    assert (bed.only_fault().kind, bed.only_fault().address) == (FaultKind.LOOP, slot)


@pytest.mark.parametrize(
    ("level", "entry"),
    [
        (1, 0xF_F000 | 7 << 9),  # 2 MiB in level 1
        (1, (1 << 52) - 0x1000 | 7 << 9),  # all ones: no size at all
        (2, 0x1000 | 7 << 9),  # 16 KiB in level 2
        (2, 1 << 12),  # 2 MiB page off its alignment
        (3, 1 << 29),
    ],
)
def test_page_sizes_that_cannot_be_are_reserved(level: int, entry: int) -> None:
    bed = Testbed()
    slot = bed.table.slot(0x1000, level)
    bed.memory.put(slot, entry | 3 << 61 | 1)
    fault = bed.only_fault()
    assert (fault.kind, fault.address, fault.level) == (FaultKind.RESERVED, slot, level)


def test_level_6_has_neither_pages_nor_more_than_128_entries() -> None:
    bed = Testbed(6)
    bed.memory.put(bed.table.top, 3 << 61 | 1)
    bed.memory.put(bed.table.top + 8 * 128, bed.memory.alloc() | 3 << 61 | 5 << 9 | 1)
    faults = bed.decode().faults
    assert [(fault.kind, fault.address - bed.table.top) for fault in faults] == [
        (FaultKind.RESERVED, 0),
        (FaultKind.RESERVED, 1024),
    ]


def test_tables_outside_ram_are_faults() -> None:
    bed = Testbed()
    slot = bed.table.slot(0x1000, 2)
    bed.memory.put(slot, RAM_BYTES | 3 << 61 | 1 << 9 | 1)
    fault = bed.only_fault()
    assert (fault.kind, fault.address, fault.level) == (FaultKind.UNREADABLE, RAM_BYTES, 1)
    both = [parse_bdf("00:00.0"), parse_bdf("00:1f.0")]
    decoded = decode_device_table(bed.memory, RAM_BYTES | 1, only=both)
    assert [fault.kind for fault in decoded.faults] == [FaultKind.UNREADABLE] * 2


def test_accessed_and_dirty_bits_are_no_change() -> None:
    bed = Testbed()
    bed.table.map_page(0x1000, 0x5000, 3, 4096)
    fingerprint = decode_device_table(bed.memory, bed.devices.base, only=[IGB]).fingerprint()
    slot = bed.table.slot(0x1000, 1)
    bed.memory.put(slot, bed.memory.get(slot) | 3 << 5)
    assert fingerprint.recheck(bed.memory).changes == ()
    bed.memory.put(slot, bed.memory.get(slot) ^ 1 << 62)
    assert len(fingerprint.recheck(bed.memory).changes) == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32), density=st.sampled_from([0.02, 0.3, 1.0]))
def test_random_memory_ends_within_the_budget(seed: int, density: float) -> None:
    """Every page holds pointers to the others at all levels."""
    source = random.Random(seed)
    memory = Memory()
    addresses = [memory.alloc() for _ in range(8)]
    for address in addresses:
        memory.put(
            address,
            *(
                source.choice([*addresses, RAM_BYTES, 0x1F_F000])
                | source.randrange(8) << 9
                | source.choice([0, 3, 3, 3]) << 61
                | source.choice([1, 3, 3])
                if source.random() < density
                else 0
                for _ in range(512)
            ),
        )
    memory.reads = 0
    limits = WalkLimits(tables=60, runs=4000, requesters=50, faults=20)
    everything = [Requester(bus=bus, devfn=devfn) for bus in range(4) for devfn in range(256)]
    decoded = decode_device_table(memory, addresses[0] | 7, only=everything, limits=limits)
    assert memory.reads <= 60
    assert len(decoded.sets) <= 50
    for found in decoded.sets:
        pairs = itertools.pairwise(found.runs)
        assert all(first.iova + first.size <= second.iova for first, second in pairs)
