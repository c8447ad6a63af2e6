# SPDX-License-Identifier: Apache-2.0
"""A monitor that answers the IOMMU probes from tables that a test may change."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LostMachine
from liveupdate.transport.monitor import Commands
from tests.support.iommu_evidence import make_config
from tests.support.iommu_tables import Memory, VtdUnit
from tests.support.query_pci import PCI

UNIT, CONFIG = 0xFED9_0000, 0xB000_0000


MTREE = f"""FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000007fffffff (prio 0, ram): hostram
  {CONFIG:016x}-{CONFIG + 0xFFFFFFF:016x} (prio 0, i/o): pcie-mmcfg-mmio
  {UNIT:016x}-{UNIT + 0x22F:016x} (prio 0, i/o): intel_iommu

"""


class ScriptedMonitor(Commands):
    """Answers what the probe asks, from registers and tables that a test may change."""

    def __init__(self, memory: Memory, trace: Path) -> None:
        self.unit = VtdUnit(memory)
        self.gsts, self.fsts = 0xC700_0000, 0
        self.trace = trace
        self.mtree = MTREE
        #: events that are traced
        self.on: set[str] = set()
        self.ever: set[str] = set()
        self.is_lost = False

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        deadline: Deadline | None = None,
    ) -> object:
        if command == "query-pci":
            return PCI
        assert command == "trace-event-set-state"
        assert arguments is not None
        name = str(arguments["name"])
        (self.on.add if arguments["enable"] else self.on.discard)(name)
        self.ever |= self.on
        return {}

    def hmp(self, command_line: str, deadline: Deadline | None = None) -> str:
        if self.is_lost:
            raise LostMachine("QMP is gone", how="no-answer")
        name, _, rest = command_line.partition(" ")
        if name == "xp":
            count, address = rest.removeprefix("/").split("wx ")
            return self._dump(int(address, 16), int(count))
        if command_line == "info mtree -f":
            return self.mtree
        assert command_line == f'logfile "{self.trace}"'
        self.trace.write_text("")
        return ""

    def _dump(self, address: int, words: int) -> str:
        if address >= UNIT:
            data = self._registers()[address - UNIT :]
        else:
            data = make_config(is_bridge=address - CONFIG != 1 << 20)
        lines = []
        for at in range(0, 4 * words, 16):
            numbers = struct.unpack_from(f"<{min(4, words - at // 4)}I", data, at)
            shown = " ".join(f"{number:#010x}" for number in numbers)
            lines.append(f"{address + at:016x}: {shown}\r\n")
        return "".join(lines)

    def _registers(self) -> bytes:
        page = bytearray(0x230)
        struct.pack_into("<I", page, 0x00, 0x10)
        struct.pack_into("<QQ", page, 0x08, 0xD2008C222F0606, 0xF00F4A)
        struct.pack_into("<I", page, 0x1C, self.gsts)
        struct.pack_into("<Q", page, 0x20, self.unit.rtaddr)
        struct.pack_into("<I", page, 0x34, self.fsts)
        struct.pack_into("<QQ", page, 0x220, 0x1000, 1 << 63 | 5 << 32 | 0x100)
        return bytes(page)

    def log(self, line: str) -> None:
        with self.trace.open("a") as file:
            file.write(line + "\n")
