# SPDX-License-Identifier: Apache-2.0
"""Builds the two-stage live update tests of a kernel tree, which is only read.

Static programs, since the host has no compiler and another C library. The tree's own makefile would
put objects beside the sources; what it does for these programs is one call of the compiler each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError
from liveupdate.images.cache import Cache, digest_of, tree_sha256
from liveupdate.images.tool import JOBS, run_tool
from liveupdate.images.usertree import find_layout

SELFTESTS = "tools/testing/selftests"
#: directories below it that may have two-stage tests
SUITES = ("liveupdate", "vfio")
BUILD_S = 300.0
_TWO_STAGES = re.compile(r"\bluo_test\(")


def find_tests(src: Path) -> dict[str, Path]:
    """Return the sources of two-stage tests in a tree by the program's name."""
    found = sorted(path for suite in SUITES for path in (src / SELFTESTS / suite).glob("*.c"))
    return {
        path.stem: path
        for path in found
        if not path.stem.endswith("_utils") and _TWO_STAGES.search(path.read_text())
    }


def build_tests(src: Path, names: Sequence[str], cache: Cache) -> dict[str, Path]:
    """Return the built programs by name; none named: all that the tree has.

    :raises BuildError: the tree has no such test, or one does not compile.
    """
    tests = find_tests(src)
    unknown = sorted(set(names) - set(tests))
    if unknown or not tests:
        raise BuildError(
            f"'{src}' has no two-stage test '{unknown[0] if unknown else '*'}'",
            hint=f"it has: {', '.join(tests) or 'none'}",
        )
    suite = src / SELFTESTS / "liveupdate"
    helpers = sorted((*suite.glob("lib/*.c"), *suite.glob("*_utils.c")))
    inputs = {
        "name": "kselftest",
        "sources": digest_of({each: tree_sha256(src / SELFTESTS / each) for each in SUITES}),
        "uapi": tree_sha256(src / "include/uapi/linux", "liveupdate.h"),
        "names": " ".join(names or tests),
    }

    def builder(scratch: Path) -> None:
        deadline = Deadline.after(BUILD_S, "the tests of the tree")
        in_place = find_layout(src).objects is not None
        headers = src if in_place else scratch / "headers"
        words = () if in_place else (f"O={headers}",)
        headers.mkdir(exist_ok=True)
        run_tool(("make", "-C", str(src), *words, JOBS, "headers"), deadline, "no kernel headers")
        for name in names or tests:
            argv = (
                "gcc", "-static", "-O2", "-D_GNU_SOURCE=", f"-I{src / SELFTESTS}",
                f"-I{suite / 'lib/include'}", f"-I{suite}", f"-isystem{headers / 'usr/include'}",
                "-o", str(scratch / name), str(tests[name]), *map(str, helpers),
            )  # fmt: skip
            run_tool(argv, deadline, f"test '{name}' does not compile")

    entry = cache.build("kselftest", inputs, builder)
    return {name: entry / name for name in names or tests}
