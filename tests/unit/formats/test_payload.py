# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.core.units import Gpa
from liveupdate.formats import payload
from liveupdate.formats.payload import (
    Done,
    Failure,
    PayloadLineError,
    Ready,
    Verified,
    decode_line,
)
from liveupdate.model.evidence import PatternFacts

READY = {
    "ev": "ready", "name": "g1", "boot": "18446744073709551615", "tick_gpa": "4096",
    "pattern_gpa_first": "8192", "pattern_pages": "10", "seed": "5", "disk_sectors": "2048",
    "mac": "52:54:00:20:00:01",
}  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner))
)


def test_ready_is_decoded() -> None:
    assert decode_line(json.dumps(READY)) == Ready(
        boot=(1 << 64) - 1, tick_gpa=Gpa(4096), pattern_gpa_first=Gpa(8192), pattern_pages=10,
        seed=5, name="g1", disk_sectors=2048, mac="52:54:00:20:00:01",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ('{"ev":"verified","pages":8,"bad":1}', Verified(pages=8, bad=1)),
        ('{"ev":"verified","pages":"8","bad":"0"}', Verified(pages=8, bad=0)),
        (b'{"ev":"done","cmd":"hello"}\n', Done(cmd="hello")),
        ('{"ev":"error","message":"no"}', Failure(message="no")),
        ("", None),
        ("  \r\n", None),
    ],
)
def test_other_lines_are_decoded(line: str | bytes, event: payload.PayloadEvent | None) -> None:
    assert decode_line(line) == event


def test_verification_becomes_evidence() -> None:
    assert Verified(pages=8, bad=1).to_facts() == PatternFacts(pages=8, bad=1)


@given(st.one_of(st.text(), st.binary()))
def test_random_text_raises_only_the_stated_error(line: str | bytes) -> None:
    try:
        event = decode_line(line)
    except PayloadLineError:
        return
    assert event is None


@given(values)
def test_random_json_raises_only_the_stated_error(value: object) -> None:
    line = json.dumps(value)
    with pytest.raises(PayloadLineError):
        decode_line(line)


@given(st.sampled_from(sorted(READY)), scalars.filter(lambda v: not isinstance(v, str)))
def test_wrong_value_names_its_key(key: str, value: object) -> None:
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64
    if number and key not in ("ev", "name", "mac"):
        return
    with pytest.raises(PayloadLineError) as caught:
        decode_line(json.dumps({**READY, key: value}))
    assert caught.value.where in (key, "line")


@pytest.mark.parametrize("key", sorted(READY))
def test_missing_value_names_its_key(key: str) -> None:
    with pytest.raises(PayloadLineError) as caught:
        decode_line(json.dumps({name: value for name, value in READY.items() if name != key}))
    assert caught.value.where == key


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "0x10", " 5", "٣", "18446744073709551616", "1e3"]
)
def test_only_decimal_64_bits_are_numbers(text: str) -> None:
    with pytest.raises(PayloadLineError, match="boot"):
        decode_line(json.dumps({**READY, "boot": text}))


@pytest.mark.parametrize(
    "line", ["[" * 50_000, '{"ev":"ready"', '{"ev":' + "9" * 5000 + "}", "x" * 70_000, "[]", "7"]
)
def test_hostile_lines_are_refused(line: str) -> None:
    with pytest.raises(PayloadLineError):
        decode_line(line)


@given(st.integers(0, len(json.dumps(READY)) - 1))
def test_truncation_is_an_error(size: int) -> None:
    line = json.dumps(READY)[:size]
    if line:
        with pytest.raises(PayloadLineError):
            decode_line(line)


def test_commands_are_flat_objects_of_strings() -> None:
    assert payload.clock_jump(-5) == {"cmd": "clock-jump", "ns": "-5"}
    assert payload.set_time(7) == {"cmd": "settime", "realtime_ns": "7"}
