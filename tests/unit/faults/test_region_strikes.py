# SPDX-License-Identifier: Apache-2.0
"""Faults that strike what describes a region find it, or say that they did not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from liveupdate.core.errors import EvidenceError
from liveupdate.core.units import PhysAddr, format_addr
from liveupdate.faults.base import Later
from liveupdate.faults.table import FAULTS
from liveupdate.model.evidence import Struck
from liveupdate.model.plan import Region
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.run.testbed import Testbed
from liveupdate.transport.physmem import PhysMem, RamRange
from tests.support import evidence_builder as make

PAGE = 4096
SIZE = 64 * PAGE
AT = PhysAddr(33 * PAGE)


@pytest.fixture
def ram() -> Iterator[tuple[PhysMem, int]]:
    fd = os.memfd_create("t", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    made = PhysMem(fd, SIZE, (RamRange(start=PhysAddr(0), size_bytes=SIZE, offset=0),))
    yield made, fd
    made.close()
    os.close(fd)


def strike(
    fault: str, mechanism: str, ram: tuple[PhysMem, int], start: int | None
) -> Struck | Later:
    bed = SimpleNamespace(
        own_machine=SimpleNamespace(ram=ram[0], ram_fd=ram[1]),
        mechanism=MECHANISMS[mechanism],
        plan=replace(
            make.make_plan(), mechanism=mechanism, region=Region(start=start, size_bytes=SIZE)
        ),
    )
    struck = FAULTS[fault].strike
    assert struck is not None
    return struck(cast(Testbed, bed))


@pytest.mark.parametrize(
    "name", [m.name for m in MECHANISMS.values() if m.region_spare_bytes or m.marker]
)
def test_one_bit_where_the_mechanism_says_is_flipped(name: str, ram: tuple[PhysMem, int]) -> None:
    mechanism = MECHANISMS[name]
    head = b"" if mechanism.marker is None else mechanism.marker.to_bytes(8, "little")
    start = AT if mechanism.marker is None else None
    for fault, at in (("corrupt", mechanism.corrupt_at), ("version", mechanism.version_at)):
        ram[0].write(AT, head.ljust(PAGE, b"\0"))
        told = strike(f"region-{fault}", name, ram, start)
        assert isinstance(told, Struck) and told.where == f"host-physical {format_addr(AT + at)}"
        assert int(told.before, 16) ^ int(told.after, 16) == 2
        found = ram[0].read(AT, PAGE)
        before = head.ljust(PAGE, b"\0")
        changed = {n: found[n] ^ before[n] for n in range(PAGE) if found[n] != before[n]}
        assert changed == {at: 2}


@pytest.mark.parametrize(
    ("places", "said"), [((), "nowhere"), ((3, 9), "3000, 0x0000000000009000")]
)
def test_description_that_is_not_in_one_place_is_an_error(
    places: tuple[int, ...], said: str, ram: tuple[PhysMem, int]
) -> None:
    for page in places:
        ram[0].write(PhysAddr(page * PAGE), b"LU-POOL1")
    with pytest.raises(EvidenceError, match="in one place, it is in: ") as caught:
        strike("region-corrupt", "reserve-mem", ram, None)
    assert said in str(caught.value)
