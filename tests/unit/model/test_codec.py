# SPDX-License-Identifier: Apache-2.0
"""The JSON codec: exact round trips, and refusal with a place of everything else."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from liveupdate.model import codec
from liveupdate.model.base import Row
from liveupdate.model.evidence import Incident, KernelFacts, Phase, Provenance, Tick
from liveupdate.model.plan import Expected, FaultPlan, Plan
from tests.support import evidence_builder as make

PLAN = replace(
    make.make_plan(hops=2),
    fault=FaultPlan(
        name="x", expected=Expected(check="memory.content", status="FAIL", exit_code=1)
    ),
)
KERNEL = make.make_kernel(1, make.KERNEL_B)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("plan", PLAN), ("kernel", KERNEL), ("provenance", make.make_provenance())],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_document_survives_a_round_trip(kind: str, value: object) -> None:
    assert codec.loads(type(value), kind, codec.dumps(kind, value)) == value


NUMBERS = st.integers(-(2**63), 2**64 - 1)


@given(
    st.builds(Phase, hop=NUMBERS, name=st.text(), began_ns=NUMBERS, ended_ns=NUMBERS)
    | st.builds(Incident, kind=st.text(), hop=NUMBERS, text=st.text())
    | st.builds(Provenance)
)
def test_any_value_survives_a_round_trip(value: object) -> None:
    assert codec.decode(type(value), json.loads(json.dumps(codec.encode(value)))) == value


@given(st.builds(Tick, *[st.integers(0, 2**64 - 1)] * 7))
def test_rows_survive_a_round_trip(tick: Tick) -> None:
    line = json.dumps(codec.encode(tick))
    assert line.startswith("[")
    assert codec.parse(Tick, line, "row") == tick


Spoil = Callable[[dict[str, object]], object]


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda d: d.pop("release"), "kernel: .*missing required field `release`"),
        (lambda d: d.update(colour="red"), "kernel: .*unknown field `colour`"),
        (lambda d: d.update(generation="1"), "kernel.generation: Expected `int"),
        (lambda d: d.update(generation=True), "kernel.generation: Expected `int"),
        (lambda d: d.update(kho_found=1), "kernel.kho_found: Expected `bool"),
        (lambda d: d.update(luo_number=[]), "kernel.luo_number: Expected `int"),
        (lambda d: d.update(release=None), "kernel.release: Expected `str"),
    ],
)
def test_wrong_documents_are_refused_with_the_place(spoil: Spoil, word: str) -> None:
    document = json.loads(codec.dumps("kernel", KERNEL))
    spoil(document["value"])
    with pytest.raises(codec.CodecError, match=word):
        codec.loads(KernelFacts, "kernel", json.dumps(document))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format":"plan/1","value":{}}', "[" * 100_000]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(codec.CodecError):
        codec.loads(KernelFacts, "kernel", text)


def test_place_names_the_list_element() -> None:
    document = json.loads(codec.dumps("plan", PLAN))
    document["value"]["hops"][1]["incoming"]["sha256"] = 5
    with pytest.raises(codec.CodecError) as caught:
        codec.loads(Plan, "plan", json.dumps(document))
    assert caught.value.where == "plan.hops[1].incoming.sha256"


@pytest.mark.parametrize("value", [b"raw", float("nan"), {"a": (float("inf"),)}, object()])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(codec.CodecError):
        codec.dumps("x", value)


def test_whole_number_is_taken_for_a_float() -> None:
    assert codec.decode(float, 3) == 3.0


@pytest.mark.parametrize("line", ["[1, 2]", "[1, 2, 3, 4, 5, 6, 7, 8]", "{}", '["x"]'])
def test_row_of_another_length_or_form_is_refused(line: str) -> None:
    with pytest.raises(codec.CodecError, match="line 5"):
        codec.parse(Tick, line, "line 5")


def test_a_row_has_no_field_that_may_be_left_out() -> None:
    """An array that lacks its last field would be read with the default in its place."""
    rows = [Row]
    for kind in rows:
        rows += kind.__subclasses__()
    assert len(rows) > 5
    # a ping's time of asking came later: run directories without it are still judged
    later = {"AgentPing": (None,)}
    assert {kind.__name__: kind.__struct_defaults__ for kind in rows} == {
        kind.__name__: later.get(kind.__name__, ()) for kind in rows
    }


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400])
def test_an_integer_of_more_than_64_bits_is_refused(number: int) -> None:
    line = f"[1,2,3,{number},5,6,7]"
    with pytest.raises(codec.CodecError):
        codec.parse(Tick, line, "line 5")
    with pytest.raises(codec.CodecError):
        codec.decode(Tick, [1, 2, 3, number, 5, 6, 7])


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(codec.CodecError):
        codec.decode(dict[str, str], {"\ud800": "x"})
