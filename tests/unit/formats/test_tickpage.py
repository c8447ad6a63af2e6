# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats.pattern import STEP, expected_page, splitmix64
from liveupdate.formats.tickpage import (
    SIZE_BYTES,
    TickPage,
    TickPageError,
    TornTickError,
    decode_tick,
    encode_tick,
    read_tick,
)
from liveupdate.model.evidence import Tick

u64 = st.integers(0, (1 << 64) - 1)
pages = st.builds(
    TickPage,
    lock=u64.map(lambda value: value & ~1),
    **{field.name: u64 for field in fields(TickPage) if field.name != "lock"},
)
PAGE = TickPage(
    lock=2, boot=3, seq=4, tsc=5, monotonic_ns=6, boottime_ns=7, realtime_ns=8, seed=9,
    pattern_pages=10, pattern_bad=11, journal_seq=12, echo_count=13,
)  # fmt: skip


@given(pages, st.binary(max_size=64))
def test_round_trip(page: TickPage, tail: bytes) -> None:
    assert decode_tick(encode_tick(page) + tail) == page


@given(st.one_of(st.binary(max_size=256), st.binary().map(lambda b: encode_tick(PAGE)[:16] + b)))
def test_random_bytes_raise_only_the_stated_error(data: bytes) -> None:
    with pytest.raises(TickPageError):
        decode_tick(data)


@given(st.integers(0, SIZE_BYTES - 1))
def test_truncation_is_an_error(size: int) -> None:
    with pytest.raises(TickPageError, match="length"):
        decode_tick(encode_tick(PAGE)[:size])


@given(pages, st.integers(0, SIZE_BYTES * 8 - 1))
def test_any_flipped_bit_is_found(page: TickPage, bit: int) -> None:
    data = bytearray(encode_tick(page))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TickPageError):
        decode_tick(bytes(data))


@pytest.mark.parametrize(
    ("offset", "value", "where"),
    [(0, b"X", "offset 0"), (8, b"\x02", "offset 8"), (12, b"\x00", "offset 12")],
)
def test_other_format_is_not_a_torn_copy(offset: int, value: bytes, where: str) -> None:
    data = bytearray(encode_tick(PAGE))
    data[offset : offset + 1] = value
    with pytest.raises(TickPageError, match=where) as caught:
        decode_tick(bytes(data))
    assert not isinstance(caught.value, TornTickError)
    assert caught.value.where == where


def test_layout_is_little_endian_at_the_contracts_offsets() -> None:
    data = encode_tick(PAGE)
    assert data[:16] == b"LUTICK01" + b"\1\0\0\0" + b"\x80\0\0\0"
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(16, 120, 8)]
    assert words == [*range(2, 14), 0]


def test_reading_again_gets_over_a_torn_copy() -> None:
    odd = bytearray(encode_tick(PAGE))
    odd[16] = 3
    mixed = bytearray(encode_tick(PAGE))
    mixed[32] ^= 0xFF
    copies = [bytes(odd), bytes(mixed), encode_tick(PAGE)]
    assert read_tick(lambda: copies.pop(0)) == PAGE


def test_page_that_stays_torn_is_an_error() -> None:
    odd = bytearray(encode_tick(PAGE))
    odd[16] = 3
    calls: list[int] = []

    def read() -> bytes:
        calls.append(1)
        return bytes(odd)

    with pytest.raises(TornTickError, match="lock is odd"):
        read_tick(read, attempts=5)
    assert len(calls) == 5


def test_missing_page_is_not_read_again() -> None:
    copies = [bytes(4096), encode_tick(PAGE)]
    with pytest.raises(TickPageError, match="magic"):
        read_tick(lambda: copies.pop(0))
    assert len(copies) == 1


def test_odd_lock_cannot_be_encoded() -> None:
    odd = TickPage(**{field.name: 1 for field in fields(TickPage)})
    with pytest.raises(ValueError, match="odd"):
        encode_tick(odd)


def test_evidence_keeps_every_clock() -> None:
    assert PAGE.to_tick(99) == Tick(
        host_ns=99, boot=3, seq=4, tsc=5, monotonic_ns=6, boottime_ns=7, realtime_ns=8
    )


def test_splitmix64_gives_the_published_values() -> None:
    # first outputs for states 0 and 1234567, as in the reference implementation's test vectors
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(1234567) == 6457827717110365317


@given(u64, st.integers(0, 1 << 40))
def test_pattern_word_depends_on_its_place_alone(seed: int, index: int) -> None:
    page = expected_page(seed, index)
    assert len(page) == 4096
    second = (splitmix64((seed + index) % (1 << 64)) + STEP) % (1 << 64)
    assert page[8:16] == second.to_bytes(8, "little")
    assert page != expected_page(seed, index + 1)


def test_negative_page_is_an_error() -> None:
    with pytest.raises(ValueError, match="negative"):
        expected_page(0, -1)
