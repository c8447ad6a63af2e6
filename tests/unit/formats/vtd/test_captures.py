# SPDX-License-Identifier: Apache-2.0
"""Tables of real boots: from memory and from the kernel's own text comes the same translation.

The captures and how they were made: ``data/vtd/README.md``.
"""

from __future__ import annotations

import pytest

from liveupdate.formats.vtd.regs import RootPointer
from liveupdate.formats.vtd.tables import decode_unit
from liveupdate.judging.compare_iommu import diff_mappings
from tests.support.vtd_captures import MODES, NVME, Capture


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


def test_root_pointer_is_that_of_the_mode(name: str) -> None:
    capture = Capture(name)
    assert RootPointer.decode(capture.rtaddr).is_scalable is (name != "legacy")


def test_every_word_matters(name: str) -> None:
    """No captured word can change in any way without the decode noticing one of the ways."""
    capture = Capture(name)
    before = capture.outside()

    def is_noticed(at: int, bit: int) -> bool:
        capture.words[at] ^= 1 << bit
        decoded = decode_unit(capture, capture.rtaddr, only=[NVME])
        capture.words[at] ^= 1 << bit
        return not (decoded.is_complete and [*decoded.sets] == [before])

    # bit 13 is part of addresses and domain ids; of a first-stage PASID entry the word that holds
    # the second stage's address matters for its type only
    unnoticed = [at for at in capture.words if not (is_noticed(at, 13) or is_noticed(at, 6))]
    assert unnoticed == []
