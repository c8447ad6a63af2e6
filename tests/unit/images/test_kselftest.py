# SPDX-License-Identifier: Apache-2.0
"""Which tests of a tree have two stages, and the error when one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.core.errors import BuildError
from liveupdate.images.cache import Cache
from liveupdate.images.kselftest import build_tests, find_tests


@pytest.fixture
def src(tmp_path: Path) -> Path:
    suite = tmp_path / "src/tools/testing/selftests/liveupdate"
    suite.mkdir(parents=True)
    (suite / "luo_kexec_simple.c").write_text("int main() { return luo_test(); }")
    (suite / "liveupdate.c").write_text("int main() { return 0; }")
    (suite / "luo_test_utils.c").write_text("int luo_test() { return 0; }")
    return tmp_path / "src"


def test_only_what_has_two_stages_is_a_test(src: Path) -> None:
    assert set(find_tests(src)) == {"luo_kexec_simple"}


def test_a_test_that_the_tree_has_not_is_named_with_those_it_has(src: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"'luo_gone'.*it has: luo_kexec_simple"):
        build_tests(src, ("luo_gone",), Cache(tmp_path / "cache"))
    with pytest.raises(BuildError, match="it has: none"):
        build_tests(tmp_path, (), Cache(tmp_path / "cache"))
