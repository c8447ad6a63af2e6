# SPDX-License-Identifier: Apache-2.0
"""What agents tell of a VM state is checked, and what lies in memory is digested as they do it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from liveupdate.core.units import PhysAddr
from liveupdate.model.vm_state import StateSum
from liveupdate.probes.state import collect_state, read_places, see_state
from liveupdate.transport.agent_link import AgentEvent
from liveupdate.transport.physmem import NotRam, PhysMem, RamRange

PAGE = 4096
SIZE = 16 * PAGE


@pytest.fixture
def ram() -> Iterator[PhysMem]:
    fd = os.memfd_create("t", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    made = PhysMem(fd, SIZE, (RamRange(start=PhysAddr(0x10000), size_bytes=SIZE, offset=0),))
    yield made
    made.close()
    os.close(fd)


def event(name: str, at_ns: int = 1, **data: object) -> AgentEvent:
    return AgentEvent(name=name, n=1, t_ns=0, at_ns=at_ns, data=data)


def test_pieces_are_digested_in_their_order(ram: PhysMem) -> None:
    ram.write(0x13000, b"a" * PAGE)
    ram.write(0x11000, b"b" * 100)
    seen = see_state(ram, [(0x13000, PAGE), (0x11000, 100)])
    wanted = hashlib.blake2b(b"a" * PAGE + b"b" * 100, digest_size=16).hexdigest()
    assert (seen.state_bytes, seen.state_digest) == (PAGE + 100, wanted)
    assert seen.began_ns <= seen.ended_ns


def test_a_place_outside_of_ram_is_said(ram: PhysMem) -> None:
    with pytest.raises(NotRam):
        see_state(ram, [(0x1000, PAGE)])


def test_what_both_agents_tell_is_taken_for_the_guest_it_is_of() -> None:
    facts = collect_state(
        (
            event("saved", guest="vm0", bytes=9, state_bytes=4096, state_digest="ab"),
            event("saved", guest="vm1", bytes=9, state_bytes=8192, state_digest="cd"),
            event("hello", 7),
            event("hello", 9),
            event("state-read", guest="vm0", state_bytes=4096, state_digest="ef"),
        ),
        "vm0",
    )
    assert facts.saved == StateSum(state_bytes=4096, state_digest="ab")
    assert facts.read == StateSum(state_bytes=4096, state_digest="ef")
    assert facts.hello_ns == 7


@pytest.mark.parametrize(
    "data", [{"bytes": 1}, {"state_bytes": "1", "state_digest": "ab"}, {"state_bytes": 1 << 70}]
)
def test_what_makes_no_sense_is_no_evidence(data: dict[str, Any]) -> None:
    assert collect_state([event("saved", guest="vm0", **data)], "vm0").saved is None


def test_places_are_read() -> None:
    assert read_places(event("preserved", places=[[4096, 10]])) == ((4096, 10),)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"unplaced": "no pagemap"}, "does not say where: no pagemap"),
        ({"places": []}, "0 pieces"),
        ({"places": [[4096]]}, "places"),
        ({"places": [[4096, 0]]}, "make no state"),
        ({"places": [[-1, 5]]}, "make no state"),
        ({"places": [[0, 1 << 31]]}, "more than any state"),
        ({"places": "x"}, "places"),
    ],
)
def test_places_that_make_no_sense_are_refused(data: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_places(event("preserved", **data))
