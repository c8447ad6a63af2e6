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

#: what KUnit prints of a test that runs once for each parameter (debugfs of Linux 7.3.4)
PARAMETERS = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: suite
    1..2
        KTAP version 1
        # Subtest: lookup
        ok 1 stage 1
        ok 2 stage 2
    # lookup: pass:2 fail:0 skip:0 total:2
    ok 1 lookup
    ok 2 check
# suite: pass:2 fail:0 skip:0 total:2
# Totals: pass:3 fail:0 skip:0 total:3
ok 1 suite
"""


@pytest.mark.parametrize("text", [NESTED, PARAMETERS])
def test_nested_results_that_are_ok_are_fine(text: str) -> None:
    assert find_wrong(text) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        ok 2 stage 2\n", ""),
        ("        ok 2 stage 2\n", "        not ok 2 stage 2\n"),
        ("    # lookup: pass:2 fail:0 skip:0 total:2\n", ""),
        ("    ok 2 check\n", ""),
    ],
)
def test_a_parameter_that_is_missing_or_fails_is_found(old: str, new: str) -> None:
    assert old in PARAMETERS
    assert find_wrong(PARAMETERS.replace(old, new))


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
