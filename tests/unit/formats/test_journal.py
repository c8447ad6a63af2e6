# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats.journal import (
    SECTOR_BYTES,
    BytesReader,
    JournalError,
    decode_record,
    encode_record,
    newest_record,
    scan_journal,
)
from liveupdate.model.evidence import JournalSample
from liveupdate.model.guest_device_use import JournalFacts

u64 = st.integers(0, (1 << 64) - 1)
BOOT = 7


def make_disk(
    sectors: int, last: int, *, first: int = 1, boot: int = BOOT, base: bytes | None = None
) -> bytes:
    """A disk on which records ``first`` to ``last`` have been written in turn."""
    disk = bytearray(base or bytes(sectors * SECTOR_BYTES))
    crc = 0
    if first > 1:
        at = (first - 2) % sectors
        crc = int.from_bytes(disk[at * SECTOR_BYTES + 508 : at * SECTOR_BYTES + 512], "little")
    for seq in range(first, last + 1):
        record = encode_record(boot=boot, seq=seq, prev_crc=crc)
        crc = int.from_bytes(record[508:], "little")
        at = (seq - 1) % sectors * SECTOR_BYTES
        disk[at : at + SECTOR_BYTES] = record
    return bytes(disk)


def put(disk: bytes, sector: int, data: bytes) -> bytes:
    at = sector * SECTOR_BYTES
    return disk[:at] + data + disk[at + len(data) :]


class CountingReader(BytesReader):
    """Counts what is read; frozen values forbid it elsewhere."""

    read_bytes: list[int] = []  # noqa: RUF012 - reset by each test

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        self.read_bytes.append(size_bytes)
        return BytesReader.read_at(self, offset, size_bytes)


@given(u64, st.integers(1, (1 << 64) - 1), u64, u64, st.integers(0, (1 << 32) - 1))
def test_round_trip(boot: int, seq: int, monotonic_ns: int, realtime_ns: int, prev: int) -> None:
    data = encode_record(
        boot=boot, seq=seq, monotonic_ns=monotonic_ns, realtime_ns=realtime_ns, prev_crc=prev
    )
    record = decode_record(data, sector=(seq - 1) % 64, sectors=64)
    assert (record.boot, record.seq, record.prev_crc) == (boot, seq, prev)
    assert (record.monotonic_ns, record.realtime_ns) == (monotonic_ns, realtime_ns)
    assert record.to_sample(5) == JournalSample(host_ns=5, seq=seq)


@given(st.one_of(st.binary(max_size=600), st.binary(min_size=504, max_size=504)))
def test_random_bytes_raise_only_the_stated_error(data: bytes) -> None:
    for candidate in (data, b"LUJRNL01" + data):
        with pytest.raises(JournalError):
            decode_record(candidate, sector=0, sectors=1)


@given(st.integers(0, SECTOR_BYTES - 1))
def test_truncation_is_an_error(size: int) -> None:
    with pytest.raises(JournalError, match="sector 0"):
        decode_record(encode_record(boot=1, seq=1)[:size], sector=0, sectors=1)


@given(st.integers(0, SECTOR_BYTES * 8 - 1))
def test_any_flipped_bit_is_found(bit: int) -> None:
    data = bytearray(encode_record(boot=BOOT, seq=1, monotonic_ns=5))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(JournalError):
        decode_record(bytes(data), sector=0, sectors=1)


@pytest.mark.parametrize("seq", [0, 2])
def test_record_in_the_wrong_place_is_an_error(seq: int) -> None:
    with pytest.raises(JournalError, match="does not belong here"):
        decode_record(encode_record(boot=BOOT, seq=seq), sector=0, sectors=4)


@given(st.integers(1, 40), st.integers(1, 150))
def test_undisturbed_journal_is_whole(sectors: int, last: int) -> None:
    disk = make_disk(sectors, last)
    first = max(1, last - sectors + 1)
    assert scan_journal(disk) == JournalFacts(
        boot=BOOT, first_seq=first, last_seq=last, records=last - first + 1,
        missing=(), corrupt=0, foreign=0,
    )  # fmt: skip


@given(st.lists(st.binary(min_size=SECTOR_BYTES, max_size=SECTOR_BYTES), min_size=1, max_size=8))
def test_garbage_on_the_disk_is_a_fact_not_an_error(sectors: list[bytes]) -> None:
    disk = b"".join(sectors)
    facts = scan_journal(disk)
    assert (facts.records, facts.last_seq) == (0, 0)
    assert facts.corrupt == sum(1 for sector in sectors if sector != bytes(SECTOR_BYTES))
    assert newest_record(disk) is None


@pytest.mark.parametrize("disk", [b"", bytes(511), bytes(513)])
def test_impossible_disk_is_an_error(disk: bytes) -> None:
    with pytest.raises(JournalError, match="disk"):
        scan_journal(disk)
    with pytest.raises(JournalError, match="disk"):
        newest_record(disk, 3)


def test_lost_record_is_missing_and_damaged_one_is_counted() -> None:
    disk = make_disk(16, 10)
    assert scan_journal(put(disk, 4, bytes(SECTOR_BYTES))).missing == (5,)
    facts = scan_journal(put(disk, 4, b"x" * SECTOR_BYTES))
    assert (facts.missing, facts.corrupt, facts.records) == ((5,), 1, 9)


def test_record_of_the_lap_before_means_a_lost_write() -> None:
    stale = make_disk(16, 16)
    at = 3 * SECTOR_BYTES
    disk = put(make_disk(16, 26), 3, stale[at : at + SECTOR_BYTES])
    facts = scan_journal(disk)
    assert (facts.first_seq, facts.last_seq, facts.missing) == (11, 26, (20,))


def test_numbers_far_apart_do_not_exhaust_memory() -> None:
    disk = put(make_disk(8, 1), 7, encode_record(boot=BOOT, seq=1 << 60))
    facts = scan_journal(disk)
    assert facts.last_seq == 1 << 60 and len(facts.missing) == 7


def test_second_writer_breaks_the_chain() -> None:
    disk = make_disk(16, 10)
    forked = encode_record(boot=BOOT, seq=6, monotonic_ns=1, prev_crc=0)
    facts = scan_journal(put(disk, 5, forked))
    # 6 does not carry on from 5, and 7 not from this 6
    assert (facts.missing, facts.corrupt) == ((), 2)


def test_other_boots_are_foreign() -> None:
    disk = make_disk(32, 15, first=11, boot=9, base=make_disk(32, 10))
    facts = scan_journal(disk)
    assert (facts.boot, facts.first_seq, facts.last_seq, facts.foreign) == (9, 11, 15, 10)
    before = scan_journal(disk, boot=BOOT)
    assert (before.first_seq, before.last_seq, before.foreign) == (1, 10, 5)
    gone = scan_journal(disk, boot=1234)
    assert (gone.boot, gone.records, gone.foreign) == (1234, 0, 15)
    assert facts.corrupt == 0


@given(st.integers(1, 300), st.integers(1, 700), st.integers(0, 800))
def test_newest_is_found_whatever_the_hint(sectors: int, last: int, hint: int) -> None:
    record = newest_record(make_disk(sectors, last), hint)
    assert record is not None and record.seq == last


def test_newest_steps_over_a_hole() -> None:
    disk = put(make_disk(256, 200), 149, bytes(3 * SECTOR_BYTES))
    record = newest_record(disk, 140)
    assert record is not None and record.seq == 200


def test_sampling_reads_little() -> None:
    reader = CountingReader(data=make_disk(8192, 5000))
    reader.read_bytes.clear()
    record = newest_record(reader, 4998)
    assert record is not None and record.seq == 5000
    assert sum(reader.read_bytes) <= 140 * SECTOR_BYTES
