# SPDX-License-Identifier: Apache-2.0
"""The receive ring: what a device leaves in it is counted, and nothing else is."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.agent.device import ring as rings
from liveupdate.agent.device.ring import Account, Ring, RingError, decode_account, size_for
from liveupdate.formats.frames import FRAME_BYTES, build_frame

STREAM = 0x1122334455667788
ENTRIES = 16
IOVA = 0x1000_0000
MACS = {"destination": "52:54:00:40:00:00", "source": "52:54:00:30:00:01"}


def frame(number: int, stream: int = STREAM) -> bytes:
    return build_frame(**MACS, stream=stream, number=number)


class Nic:
    """What a device does to a ring: fills the descriptors from its head up to the tail."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.head = 0
        self.tail = ENTRIES - 1

    def receive(self, data: bytes, status: int = 3) -> bool:
        if self.head == self.tail:
            return False
        at = rings.RING_AT + self.head * rings.DESCRIPTOR_BYTES
        address = struct.unpack_from("<Q", self.memory, at)[0] - IOVA
        self.memory[address : address + len(data)] = data
        struct.pack_into("<QIHH", self.memory, at, 0, status, len(data), 0)
        self.head = (self.head + 1) % ENTRIES
        return True


@pytest.fixture
def memory() -> Iterable[mmap.mmap]:
    area = mmap.mmap(-1, size_for(ENTRIES))
    yield area
    area.close()


@pytest.fixture
def ring(memory: mmap.mmap) -> Iterable[Ring]:
    made = Ring.create(memory, ENTRIES, STREAM, IOVA)
    yield made
    made.close()


def counts(account: Account) -> dict[str, int]:
    return {name: getattr(account, name) for name in Account.COUNTS if getattr(account, name)}


def test_frames_are_received_in_order_round_and_round(memory: mmap.mmap, ring: Ring) -> None:
    nic = Nic(memory)
    number = 0
    for _ in range(10):
        while nic.receive(frame(number)):
            number += 1
        assert ring.poll() == ENTRIES - 1
        nic.tail = ring.tail
    assert number == 10 * (ENTRIES - 1)
    assert counts(ring.account) == {"received": number}
    assert ring.account.expected == number


def test_what_landed_is_seen_by_the_next_kernel_and_counted_once(
    memory: mmap.mmap, ring: Ring
) -> None:
    nic = Nic(memory)
    for number in range(3):
        nic.receive(frame(number))
    ring.poll()
    for number in range(3, 8):
        nic.receive(frame(number))
    found = Ring.find(memory, IOVA)
    landed = found.landed()
    assert (landed.found, landed.first, landed.last, landed.is_full) == (5, 3, 7, False)
    assert found.landed().found == 5  # looking changes nothing
    assert found.poll() == 5
    assert counts(found.account) == {"received": 8}
    found.close()


def test_full_ring_says_so(memory: mmap.mmap, ring: Ring) -> None:
    nic = Nic(memory)
    for number in range(ENTRIES):
        nic.receive(frame(number))
    assert ring.landed().is_full


def test_nothing_landed(ring: Ring) -> None:
    landed = ring.landed()
    assert (landed.found, landed.first, landed.last) == (0, None, None)


def take(*frames: bytes) -> Account:
    account = Account(ENTRIES, STREAM)
    for each in frames:
        account.take(each)
    return account


def test_missing_frames_are_counted_exactly() -> None:
    account = take(frame(0), frame(3), frame(4), frame(9))
    assert counts(account) == {"received": 4, "missing": 6}
    assert account.gaps == [(1, 2), (5, 8)]


def test_repeated_and_late_frames_are_told_apart() -> None:
    account = take(frame(0), frame(2), frame(2), frame(1))
    assert counts(account) == {"received": 2, "missing": 1, "duplicate": 1, "reordered": 1}


@given(st.integers(0, 8 * FRAME_BYTES - 1))
def test_any_flipped_bit_is_noticed(bit: int) -> None:
    spoilt = bytearray(frame(0))
    spoilt[bit // 8] ^= 1 << bit % 8
    account = take(bytes(spoilt))
    assert account.received == 0
    assert account.damaged + account.foreign == 1


@given(st.binary(max_size=200))
def test_garbage_is_never_a_frame(data: bytes) -> None:
    assert take(data).received == 0


def test_flawed_descriptor_and_cut_frame_are_damaged(memory: mmap.mmap, ring: Ring) -> None:
    nic = Nic(memory)
    nic.receive(frame(0), status=3 | 1 << 31)
    nic.receive(frame(1)[:-1])
    ring.poll()
    assert counts(ring.account) == {"damaged": 2}


def test_frames_of_another_run_are_foreign() -> None:
    assert counts(take(frame(0, STREAM + 1))) == {"foreign": 1}


def test_account_survives_the_round_trip() -> None:
    account = take(frame(5), frame(7), frame(5))
    account.next = 3
    again = decode_account(account.encode() + bytes(4096))
    assert again.to_json() == account.to_json()
    assert (again.next, again.stream, again.entries) == (3, STREAM, ENTRIES)


def test_gaps_beyond_what_is_remembered_are_still_counted() -> None:
    account = take(*(frame(2 * number) for number in range(100)))
    assert len(account.gaps) == rings.GAPS_MAX
    assert account.missing == 99
    assert decode_account(account.encode()).missing == 99


@given(st.integers(0, 8 * len(Account(ENTRIES, STREAM).encode()) - 1))
def test_any_flipped_bit_of_an_account_is_noticed(bit: int) -> None:
    spoilt = bytearray(Account(ENTRIES, STREAM).encode())
    spoilt[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RingError):
        decode_account(bytes(spoilt) + bytes(4096))


def test_ring_of_another_size_is_refused(memory: mmap.mmap, ring: Ring) -> None:
    with mmap.mmap(-1, size_for(2 * ENTRIES)) as larger:
        larger[: rings.RING_AT] = memory[: rings.RING_AT]
        with pytest.raises(RingError, match="do not hold"):
            Ring.find(larger, IOVA)


def test_impossible_index_is_refused() -> None:
    account = Account(ENTRIES, STREAM)
    account.next = ENTRIES
    with pytest.raises(RingError, match="cannot be"):
        decode_account(account.encode())
