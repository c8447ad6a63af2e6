# SPDX-License-Identifier: Apache-2.0
"""flip-state hits one bit of the state, at the place that its seed gives, and says so."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec import UNSET, UnsetType

from liveupdate.core.errors import EvidenceError
from liveupdate.core.units import PhysAddr
from liveupdate.faults.state import choose_bit
from liveupdate.faults.table import FAULTS
from liveupdate.model.evidence import Struck
from liveupdate.model.plan import FaultPlan
from liveupdate.model.vm_state import Places
from liveupdate.run.testbed import Testbed
from liveupdate.transport.physmem import PhysMem, RamRange

PAGE = 4096
SIZE = 16 * PAGE
PLACES = ((3 * PAGE, PAGE), (9 * PAGE, 2 * PAGE))


@pytest.fixture
def ram() -> Iterator[PhysMem]:
    fd = os.memfd_create("t", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    made = PhysMem(fd, SIZE, (RamRange(start=PhysAddr(0), size_bytes=SIZE, offset=0),))
    yield made
    made.close()
    os.close(fd)


def strike(ram: object, places: Places = PLACES, seed: int | UnsetType = 7) -> Struck:
    fault = FAULTS["flip-state"]
    bed = SimpleNamespace(
        own_machine=SimpleNamespace(ram=ram),
        first_guest=SimpleNamespace(state_places=places, spec=SimpleNamespace(name="vm0")),
        plan=SimpleNamespace(fault=FaultPlan(name=fault.name, expected=fault.expected, seed=seed)),
    )
    assert fault.strike is not None
    done = fault.strike(cast(Testbed, bed))
    assert isinstance(done, Struck)
    return done


def test_one_bit_of_the_state_is_flipped_and_nothing_else(ram: PhysMem) -> None:
    struck = strike(ram)
    changed = {at: byte for at, byte in enumerate(ram.read(0, SIZE)) if byte}
    ((at, byte),) = changed.items()
    assert byte.bit_count() == 1
    assert any(start <= at < start + size for start, size in PLACES)
    assert "(seed 7)" in struck.what and f"{at:x}" in struck.where
    assert (struck.before, struck.after) == ("00", f"{byte:02x}")


def test_a_seed_gives_the_same_place_again_and_another_seed_another() -> None:
    assert choose_bit(PLACES, 7) == choose_bit(PLACES, 7)
    assert len({choose_bit(PLACES, seed) for seed in range(50)}) > 40


def test_every_piece_is_struck_and_the_offset_is_in_the_state() -> None:
    for seed in range(200):
        address, offset, bit = choose_bit(PLACES, seed)
        assert 0 <= bit < 8
        wanted = 3 * PAGE + offset if offset < PAGE else 9 * PAGE + offset - PAGE
        assert address == wanted
    assert {choose_bit(PLACES, seed)[0] // PAGE for seed in range(200)} == {3, 9, 10}


def test_without_a_planned_seed_a_new_one_is_chosen_and_said(ram: PhysMem) -> None:
    seeds = {re.search(r"seed (\d+)", strike(ram, seed=UNSET).what) for _ in range(3)}
    assert len({found and found[1] for found in seeds}) == 3


def test_a_state_in_an_unknown_place_is_said() -> None:
    with pytest.raises(EvidenceError, match="not known where the VM state of 'vm0' lies"):
        strike(None, places=())
