# SPDX-License-Identifier: Apache-2.0
"""VT-d tables of real boots; how they were captured: ``data/vtd/README.md``."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from liveupdate.formats.hmp_xp import parse_xp
from liveupdate.formats.iommu import MappingSet, Translation, parse_bdf
from liveupdate.formats.vtd.debugfs import parse_dmar_translation, parse_domain_translation
from liveupdate.formats.vtd.regs import RTADDR
from liveupdate.formats.vtd.tables import decode_unit

DATA = Path(__file__).parent / "data" / "vtd"


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
    def rtaddr(self) -> int:
        return int.from_bytes(parse_xp(self.document["registers"])[RTADDR : RTADDR + 8], "little")

    def outside(self) -> MappingSet:
        decoded = decode_unit(self, self.rtaddr, only=[NVME])
        assert decoded.is_complete
        (found,) = decoded.sets
        return found

    def inside(self) -> MappingSet:
        (unit,) = parse_dmar_translation(self.document["dmar_translation_struct"])
        (binding,) = unit.bindings
        return parse_domain_translation(self.document["domain_translation_struct"], binding)
