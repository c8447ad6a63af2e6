# SPDX-License-Identifier: Apache-2.0
"""Hints for names that are not known."""

from __future__ import annotations

from liveupdate.core.suggest import suggest, suggest_or_list


def test_the_nearest_name_is_suggested() -> None:
    assert suggest("flip-bits", ["flip-bit", "kho-off"]) == "did you mean 'flip-bit'?"


def test_a_name_unlike_all_others_gets_the_alternative() -> None:
    assert suggest("x", ["flip-bit"]) is None
    assert suggest("x", ["flip-bit"], "see the manual") == "see the manual"


def test_without_a_near_name_all_are_listed_in_order() -> None:
    assert suggest_or_list("x", ["b", "a"]) == "known: a, b"
    assert suggest_or_list("x", ["b", "a"], "shipped") == "shipped: a, b"
