# SPDX-License-Identifier: Apache-2.0
"""Checks that must not be skipped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.core.errors import ScenarioError
from liveupdate.judging.require import apply_required, parse_required
from liveupdate.judging.table import CHECK_IDS
from liveupdate.model.verdict import Check, Outcome, Verdict, reduce


def make_verdict(*statuses: Outcome) -> Verdict:
    checks = tuple(
        Check(id=check, status=status, reason="r")
        for check, status in zip(CHECK_IDS, statuses, strict=False)
    )
    return Verdict(outcome=reduce(statuses), checks=checks)


def test_words_are_checks_families_all_and_kinds_of_tests() -> None:
    assert parse_required("") == frozenset()
    assert parse_required("guest.clock") == {"guest.clock"}
    assert parse_required(" memory , vm") == {"memory.content", "memory.placement"}
    assert parse_required("all") == frozenset(CHECK_IDS)


@pytest.mark.parametrize("text", ["gest.clock", "guest.", "everything"])
def test_unknown_word_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_required(text)
    assert caught.value.where == "LIVEUPDATE_REQUIRE"


def test_required_skip_is_an_error_and_says_why() -> None:
    verdict = make_verdict(Outcome.PASS, Outcome.SKIP, Outcome.SKIP)
    done = apply_required(verdict, frozenset({CHECK_IDS[1]}))
    assert [check.status for check in done.checks] == [Outcome.PASS, Outcome.ERROR, Outcome.SKIP]
    assert done.outcome is Outcome.ERROR
    assert done.reason == f"{CHECK_IDS[1]}: required, but skipped: r"


_statuses = st.lists(st.sampled_from(Outcome), min_size=1, max_size=len(CHECK_IDS))


@given(_statuses, st.frozensets(st.sampled_from(CHECK_IDS)))
def test_nothing_but_skips_changes_and_twice_is_once(
    statuses: list[Outcome], required: frozenset[str]
) -> None:
    verdict = make_verdict(*statuses)
    done = apply_required(verdict, required)
    for old, new in zip(verdict.checks, done.checks, strict=True):
        turned = old.status is Outcome.SKIP and old.id in required
        assert new.status is (Outcome.ERROR if turned else old.status)
    assert done.outcome is reduce(check.status for check in done.checks)
    assert apply_required(done, required) == done
