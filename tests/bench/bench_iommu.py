# SPDX-License-Identifier: Apache-2.0
"""Print how long it takes to walk, compare and re-check 65,000 mappings.

Run as ``python -m tests.bench.bench_iommu``. Not a test: a shared machine is too noisy for limits.
The worst case is measured: 4 KiB pages scattered over memory, so that nothing merges.
"""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from liveupdate.formats.amdvi import decode_device_table
from liveupdate.formats.iommu import parse_bdf
from liveupdate.formats.iommu_walk import DecodedTables
from liveupdate.formats.vtd.debugfs import parse_domain_translation
from liveupdate.formats.vtd.tables import decode_unit
from liveupdate.judging.compare_iommu import diff_mappings
from tests.support.iommu_debugfs import print_domain
from tests.support.iommu_tables import AmdDeviceTable, AmdPageTable, Memory, VtdPageTable, VtdUnit

MAPPINGS = 65_000
SAMPLES_PER_SECOND = 50
_ROUNDS = 5


class MappedMemory:
    """Tables in an mmap, as the RAM of a host under update is."""

    def __init__(self, memory: Memory) -> None:
        self._map = mmap.mmap(-1, memory.next_page)
        for address, page in memory.pages.items():
            self._map[address : address + len(page)] = bytes(page)

    def read(self, phys_addr: int, size: int) -> bytes:
        """Copy bytes out of the mapping."""
        data = self._map[phys_addr : phys_addr + size]
        if len(data) != size:
            raise ValueError(f"{phys_addr:#x} is not in RAM")
        return data


def best_ms(action: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """Give the shortest of a few runs, in milliseconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def measure_comparison() -> float:
    """Give the seconds that it takes to compare scattered pages of which the last one moved."""
    frames = list(range(0x4_0000, 0x4_0000 + MAPPINGS))
    random.Random(1).shuffle(frames)
    memory, igb = Memory(), parse_bdf("01:00.0")
    unit, table = VtdUnit(memory), VtdPageTable(memory)
    for index, frame in enumerate(frames):
        table.map_page(index << 12, frame << 12, 3, 4096)
    unit.set_legacy(igb.bus, igb.devfn, top=table.top)
    (first,) = decode_unit(MappedMemory(memory), unit.rtaddr, only=[igb]).sets
    *others, last = first.runs
    moved = replace(first, runs=(*others, last._replace(phys=0x1000)))
    return best_ms(lambda: diff_mappings(first, moved)) / 1e3


def report(name: str, decode: Callable[[], DecodedTables], reader: MappedMemory) -> None:
    """Measure one decoder and print a line."""
    decoded, again = decode(), decode()
    (first,), (second,) = decoded.sets, again.sets
    *others, last = second.runs
    moved = replace(second, runs=(*others, last._replace(phys=0x1000)))
    fingerprint = decoded.fingerprint()
    recheck_ms = best_ms(lambda: fingerprint.recheck(reader), 50)
    walk_ms = best_ms(decode)
    print(
        f"{name:<20} {len(first.runs):>6} runs  walk {walk_ms:5.1f} ms"
        f"  compare {best_ms(lambda: diff_mappings(first, second)):4.1f} ms"
        f" ({best_ms(lambda: diff_mappings(first, moved)):5.1f} ms if the last page moved)"
        f"  re-check {recheck_ms:5.2f} ms = {recheck_ms * SAMPLES_PER_SECOND / 10:.1f} % of a core"
        f" at {SAMPLES_PER_SECOND} Hz"
    )


def main() -> None:
    """Measure both IOMMUs with scattered and with contiguous pages."""
    igb = parse_bdf("01:00.0")
    for name, is_scattered in (("scattered", True), ("contiguous", False)):
        frames = list(range(0x4_0000, 0x4_0000 + MAPPINGS))
        if is_scattered:
            random.Random(1).shuffle(frames)
        memory = Memory()
        unit, vtd = VtdUnit(memory), VtdPageTable(memory)
        devices, amd = AmdDeviceTable(memory), AmdPageTable(memory)
        for index, frame in enumerate(frames):
            vtd.map_page(index << 12, frame << 12, 3, 4096)
            amd.map_page(index << 12, frame << 12, 3, 4096)
        unit.set_legacy(igb.bus, igb.devfn, top=vtd.top)
        devices.set_entry(igb.source_id, top=amd.top)
        reader = MappedMemory(memory)

        def decode_vtd(reader: MappedMemory = reader, unit: VtdUnit = unit) -> DecodedTables:
            return decode_unit(reader, unit.rtaddr, only=[igb])

        def decode_amd(
            reader: MappedMemory = reader, devices: AmdDeviceTable = devices
        ) -> DecodedTables:
            return decode_device_table(reader, devices.base, only=[igb])

        report(f"VT-d, {name}", decode_vtd, reader)
        report(f"AMD-Vi, {name}", decode_amd, reader)
        if is_scattered:
            text = print_domain(memory, igb.bdf, vtd.top, 4)
            binding = decode_vtd().sets[0].binding
            spent = best_ms(partial(parse_domain_translation, text, binding), 2)
            print(f"{'debugfs text':<20} {MAPPINGS:>6} lines parse {spent:5.1f} ms")


if __name__ == "__main__":
    main()
