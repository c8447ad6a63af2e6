# SPDX-License-Identifier: Apache-2.0
"""KTAP against the examples of the kernel's own specification, and against what it allows."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from liveupdate.formats.ktap import DIRECTIVES, KtapError, KtapTest, parse, render

#: structure of the last example in Documentation/dev-tools/ktap.rst
NESTED = """\
KTAP version 1
1..1
  KTAP version 1
  1..2
    KTAP version 1
    1..1
    # inner: starting
    ok 1 inner
  ok 1 first
    KTAP version 1
    1..2
    ok 1 inner # SKIP not wanted
    # broken: FAIL
    not ok 2 broken
  not ok 2 second
not ok 1 main
"""


def test_nested_results_are_a_tree() -> None:
    report = parse(NESTED)
    assert report.notes == ()
    (main,) = report.tests
    assert (main.ok, main.name) == (False, "main")
    first, second = main.subtests
    assert first.subtests[0].diagnostics == ("inner: starting",)
    assert (second.subtests[0].directive, second.subtests[0].text) == ("SKIP", "not wanted")
    assert second.subtests[1].diagnostics == ("broken: FAIL",)


def test_nested_results_survive_a_round_trip() -> None:
    assert "\n".join(render(parse(NESTED).tests)) + "\n" == NESTED


@pytest.mark.parametrize("version", ["KTAP version 1", "TAP version 13", "TAP version 14"])
def test_versions_that_tests_print_are_taken(version: str) -> None:
    assert parse(f"[    1.0] noise\n{version}\n1..1\nok 1 - a name\n").tests[0].name == "a name"


@pytest.mark.parametrize("directive", DIRECTIVES)
def test_directives(directive: str) -> None:
    (test,) = parse(f"KTAP version 1\n1..1\nnot ok 1 x # {directive} why it is so\n").tests
    assert (test.ok, test.directive, test.text) == (False, directive, "why it is so")


def test_unknown_directive_leaves_the_result_and_keeps_the_text() -> None:
    (test,) = parse("KTAP version 1\n1..1\nok 1 check return code # rcode=0\n").tests
    assert (test.ok, test.name, test.directive, test.text) == (
        True,
        "check return code",
        "",
        "rcode=0",
    )


def test_unknown_lines_change_nothing() -> None:
    text = NESTED.replace("  ok 1 first", "[ 12.3] random: crng done\n  ok 1 first")
    assert parse(text) == parse(NESTED)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("KTAP version 1\n1..2\nok 1 a\n", "2 tests were planned, 1 were reported"),
        ("KTAP version 1\n1..2\nok 1 a\nok 3 b\n", "number 3, not 2"),
        ("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 a\n", "ends within a subtest"),
    ],
)
def test_contradictions_are_noted(text: str, word: str) -> None:
    assert any(word in note for note in parse(text).notes)


def test_text_without_a_version_is_no_ktap() -> None:
    with pytest.raises(KtapError):
        parse("ok 1 x\n")


WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="#", exclude_categories=("C", "Z")), min_size=1
)
LEAVES = st.builds(
    KtapTest,
    ok=st.booleans(),
    number=st.just(1),
    name=WORDS,
    directive=st.sampled_from(["", *DIRECTIVES]),
)


@example([KtapTest(ok=False, number=1, name="-", directive="SKIP")])
@given(st.lists(LEAVES, min_size=1, max_size=5))
def test_what_was_written_is_read_back(tests: list[KtapTest]) -> None:
    report = parse("\n".join(render(tests)))
    assert report.notes == ()
    assert [(t.ok, t.name, t.directive) for t in report.tests] == [
        (t.ok, t.name, t.directive) for t in tests
    ]


def count(tests: Iterable[KtapTest]) -> int:
    return sum(1 + count(test.subtests) for test in tests)


@given(st.text())
def test_any_text_is_parsed_and_no_result_is_made_up(text: str) -> None:
    assert count(parse("KTAP version 1\n" + text).tests) <= text.count("ok")


@given(st.lists(st.sampled_from(NESTED.splitlines()), max_size=20))
def test_shuffled_lines_are_parsed_and_no_result_is_made_up(lines: list[str]) -> None:
    results = [line for line in lines if line.lstrip().startswith(("ok ", "not ok "))]
    assert count(parse("\n".join(["KTAP version 1", *lines])).tests) <= len(results)


def test_subtests_indented_as_kunit_does() -> None:
    text = """KTAP version 1
1..1
    KTAP version 1
    # Subtest: suite
    1..2
    ok 1 a
    # b: EXPECTATION FAILED
    not ok 2 b
not ok 1 suite
"""
    report = parse(text)
    (suite,) = report.tests
    assert report.notes == ()
    assert [(case.name, case.ok) for case in suite.subtests] == [("a", True), ("b", False)]


def test_suite_that_did_not_run_is_noted() -> None:
    """What KUnit's debugfs shows when it was not enabled: "ok", and not one case."""
    text = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..4\nok 1 s\n"
    assert parse(text).notes == ("4 tests were planned, 0 were reported",)
