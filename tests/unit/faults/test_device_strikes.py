# SPDX-License-Identifier: Apache-2.0
"""Faults that strike a device from outside hit what they mean to hit, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from liveupdate.core.errors import EvidenceError
from liveupdate.core.units import PhysAddr, format_addr
from liveupdate.faults.base import Later, Moment
from liveupdate.faults.device import DROP_AFTER, DROPPED
from liveupdate.faults.table import FAULTS
from liveupdate.formats import keep_dma
from liveupdate.model.evidence import FrameSent, Struck
from liveupdate.model.scenario import DeviceSpec
from liveupdate.run.testbed import Testbed
from liveupdate.transport.physmem import PhysMem, RamRange
from tests.support import evidence_builder as make
from tests.support.keep_dma_record import make_record

PAGE = 4096
SIZE = 256 * PAGE
RECORD_AT = 77 * PAGE


class Bed:
    """RAM with a record of kept DMA in it, and a page that only begins like one."""

    def __init__(self) -> None:
        fd = os.memfd_create("t", os.MFD_CLOEXEC)
        os.ftruncate(fd, SIZE)
        self.record = make_record(total=200)
        ram = PhysMem(fd, SIZE, (RamRange(start=PhysAddr(0), size_bytes=SIZE, offset=0),))
        ram.write(PhysAddr(5 * PAGE), self.record[:8])
        ram.write(PhysAddr(RECORD_AT), self.record)
        console = SimpleNamespace(wait_line=lambda pattern, deadline: None)
        self.host = SimpleNamespace(ram=ram, ram_fd=fd, console=console)
        self.own_machine = self.host
        self.senders = {"nic0": SimpleNamespace(next_number=1000, lost=frozenset(), dropped=())}
        self.plan = replace(make.make_plan(), devices=(DeviceSpec(name="nic0"),))

    def close(self) -> None:
        self.host.ram.close()
        os.close(self.host.ram_fd)

    def read(self) -> bytes:
        found: bytes = self.host.ram.read(PhysAddr(RECORD_AT), len(self.record))
        return found


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    yield made
    made.close()


def strike(fault: str, bed: Bed) -> Struck | Later:
    struck = FAULTS[fault].strike
    assert struck is not None
    return struck(cast(Testbed, bed))


def test_corrupt_record_flips_one_bit_of_it(bed: Bed) -> None:
    told = strike("corrupt-record", bed)
    assert isinstance(told, Struck)
    assert told.where == f"host-physical {format_addr(RECORD_AT + keep_dma.PRESERVE_NS_AT)}"
    assert int(told.before, 16) ^ int(told.after, 16) == 1
    changed = [a ^ b for a, b in zip(bed.read(), bed.record, strict=True) if a != b]
    assert changed == [1]
    assert bed.read()[: keep_dma.PRESERVE_NS_AT] == bed.record[: keep_dma.PRESERVE_NS_AT]
    assert bed.read()[keep_dma.HEADER_BYTES :] == bed.record[keep_dma.HEADER_BYTES :]
    assert not keep_dma.is_whole(bed.read())


def test_record_version_is_wrong_in_nothing_but_that(bed: Bed) -> None:
    told = strike("record-version", bed)
    assert isinstance(told, Struck) and told.view == "outside"
    assert told.before == bed.record[: keep_dma.HEADER_BYTES].hex()
    assert told.after == bed.read()[: keep_dma.HEADER_BYTES].hex() != told.before
    assert bed.read() == make_record(total=200, version=keep_dma.VERSION + 1)
    assert keep_dma.is_whole(bed.read())


def test_record_that_is_nowhere_is_an_error_and_not_a_verdict(bed: Bed) -> None:
    bed.host.ram.flip_bit(PhysAddr(RECORD_AT + 150), 0)
    with pytest.raises(EvidenceError, match="has no record"):
        strike("corrupt-record", bed)


def test_dropped_frames_are_still_to_come(bed: Bed) -> None:
    later = strike("drop-frames", bed)
    sender = bed.senders["nic0"]
    assert len(sender.lost) == DROPPED
    assert min(sender.lost) == 1000 + DROP_AFTER
    assert not isinstance(later, Struck)
    assert later() is None
    sender.dropped = tuple(FrameSent(number, 1, 2) for number in sorted(sender.lost)[:2])
    told = later()
    assert told is not None
    assert (told.before, told.after) == ("dropped: none", "dropped: number 1050, 1051")
    assert told.at_ns == 2


def test_a_fault_either_changes_the_plan_or_strikes() -> None:
    for fault in FAULTS.values():
        assert (fault.change is not None) == (fault.at is Moment.PLAN)
        assert (fault.strike is not None) == (fault.at is not Moment.PLAN)
