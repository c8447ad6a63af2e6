# SPDX-License-Identifier: Apache-2.0
"""ARP probes: what goes out, and what counts as an answer."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats.arp import ArpError, build_probe, decode_reply

OURS = "52:54:00:30:00:01"


def _answer(probe: bytes, mac: bytes = b"\x52\x54\x00\x20\x00\x00") -> bytes:
    """What the owner of the probed address sends back."""
    target = probe[38:42]
    return probe[6:12] + mac + probe[12:20] + b"\0\2" + mac + target + probe[6:12] + bytes(4)


@given(st.ip_addresses(v=4))
def test_answer_names_the_address_that_was_asked_for(address: ipaddress.IPv4Address) -> None:
    assert decode_reply(_answer(build_probe(str(address), OURS)), OURS) == str(address)


def test_probe_is_no_answer() -> None:
    with pytest.raises(ArpError, match="operation"):
        decode_reply(build_probe("10.0.0.1", OURS), OURS)


def test_reply_that_answers_no_question_of_ours_is_refused() -> None:
    reply = _answer(build_probe("10.0.0.1", OURS))
    with pytest.raises(ArpError, match="not to"):
        decode_reply(bytes([255] * 6) + reply[6:], OURS)
    with pytest.raises(ArpError, match="from 52:54:00:66:00:00 for"):
        decode_reply(reply[:6] + bytes.fromhex("525400660000") + reply[12:], OURS)


def test_sender_address_of_a_probe_is_empty() -> None:
    probe = build_probe("10.0.0.1", OURS)
    assert probe[28:32] == bytes(4)
    assert len(probe) >= 60


@given(st.binary(max_size=80))
def test_any_bytes_are_an_answer_or_an_error(frame: bytes) -> None:
    try:
        address = decode_reply(frame, OURS)
    except ArpError:
        return
    assert str(ipaddress.IPv4Address(address)) == address


@pytest.mark.parametrize(("address", "mac"), [("10.0.0", OURS), ("10.0.0.1", "52:54")])
def test_wrong_address_is_an_error(address: str, mac: str) -> None:
    with pytest.raises(ValueError, match="."):
        build_probe(address, mac)
