# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats.echo import (
    REPLY,
    REQUEST,
    EchoError,
    EchoFrame,
    NotEchoError,
    build_request,
    decode_echo,
    encode_echo,
)

u64 = st.integers(0, (1 << 64) - 1)
macs = st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":"))
frames = st.builds(
    EchoFrame,
    destination=macs, source=macs, kind=st.sampled_from([REQUEST, REPLY]), seq=u64, sender_ns=u64,
    boot=u64, tick_seq=u64, tsc=u64, monotonic_ns=u64, boottime_ns=u64, realtime_ns=u64,
)  # fmt: skip
GUEST, HOST = "52:54:00:20:00:01", "52:54:00:00:00:01"
FRAME = build_request(destination=GUEST, source=HOST, seq=5, sender_ns=6)
REPLY_5 = EchoFrame(destination=HOST, source=GUEST, kind=REPLY, seq=5, sender_ns=6, boot=77)


@given(frames, st.binary(max_size=64))
def test_round_trip_with_padding(frame: EchoFrame, padding: bytes) -> None:
    assert decode_echo(encode_echo(frame) + padding) == frame


@given(st.one_of(st.binary(max_size=256), st.binary().map(lambda b: FRAME[:22] + b)))
def test_random_bytes_raise_only_the_stated_error(data: bytes) -> None:
    with pytest.raises(EchoError):
        decode_echo(data)


@given(st.integers(0, len(FRAME) - 1))
def test_truncation_is_an_error(size: int) -> None:
    with pytest.raises(EchoError, match="length"):
        decode_echo(FRAME[:size])


@given(frames, st.integers(12 * 8, len(FRAME) * 8 - 1))
def test_any_flipped_bit_after_the_addresses_is_found(frame: EchoFrame, bit: int) -> None:
    data = bytearray(encode_echo(frame))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(EchoError):
        decode_echo(bytes(data))


def test_other_traffic_is_told_apart_from_damage() -> None:
    with pytest.raises(NotEchoError):
        decode_echo(FRAME[:12] + b"\x08\x06" + FRAME[14:])
    with pytest.raises(NotEchoError):
        decode_echo(b"")
    with pytest.raises(EchoError) as caught:
        decode_echo(FRAME[:-1])
    assert not isinstance(caught.value, NotEchoError)


def test_unknown_kind_is_an_error() -> None:
    with pytest.raises(EchoError, match="kind is 3"):
        decode_echo(encode_echo(replace(REPLY_5, kind=3)))


def test_request_is_what_the_guest_expects() -> None:
    assert FRAME[:16] == bytes.fromhex("52540020000152540000000188b5") + b"LU"
    assert FRAME[14:18] == b"LUEC"
    assert FRAME[18:22] == b"\1\0\1\0"
    assert FRAME[22:38] == (5).to_bytes(8, "little") + (6).to_bytes(8, "little")
    assert FRAME[38:86] == bytes(48)
    assert len(FRAME) == 90


@pytest.mark.parametrize("mac", ["", "52:54:00:20:00", "52-54-00-20-00-01", "xx:54:00:20:00:01"])
def test_bad_address_is_an_error(mac: str) -> None:
    with pytest.raises(ValueError, match="not an Ethernet address"):
        build_request(destination=mac, source=HOST, seq=1, sender_ns=1)
