# SPDX-License-Identifier: Apache-2.0
"""The outside probe on tables that change under it; the monitor is a script, RAM a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import EvidenceError, LostMachine
from liveupdate.formats.qemu_trace import EVENTS, HEARTBEAT, QemuTraceError
from liveupdate.model.evidence import MappingFacts
from liveupdate.probes.iommu import Harvest, IommuWatcher
from tests.support.iommu_tables import Memory, VtdPageTable, VtdUnit
from tests.support.scripted_monitor import MTREE, ScriptedMonitor


class Bench:
    """A device with four pages mapped, and a watcher on it."""

    def __init__(self, tmp_path: Path) -> None:
        self.memory = Memory()
        self.monitor = ScriptedMonitor(self.memory, tmp_path / "trace.log")
        self.table = VtdPageTable(self.memory)
        for page in range(4):
            self.table.map_page(page << 12, 0x4000_0000 + (page << 12), 3, 4096)
        self.monitor.unit.set_legacy(1, 0, top=self.table.top)
        self.watcher = IommuWatcher(
            self.monitor, self.memory, [("nic0", "igb", "dev-nic0")], self.monitor.trace
        )

    def see(self, what: Callable[[], object]) -> None:
        """Wait until the sampler has seen something."""
        wait_until(lambda: what() or None, Deadline.after(10.0, "the sampler"), interval_s=0.002)

    def pass_samples(self, count: int = 2) -> None:
        seen = len(self.watcher.seen.samples)
        self.see(lambda: len(self.watcher.seen.samples) >= seen + count)

    def finish(self) -> tuple[Harvest, tuple[MappingFacts, ...]]:
        mappings, _ = self.watcher.end()
        assert self.watcher.sampler.error is None
        return self.watcher.seen, mappings


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.monitor.is_lost = True
    made.watcher.close()


def test_quiet_hop_is_seen_at_its_rate_and_walked_at_both_ends(bench: Bench) -> None:
    before, configs = bench.watcher.begin()
    time.sleep(0.5)
    harvest, after = bench.finish()
    assert [each.moment for each in (*before, *after)] == ["before", "after"]
    assert before[0].runs == after[0].runs != b""
    assert [each.function for each in configs] == ["0000:00:10.0", "0000:01:00.0"]
    assert (bench.watcher.devices[0].function, bench.watcher.devices[0].bridges) == (
        "0000:01:00.0",
        ("0000:00:10.0",),
    )
    assert bench.watcher.sum_up().samples == len(harvest.samples) > 5
    assert all(sample.gsts == 0xC700_0000 and not sample.fsts for sample in harvest.samples)
    assert [each.top for each in harvest.bindings] == [bench.table.top]
    assert harvest.tables == []
    assert (bench.monitor.ever, bench.monitor.on) == ({*EVENTS, HEARTBEAT}, set())


def test_altered_page_table_is_seen_with_its_entry(bench: Bench) -> None:
    bench.watcher.begin()
    bench.pass_samples()
    slot = bench.table.slot(0x2000, 1)
    before = bench.memory.get(slot)
    bench.memory.put(slot, before ^ 1 << 13)
    bench.pass_samples()
    bench.memory.put(slot, before)
    bench.pass_samples()
    harvest, _ = bench.finish()
    changed, restored = harvest.tables
    assert (changed.pages, restored.pages) == (1, 0)
    assert f"{slot:016x}" in changed.first


def test_entry_that_goes_away_is_seen(bench: Bench) -> None:
    bench.watcher.begin()
    bench.pass_samples()
    address = bench.monitor.unit.context_address(1, 0)
    bench.memory.put(address, 0, 0)
    bench.pass_samples()
    harvest, _ = bench.finish()
    assert [each.translation for each in harvest.bindings] == ["second-stage", "blocked"]


def test_another_root_table_with_the_same_entry_is_no_change(bench: Bench) -> None:
    bench.watcher.begin()
    bench.pass_samples()
    old = bench.monitor.unit
    new = VtdUnit(bench.memory)
    new.set_legacy(1, 0, top=bench.table.top)
    bench.monitor.unit = new
    # and the old one is used for something else at once
    bench.memory.pages[old.root] = bytearray(b"\xff" * 4096)
    bench.pass_samples()
    harvest, _ = bench.finish()
    assert len(harvest.bindings) == 1
    assert {each.rtaddr for each in harvest.samples} == {old.rtaddr, new.rtaddr}


def test_adopted_tables_are_seen_and_the_old_ones_are_free(bench: Bench) -> None:
    bench.watcher.begin()
    bench.pass_samples()
    table = VtdPageTable(bench.memory)
    table.map_page(0, 0x4000_0000, 3, 4096)
    bench.monitor.unit.set_legacy(1, 0, top=table.top)
    bench.memory.pages[bench.table.top] = bytearray(b"\xff" * 4096)
    bench.pass_samples()
    harvest, _ = bench.finish()
    assert [each.top for each in harvest.bindings] == [bench.table.top, table.top]
    assert harvest.tables == []


def test_faults_bring_their_records(bench: Bench) -> None:
    bench.watcher.begin()
    bench.monitor.fsts = 2
    bench.pass_samples()
    harvest, _ = bench.finish()
    assert harvest.samples[-1].fsts == 2
    assert len(bytes.fromhex(harvest.samples[-1].fault_records)) == 16


def test_tables_are_left_alone_while_translation_is_off(bench: Bench) -> None:
    bench.watcher.begin()
    bench.monitor.gsts = 0x4700_0000
    bench.memory.pages.clear()
    bench.pass_samples()
    harvest, (after,) = bench.finish()
    assert harvest.samples[-1].gsts == 0x4700_0000
    assert (after.translation, after.runs) == ("pass-through", b"")
    assert all(each.translation == "second-stage" for each in harvest.bindings)


def test_trace_tells_of_our_own_looks_and_comparisons_are_counted(bench: Bench) -> None:
    bench.watcher.begin()
    bench.pass_samples()
    assert bench.watcher.sum_up().beats_ns == (0, 0, 0)
    for _ in range(2):
        bench.monitor.log("handle_hmp_command mon 0x5 cmdline: xp /8wx 0xfed90000")
        bench.pass_samples()
    harvest, _ = bench.finish()
    watch = bench.watcher.sum_up()
    assert watch.beats_ns is not None and watch.compared is not None
    first, last, longest = watch.beats_ns
    assert 0 < first < last <= watch.ended_ns + 10**9
    assert longest == last - first
    assert watch.compared == {"0000:01:00.0": len(harvest.samples)}
    assert harvest.events == []


def test_trace_is_read_to_its_end_and_others_devices_are_left_out(bench: Bench) -> None:
    bench.watcher.begin()
    bench.monitor.log("vtd_dmar_enable enable 1")
    bench.monitor.log("pci_cfg_write virtio-net-pci 00:03.0 @0x4 <- 0x7")
    bench.monitor.log("pci_cfg_write pcie-root-port 00:10.0 @0x4 <- 0x507")
    bench.monitor.log("resettable_phase_hold_exec obj=0x1(nvme) method=1")
    bench.pass_samples()
    bench.monitor.log("resettable_phase_hold_exec obj=0x1(igb) method=1")
    harvest, _ = bench.finish()
    assert [event.what for event in harvest.events] == ["translation", "config-write", "reset"]
    assert bench.watcher.sum_up().trace_lines == 5


def test_garbled_trace_ends_the_sampling_visibly(bench: Bench) -> None:
    bench.watcher.begin()
    bench.monitor.log("vtd_dmar_enable enable maybe")
    bench.see(lambda: bench.watcher.sampler.error)
    assert isinstance(bench.watcher.sampler.error, QemuTraceError)


def test_lost_monitor_ends_the_sampling_visibly(bench: Bench) -> None:
    bench.watcher.begin()
    bench.pass_samples()
    bench.monitor.is_lost = True
    bench.see(lambda: bench.watcher.sampler.error)
    bench.watcher.close()
    assert isinstance(bench.watcher.sampler.error, LostMachine)


@pytest.mark.parametrize(
    ("region", "word"), [("intel_iommu", "remapping unit"), ("pcie-mm", "window")]
)
def test_machine_without_what_is_needed_is_one_error(bench: Bench, region: str, word: str) -> None:
    bench.monitor.mtree = MTREE.replace(region, "other")
    with pytest.raises(EvidenceError, match=f"no .*{word}"):
        bench.watcher.begin()


def test_device_that_qemu_does_not_have_is_one_error(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    watcher = IommuWatcher(
        bench.monitor, bench.memory, [("nic9", "igb", "dev-nic9")], bench.monitor.trace
    )
    with pytest.raises(EvidenceError, match="no PCI device 'dev-nic9'"):
        watcher.begin()
    watcher.close()
