# SPDX-License-Identifier: Apache-2.0
"""Counts lines of kernel code in C files and patches, without comments and blanks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from liveupdate.core.errors import BuildError

#: a mechanism does not need its tests
_TESTS = re.compile(r"kunit|test")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_SUFFIXES = (".c", ".h", ".S", ".patch")


def count_lines(root: Path, patterns: Sequence[str]) -> int:
    """Count the lines of all files below ``root`` that the patterns match, each file once.

    :raises BuildError: a pattern matches nothing, so the count would be wrong.
    """
    files: set[Path] = set()
    for pattern in patterns:
        found = [path for path in root.glob(pattern) if path.suffix in _SUFFIXES]
        if not found:
            raise BuildError(f"no kernel code matches '{pattern}' in '{root}'")
        files.update(path for path in found if not _TESTS.search(path.stem))
    return sum(count_text(path.read_text(encoding="utf-8"), path.suffix) for path in sorted(files))


def count_text(text: str, suffix: str = ".c") -> int:
    """Count the lines of code of a C file, or those that a patch adds to one."""
    if suffix == ".patch":
        text = _added(text)
    return sum(1 for line in _COMMENT.sub("", text).splitlines() if line.strip())


def _added(patch: str) -> str:
    """Return the lines a patch adds to C files."""
    lines: list[str] = []
    is_code = False
    for line in patch.splitlines():
        if line.startswith("+++ "):
            path = Path(line[4:].split("\t")[0])
            is_code = path.suffix in _SUFFIXES and not _TESTS.search(path.stem)
        elif line.startswith("+") and is_code:
            lines.append(line[1:])
    return "\n".join(lines)
