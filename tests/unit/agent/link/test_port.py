# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the wire survives whatever a kexec, a bug or a stranger puts on it."""

from __future__ import annotations

import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveupdate.agent.base import fast_stdlib, framing
from liveupdate.agent.link.port import Port

#: the whole unit suite has seconds, and shares its CPUs
QUICK = settings(deadline=None, max_examples=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), 1 << 64) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=6,
)


@QUICK
@given(st.lists(st.binary()), st.integers(0, 64))
def test_splitter_returns_the_same_lines_however_the_stream_is_cut(
    chunks: list[bytes], limit: int
) -> None:
    stream = b"".join(chunks)
    whole = framing.LineSplitter(limit).feed(stream)
    splitter = framing.LineSplitter(limit)
    pieces = [line for chunk in chunks for line in splitter.feed(chunk)]
    assert [p for p in pieces if p is not None] == [w for w in whole if w is not None]
    assert pieces.count(None) == whole.count(None)
    assert all(len(p) <= limit for p in pieces if p is not None)


def test_oversized_line_is_reported_once_and_the_next_one_is_read() -> None:
    splitter = framing.LineSplitter(10)
    got = [line for _ in range(100) for line in splitter.feed(b"x" * 7)]
    got += splitter.feed(b"end\nnext\n")
    assert got == [None, b"next"]


@QUICK
@given(st.binary())
def test_garbage_is_a_wire_error_or_a_call(line: bytes) -> None:
    try:
        seq, name, args = framing.parse_call(line)
    except framing.WireError:
        return
    assert isinstance(seq, int)
    assert isinstance(name, str)
    assert isinstance(args, dict)


@QUICK
@given(JSON)
def test_any_json_is_a_wire_error_or_a_call(value: object) -> None:
    try:
        seq, name, _args = framing.parse_call(json.dumps(value).encode())
    except framing.WireError:
        return
    assert isinstance(value, dict)
    assert (seq, name) == (value["seq"], value["call"])


@QUICK
@given(st.integers(0, (1 << 63) - 1), st.text(), st.dictionaries(st.text(), JSON), st.data())
def test_truncated_call_is_a_wire_error(
    seq: int, name: str, args: dict[str, object], data: st.DataObject
) -> None:
    line = json.dumps({"seq": seq, "call": name, "args": args}).encode()
    assert framing.parse_call(line) == (seq, name, args)
    cut = data.draw(st.integers(0, len(line) - 1))
    with pytest.raises(framing.WireError):
        framing.parse_call(line[:cut])


@pytest.mark.parametrize(
    "line",
    [
        b'{"seq":true,"call":"ping"}',
        b'{"seq":-1,"call":"ping"}',
        b'{"seq":1.0,"call":"ping"}',
        b'{"seq":1,"call":7}',
        b'{"seq":1,"call":"ping","args":[]}',
        b"[" * 100_000,
        b'{"seq":' + b"9" * 5000 + b',"call":"ping"}',
    ],
)
def test_call_of_the_wrong_shape_is_a_wire_error(line: bytes) -> None:
    with pytest.raises(framing.WireError):
        framing.parse_call(line)


def test_refusal_names_the_call_when_it_can_be_made_out() -> None:
    with pytest.raises(framing.WireError) as caught:
        framing.parse_call(b'{"seq":7,"call":null}')
    assert caught.value.seq == 7


@QUICK
@given(JSON)
def test_codec_agrees_with_json(value: object) -> None:
    encoded = fast_stdlib.encode_json(value)
    assert json.loads(encoded) == value
    assert fast_stdlib.decode_json(encoded) == value
    assert b"\n" not in encoded


@pytest.mark.parametrize("text", ["", "{", "[1,]", "NaN", "Infinity", "{} x", "\ud800"[:0] + "'a'"])
def test_codec_refuses_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        fast_stdlib.decode_json(text)


def test_codec_accepts_blanks_around() -> None:
    assert fast_stdlib.decode_json(b' {"a": 1}\r') == {"a": 1}


def test_event_and_replies_have_the_shape_of_the_protocol() -> None:
    event = json.loads(framing.encode_event(3, "paused", {"guest": "vm0"}))
    assert event.pop("t_ns") > 0
    assert event == {"n": 3, "event": "paused", "data": {"guest": "vm0"}}
    assert json.loads(framing.encode_reply(4, {})) == {"re": 4, "ok": {}}
    refused = json.loads(framing.encode_error(5, "args", "no"))
    assert refused == {"re": 5, "error": {"kind": "args", "message": "no"}}


@QUICK
@given(st.lists(st.binary(min_size=1, max_size=100)), st.integers(1, 50))
def test_outbox_keeps_order_over_short_writes(lines: list[bytes], most: int) -> None:
    outbox, out, calls = framing.Outbox(), bytearray(), 0

    def write(data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise BlockingIOError
        out.extend(data[:most])
        return min(most, len(data))

    for line in lines:
        outbox.put(line)
    while not outbox.flush(write):
        pass
    assert bytes(out) == b"\n" + b"".join(lines)
    assert outbox.pending_bytes == 0


def test_outbox_drops_chatter_first_and_counts_it() -> None:
    outbox = framing.Outbox()
    assert outbox.put(b"x" * framing.SOFT_LIMIT_BYTES)
    assert not outbox.put(b"chatter", droppable=True)
    assert outbox.put(b"needed")
    assert not outbox.put(b"x" * framing.HARD_LIMIT_BYTES)


def test_port_without_a_device_keeps_lines_for_later() -> None:
    port = Port()
    port.send(b"one\n")
    port.drain(0.01)
    assert port.has_pending
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        port.attach(ours.fileno())
        port.flush()
        assert theirs.recv(100) == b"\none\n"


def test_port_never_blocks_on_a_reader_that_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        port = Port()
        port.attach(ours.fileno())
        for _ in range(100):
            port.send(b"x" * 65535 + b"\n")
        assert port.has_pending


def test_port_survives_the_other_end_going_away() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    port = Port()
    port.attach(writer)
    os.close(reader)
    port.send(b"lost\n")
    assert port.read() == b""
    os.close(writer)
