# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.transport import agent_link
from liveupdate.transport.agent_link import AgentEvent, Garbled, LineBuffer, Reply, parse_line

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=10,
)


def lines_of(*chunks: bytes, max_bytes: int = 100) -> list[bytes | Garbled]:
    buffer = LineBuffer(max_bytes)
    return [line for chunk in chunks for line in buffer.feed(chunk)]


@given(st.binary(max_size=300), st.lists(st.integers(1, 60), max_size=20))
def test_chunks_do_not_matter_and_short_lines_all_arrive(stream: bytes, sizes: list[int]) -> None:
    chunks, at = [], 0
    for size in sizes:
        chunks.append(stream[at : at + size])
        at += size
    found = lines_of(*chunks, stream[at:], max_bytes=40)
    ended = stream.split(b"\n")[:-1]
    assert [line for line in found if isinstance(line, bytes)] == [
        line for line in ended if len(line) <= 40
    ]
    too_long = [line for line in stream.split(b"\n") if len(line) > 40]
    assert sum(isinstance(line, Garbled) for line in found) == len(too_long)


def test_the_line_after_one_that_is_too_long_arrives() -> None:
    found = lines_of(b"x" * 60, b"x" * 60, b"x\nshort\n")
    assert isinstance(found[0], Garbled)
    assert found[1:] == [b"short"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_garbled(line: bytes) -> None:
    assert isinstance(parse_line(line), Reply | AgentEvent | Garbled | None)


@given(JSON)
def test_any_json_is_a_value_or_garbled(value: object) -> None:
    line = json.dumps(value).encode()
    assert isinstance(parse_line(line), Reply | AgentEvent | Garbled)


@given(st.integers(0, 2**63 - 1), st.dictionaries(st.text(), JSON, max_size=3))
def test_replies_and_events_go_round(number: int, data: dict[str, object]) -> None:
    assert parse_line(json.dumps({"re": number, "ok": data}).encode()) == Reply(re=number, ok=data)
    event = {"n": number, "event": "paused", "t_ns": 5, "data": data}
    line = json.dumps(event).encode()
    assert parse_line(line) == AgentEvent(
        name="paused", n=number, t_ns=5, data=data, size_bytes=len(line)
    )


@pytest.mark.parametrize("number", [-1, 2**63, 10**400])
def test_numbers_that_nobody_can_count_with_are_garbled(number: int) -> None:
    for key in ("n", "t_ns"):
        event = {"n": 1, "event": "paused", "t_ns": 5, "data": {}, key: number}
        assert isinstance(parse_line(json.dumps(event).encode()), Garbled)


def test_events_that_are_kept_have_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_link, "_EVENT_BYTES_KEPT", 1000)
    link = agent_link.AgentLink(tmp_path / "socket")
    for number in range(1, 100):
        link._take(AgentEvent(name="x", n=number, t_ns=1, data={}, size_bytes=300), 1)
    assert [event.n for event in link.events()] == [97, 98, 99]
    assert link.mark() == 99


@given(st.integers(0, 80))
def test_a_cut_line_is_garbled_not_an_event(length: int) -> None:
    line = json.dumps({"n": 4, "event": "saved", "t_ns": 77, "data": {"guest": "vm0"}}).encode()
    cut = line[: min(length, len(line) - 1)]
    assert parse_line(cut) is None if not cut else isinstance(parse_line(cut), Garbled)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"re":1}',
        b'{"re":"1","ok":{}}',
        b'{"re":1,"ok":[]}',
        b'{"re":1,"error":"no"}',
        b'{"n":1,"event":"hello","t_ns":"soon","data":{}}',
        b"\xff\xfe{}",
        b"null",
    ],
)
def test_lies_are_garbled(line: bytes) -> None:
    assert isinstance(parse_line(line), Garbled)


@pytest.mark.parametrize("line", [b"", b"  ", b"\r"])
def test_an_empty_line_only_resynchronises(line: bytes) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(("escape", "is_garbled"), [(rb"\ud800", True), (rb"\ud83d\ude00", False)])
def test_only_a_surrogate_without_its_other_half_is_garbled(
    escape: bytes, is_garbled: bool
) -> None:
    line = b'{"n":1,"event":"x","t_ns":5,"data":{"a":"' + escape + b'"}}'
    assert isinstance(parse_line(line), Garbled) is is_garbled
