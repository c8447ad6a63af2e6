# SPDX-License-Identifier: Apache-2.0
"""Tests of the cheap re-check: every change of meaning is seen, hardware's own bits are not."""

from __future__ import annotations

import pytest

from liveupdate.formats.iommu import parse_bdf
from liveupdate.formats.vtd.tables import decode_unit
from tests.support.iommu_tables import RAM_BYTES, Memory, VtdPageTable, VtdUnit

IGB = parse_bdf("01:00.0")


class Testbed:
    """One device in either mode, its tables, and their fingerprint."""

    __test__ = False

    def __init__(self, *, is_scalable: bool = False, is_first_stage: bool = False) -> None:
        self.memory = Memory()
        self.unit = VtdUnit(self.memory, is_scalable=is_scalable)
        self.table = VtdPageTable(self.memory, is_first_stage=is_first_stage)
        for page in range(4):
            self.table.map_page(page << 12, 0x10_0000 + (page << 12), 3, 4096)
        if is_scalable:
            self.directory = self.unit.set_directory(1, 0)
            top = {"first_top" if is_first_stage else "top": self.table.top}
            kind = 1 if is_first_stage else 2
            self.entry = self.unit.set_pasid(self.directory, 0, kind=kind, **top)
        else:
            self.entry = self.unit.set_legacy(1, 0, top=self.table.top)
        decoded = decode_unit(self.memory, self.unit.rtaddr, only=[IGB])
        assert decoded.is_complete and decoded.sets[0].runs
        self.fingerprint = decoded.fingerprint()

    def flip(self, address: int, bits: int) -> None:
        self.memory.put(address, self.memory.get(address) ^ bits)


def test_untouched_tables_have_no_changes_and_keep_their_fingerprint() -> None:
    bed = Testbed()
    recheck = bed.fingerprint.recheck(bed.memory)
    assert recheck.changes == ()
    assert recheck.fingerprint is bed.fingerprint


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_altered_paging_entry_is_named(level: int) -> None:
    bed = Testbed()
    slot = bed.table.slot(0, level)
    before = bed.memory.get(slot)
    bed.flip(slot, 1 << 13)
    (change,) = bed.fingerprint.recheck(bed.memory).changes
    assert change == f"{slot:#018x}: {before:#018x} -> {before ^ 1 << 13:#018x}"


def test_altered_root_context_and_pasid_entries_are_seen() -> None:
    bed = Testbed(is_scalable=True)
    for address in (
        bed.unit.root + 16,
        bed.unit.context_address(1, 0),
        bed.directory,
        bed.entry,
        bed.entry + 56,
    ):
        bed.flip(address, 1)
        assert len(bed.fingerprint.recheck(bed.memory).changes) == 1
        bed.flip(address, 1)
    assert bed.fingerprint.recheck(bed.memory).changes == ()


def test_entries_of_other_devices_are_not_watched() -> None:
    bed = Testbed()
    bed.unit.set_legacy(1, 8, top=bed.table.top)
    bed.unit.set_legacy(2, 0, top=bed.table.top)
    assert bed.fingerprint.recheck(bed.memory).changes == ()


def test_appearing_entries_of_a_watched_device_are_seen() -> None:
    memory = Memory()
    unit = VtdUnit(memory)
    without_root = decode_unit(memory, unit.rtaddr, only=[IGB]).fingerprint()
    address = unit.context_address(1, 0)
    (change,) = without_root.recheck(memory).changes
    assert change.startswith(f"{unit.root + 16:#018x}: ")
    without_context = decode_unit(memory, unit.rtaddr, only=[IGB]).fingerprint()
    memory.put(address, 1)
    (change,) = without_context.recheck(memory).changes
    assert change.startswith(f"{address:#018x}: ")


@pytest.mark.parametrize(
    ("is_first_stage", "bits"), [(False, 1 << 8 | 1 << 9), (True, 1 << 5 | 1 << 6)]
)
def test_accessed_and_dirty_bits_are_no_change(is_first_stage: bool, bits: int) -> None:
    bed = Testbed(is_scalable=is_first_stage, is_first_stage=is_first_stage)
    bed.flip(bed.table.slot(0, 1), bits)
    recheck = bed.fingerprint.recheck(bed.memory)
    assert recheck.changes == ()
    assert recheck.fingerprint is not bed.fingerprint
    assert recheck.fingerprint.recheck(bed.memory).fingerprint is recheck.fingerprint
    bed.flip(bed.table.slot(0, 1), bits | 1 << 12)
    assert len(recheck.fingerprint.recheck(bed.memory).changes) == 1


def test_only_an_entry_whose_meaning_changed_is_named() -> None:
    bed = Testbed()
    bed.flip(bed.table.slot(0x1000, 1), 1 << 8)
    bed.flip(bed.table.slot(0x2000, 1), 1 << 13)
    (change,) = bed.fingerprint.recheck(bed.memory).changes
    assert change.startswith(f"{bed.table.slot(0x2000, 1):#018x}: ")


def test_change_stays_a_change_until_decoded_again() -> None:
    bed = Testbed()
    bed.flip(bed.table.slot(0, 1), 2)
    first = bed.fingerprint.recheck(bed.memory)
    assert first.fingerprint.recheck(bed.memory).changes == first.changes


def test_page_that_can_no_longer_be_read_is_a_change() -> None:
    bed = Testbed()
    bed.memory.size = bed.table.top
    changes = bed.fingerprint.recheck(bed.memory).changes
    assert changes and not any(" -> " in change for change in changes)
    bed.memory.size = RAM_BYTES

    class Short:
        def read(self, phys_addr: int, size: int) -> bytes:
            return bed.memory.read(phys_addr, size)[:-1]

    short = bed.fingerprint.recheck(Short()).changes
    assert all(" of " in change for change in short)
    assert len(short) == len(bed.fingerprint.pages)
