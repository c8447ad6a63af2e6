# SPDX-License-Identifier: Apache-2.0
"""The check of KTAP texts that tests of kernel modules use goes red."""

from __future__ import annotations

import pytest

from tests.support.ktap import find_wrong

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
    1..1
    ok 1 inner # rcode=0
  ok 2 second
ok 1 main
"""


def test_nested_results_that_are_ok_are_fine() -> None:
    assert find_wrong(NESTED) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    ok 1 inner\n", "    not ok 1 inner\n"),
        ("    ok 1 inner\n", "    ok 1 inner # SKIP not wanted\n"),
        ("    ok 1 inner\n", ""),
        ("  1..2\n", "  1..3\n"),
        (NESTED, "nothing at all"),
    ],
)
def test_what_is_not_plainly_ok_is_named(old: str, new: str) -> None:
    assert find_wrong(NESTED.replace(old, new, 1))
