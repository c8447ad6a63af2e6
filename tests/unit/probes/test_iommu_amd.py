# SPDX-License-Identifier: Apache-2.0
"""The outside probe on an AMD unit, and the driver's view that stands against it."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from liveupdate.core.errors import EvidenceError
from liveupdate.formats.iommu import Requester, unpack_runs
from liveupdate.probes.iommu import IommuWatcher
from liveupdate.probes.iommu_inside import from_driver
from liveupdate.probes.memory import guest_ranges
from tests.support.iommu_tables import AmdDeviceTable, AmdPageTable, Memory
from tests.support.scripted_monitor import MTREE, UNIT, ScriptedMonitor

BASE = 0xFED8_0000
NIC = Requester(bus=1, devfn=0)
PHYS = 0x4000_0000


class AmdMonitor(ScriptedMonitor):
    """Registers of an AMD unit in the place of the other."""

    def __init__(self, memory: Memory, trace: Path) -> None:
        super().__init__(memory, trace)
        region = f"{UNIT:016x}-{UNIT + 0x22F:016x} (prio 0, i/o): intel_iommu"
        assert region in MTREE
        mine = f"{BASE:016x}-{BASE + 0x3FFF:016x} (prio 0, i/o): amdvi-mmio"
        self.mtree = MTREE.replace(region, mine)
        self.devices = AmdDeviceTable(memory)
        self.control, self.status = 0x1F, 0x18

    def _registers(self) -> bytes:
        page = bytearray(0x2100)
        struct.pack_into("<Q", page, 0x00, self.devices.base)
        struct.pack_into("<Q", page, 0x18, self.control)
        struct.pack_into("<Q", page, 0x2020, self.status)
        return bytes(page)

    def _dump(self, address: int, words: int) -> str:
        # what this reads stands at UNIT for the other kind
        if address >= BASE:
            return super()._dump(address - BASE + UNIT, words)
        return super()._dump(address, words)


def make(tmp_path: Path) -> tuple[Memory, AmdPageTable, AmdMonitor, IommuWatcher]:
    memory = Memory()
    monitor = AmdMonitor(memory, tmp_path / "trace.log")
    table = AmdPageTable(memory)
    for page in range(4):
        table.map_page(page << 12, PHYS + (page << 12), 3, 4096)
    monitor.devices.set_entry(NIC.source_id, top=table.top)
    watcher = IommuWatcher(monitor, memory, [("nic0", "igb", "dev-nic0")], monitor.trace)
    return memory, table, monitor, watcher


def test_amd_unit_is_found_sampled_and_walked(tmp_path: Path) -> None:
    _memory, table, monitor, watcher = make(tmp_path)
    (before,), _ = watcher.begin()
    time.sleep(0.1)
    monitor.log("amdvi_control_status MMIO_STATUS state 0x0")
    time.sleep(0.1)
    (after,), _ = watcher.end()
    assert watcher.sampler.error is None
    harvest = watcher.seen
    assert (watcher.unit, watcher.sum_up().unit) == ("amd", "amd")
    assert before.runs == after.runs
    (run,) = unpack_runs(before.runs)
    assert (run.iova, run.phys, run.size, run.access) == (0, PHYS, 0x4000, 3)
    assert (before.translation, before.top) == ("host", table.top)
    samples = {(each.gsts, each.rtaddr, each.fsts) for each in harvest.samples}
    assert samples == {(0x1F, monitor.devices.base, 0x18)}
    assert [each.translation for each in harvest.bindings] == ["host"]
    assert [(each.what, each.value) for each in harvest.events] == [("translation", 0)]


def test_amd_unit_that_is_off_lets_everything_through(tmp_path: Path) -> None:
    _memory, _table, monitor, watcher = make(tmp_path)
    monitor.control = 0
    (before,), _ = watcher.begin()
    watcher.close()
    assert (before.translation, before.runs) == ("pass-through", b"")


def test_altered_table_of_an_amd_unit_is_seen(tmp_path: Path) -> None:
    memory, table, _monitor, watcher = make(tmp_path)
    watcher.begin()
    slot = table.slot(0x2000, 1)
    memory.put(slot, memory.get(slot) ^ 1 << 13)
    time.sleep(0.2)
    watcher.end()
    (changed,) = watcher.seen.tables
    assert changed.pages == 1


def test_what_a_driver_has_mapped_is_the_same_set() -> None:
    pfns = struct.pack("<4Q", 0x4_0000, 0x4_0001, 0x5_0000, 0x5_0001)
    facts = from_driver(NIC, [(0x1000_0000, 0x4000)], pfns, "before", 5, 1)
    assert (facts.view, facts.moment, facts.translation) == ("inside", "before", "host")
    assert [(run.iova, run.phys, run.size) for run in unpack_runs(facts.runs)] == [
        (0x1000_0000, 0x4000_0000, 0x2000),
        (0x1000_2000, 0x5000_0000, 0x2000),
    ]


def test_ranges_follow_each_other_in_the_frames() -> None:
    ranges = guest_ranges(3 << 30)
    assert ranges == ((0, 2 << 30), (4 << 30, 1 << 30))
    facts = from_driver(
        NIC, [(0, 0x1000), (0x8000, 0x1000)], struct.pack("<2Q", 7, 9), "after", 5, 1
    )
    assert [(run.iova, run.phys, run.size) for run in unpack_runs(facts.runs)] == [
        (0, 0x7000, 0x1000),
        (0x8000, 0x9000, 0x1000),
    ]
    with pytest.raises(EvidenceError, match="8 bytes of frames for 2 pages"):
        from_driver(NIC, [(0, 0x2000)], struct.pack("<Q", 7), "after", 5, 1)


def test_page_without_a_frame_is_no_mapping() -> None:
    with pytest.raises(EvidenceError, match="IOVA 0x1000 of 0000:01:00.0 has no frame"):
        from_driver(NIC, [(0, 0x2000)], struct.pack("<2Q", 7, 0), "after", 5, 1)
