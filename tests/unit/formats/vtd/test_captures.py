# SPDX-License-Identifier: Apache-2.0
"""Tables of real boots: from memory and from the kernel's own text comes the same translation.

The captures and how they were made: ``data/vtd/README.md``.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from liveupdate.formats.hmp_xp import parse_xp
from liveupdate.formats.iommu import MappingSet, Translation, parse_bdf
from liveupdate.formats.vtd.debugfs import parse_dmar_translation, parse_domain_translation
from liveupdate.formats.vtd.regs import REGISTER_BYTES, Registers, decode_registers
from liveupdate.formats.vtd.tables import decode_unit
from liveupdate.judging.compare_iommu import diff_mappings

DATA = Path(__file__).parents[3] / "support" / "data" / "vtd"
NVME = parse_bdf("03:00.0")
MODES = {
    "legacy": (Translation.SECOND_STAGE, None),
    "second-stage": (Translation.SECOND_STAGE, 0),
    "first-stage": (Translation.FIRST_STAGE, 0),
}


class Capture:
    """One boot; memory that was not captured reads as zeros."""

    def __init__(self, name: str) -> None:
        self.document: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
        self.words = {int(at, 16): int(word, 16) for at, word in self.document["words"].items()}

    def read(self, phys_addr: int, size: int) -> bytes:
        return b"".join(
            struct.pack("<Q", self.words.get(at, 0)) for at in range(phys_addr, phys_addr + size, 8)
        )

    @property
    def registers(self) -> Registers:
        return decode_registers(parse_xp(self.document["registers"], size=REGISTER_BYTES).data)

    def outside(self) -> MappingSet:
        decoded = decode_unit(self, self.registers.rtaddr, only=[NVME])
        assert decoded.is_complete
        (found,) = decoded.sets
        return found

    def inside(self) -> MappingSet:
        (unit,) = parse_dmar_translation(self.document["dmar_translation_struct"])
        (binding,) = unit.bindings
        return parse_domain_translation(self.document["domain_translation_struct"], binding)


@pytest.fixture(params=MODES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_memory_and_kernel_say_the_same(name: str) -> None:
    capture = Capture(name)
    outside = capture.outside()
    translation, pasid = MODES[name]
    assert outside.binding.translation is translation
    assert outside.requester.pasid == pasid
    assert outside.mapped_bytes == 44 * 4096
    assert diff_mappings(capture.inside(), outside).is_identical


def test_registers_are_those_of_a_unit_that_translates(name: str) -> None:
    registers = Capture(name).registers
    assert registers.status.is_translating and registers.status.has_root_pointer
    assert registers.faults.is_clear
    assert registers.root.is_scalable is (name != "legacy")
    assert (registers.capabilities.fault_offset, registers.capabilities.fault_count) == (0x220, 1)
    assert registers.queue_head == registers.queue_tail


def test_every_word_matters(name: str) -> None:
    """No captured word can change in any way without the decode noticing one of the ways."""
    capture = Capture(name)
    before = capture.outside()

    def is_noticed(at: int, bit: int) -> bool:
        capture.words[at] ^= 1 << bit
        decoded = decode_unit(capture, capture.registers.rtaddr, only=[NVME])
        capture.words[at] ^= 1 << bit
        return not (decoded.is_complete and [*decoded.sets] == [before])

    # bit 13 is part of addresses and domain ids; of a first-stage PASID entry the word that holds
    # the second stage's address matters for its type only
    unnoticed = [at for at in capture.words if not (is_noticed(at, 13) or is_noticed(at, 6))]
    assert unnoticed == []
