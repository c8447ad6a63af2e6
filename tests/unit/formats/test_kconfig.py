# SPDX-License-Identifier: Apache-2.0
"""Kconfig fragments as values."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats.kconfig import Difference, Fragment, KconfigError, parse_config

symbols = st.text(string.ascii_uppercase + string.digits + "_", min_size=1, max_size=12)
values = st.one_of(
    st.sampled_from(["y", "n", "m", "8", "0x200000", '""', '"-lu-a"', '"with \\" inside"']),
    st.integers(0, 1 << 40).map(str),
)
fragments = st.dictionaries(symbols, values, max_size=8).map(Fragment)


def test_set_unset_strings_and_comments_are_told_apart() -> None:
    text = """
    # a comment about CONFIG_NOT_THIS=y
    CONFIG_A=y
    # CONFIG_B is not set
    CONFIG_C="a string # with a hash"
    CONFIG_D=0x10
    """
    found = parse_config(text)
    assert dict(found.values) == {"A": "y", "B": "n", "C": '"a string # with a hash"', "D": "0x10"}


def test_last_value_of_a_symbol_wins() -> None:
    assert parse_config("CONFIG_A=y\nCONFIG_A=m\n").get("A") == "m"


@pytest.mark.parametrize("line", ["CONFIG_A", "A=y", "CONFIG_A = y", "CONFIG_A=y z", 'CONFIG_A="x'])
def test_other_lines_are_refused_with_their_place(line: str) -> None:
    with pytest.raises(KconfigError, match=r"my\.config:2: ") as info:
        parse_config(f"CONFIG_OK=y\n{line}\n", "my.config")
    assert info.value.where == "my.config:2"


def test_absent_symbol_counts_as_n() -> None:
    wanted = parse_config("# CONFIG_A is not set\n")
    assert wanted.missing_from(parse_config("")) == ()
    assert parse_config("CONFIG_A=y").missing_from(parse_config("")) == (Difference("A", "y", "n"),)


def test_prefix_of_a_symbol_is_not_the_symbol() -> None:
    assert parse_config("CONFIG_KVM=y").missing_from(parse_config("CONFIG_KVM_AMD=y"))


def test_missing_option_is_named_with_both_values() -> None:
    (difference,) = parse_config("CONFIG_NR_CPUS=16").missing_from(parse_config("CONFIG_NR_CPUS=8"))
    assert str(difference) == "CONFIG_NR_CPUS=16 (found 8)"


@given(fragments)
def test_rendered_fragment_parses_back(fragment: Fragment) -> None:
    assert parse_config(fragment.render()).values == fragment.values


@given(fragments, fragments)
def test_merge_holds_all_of_the_later_one(first: Fragment, second: Fragment) -> None:
    merged = first.merge(second)
    assert second.missing_from(merged) == ()
    lost = {difference.symbol for difference in first.missing_from(merged)}
    assert lost <= second.values.keys()


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_config(text)
    except KconfigError as error:
        assert error.where.startswith(".config:")
