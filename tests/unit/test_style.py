# SPDX-License-Identifier: Apache-2.0
"""House style that no linter checks: licence headers, size of modules, what makes a test."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 450
#: directories that hold kernel code
GPL = ("guest-images/kernel/", "guest-images/modules/")
SOURCE_SUFFIXES = {".py", ".c", ".h", ".sh", ".toml", ".yml", ".yaml", ".md", ".mk", ".config"}
SOURCE_NAMES = {"Makefile", "Dockerfile", "series", ".gitignore"}


def tracked_files() -> list[Path]:
    """All files of the checkout that git tracks, or would if asked."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: the list of source files is git's")
    names = listed.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def is_source(path: Path) -> bool:
    if path.is_relative_to(ROOT / "LICENSES") or not path.stat().st_size:
        return False
    if "fixtures" in path.parts or "data" in path.parts:
        return False
    if path.suffix in SOURCE_SUFFIXES or path.name in SOURCE_NAMES:
        return True
    return path.read_bytes()[:2] == b"#!"


def wrong_header(name: str, text: str) -> str | None:
    """Say what is wrong with the licence line, which must be among the first three."""
    head = "\n".join(text.split("\n")[:3])
    if "SPDX-License-Identifier:" not in head:
        return f"{name}: no SPDX-License-Identifier in the first three lines"
    is_kernel_code = name.startswith(GPL) and name.endswith((".c", ".h"))
    if is_kernel_code and "GPL-2.0-only" not in head:
        return f"{name}: kernel code is GPL-2.0-only"
    if not any(licence in head for licence in ("Apache-2.0", "GPL-2.0-only")):
        return f"{name}: neither Apache-2.0 nor GPL-2.0-only"
    return None


def test_every_source_file_names_its_licence() -> None:
    wrong = []
    for path in filter(is_source, tracked_files()):
        text = path.read_text(encoding="utf-8", errors="replace")
        found = wrong_header(path.relative_to(ROOT).as_posix(), text)
        if found:
            wrong.append(found)
    assert wrong == []


def test_missing_and_wrong_licences_are_found() -> None:
    assert wrong_header("a.py", '"""Doc."""\n')
    assert wrong_header("a.py", "# SPDX-License-Identifier: MIT\n")
    assert wrong_header("guest-images/modules/a.c", "// SPDX-License-Identifier: Apache-2.0\n")
    assert wrong_header("a.py", "#!/usr/bin/python3\n# SPDX-License-Identifier: Apache-2.0") is None


def test_no_module_is_too_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): path.read_bytes().count(b"\n")
        for path in (ROOT / "liveupdate").rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def imported_tests(source: str) -> Iterator[str]:
    """Name the test modules that a module imports, at its top or within a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.startswith("tests.") and ".test_" in target:
                yield target


def asserts(test: ast.AST) -> bool:
    """Whether there is an assert, ``pytest.raises`` or a helper that is named ``assert_…``."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "pytest.raises" or called.rpartition(".")[2].startswith(
                ("assert_", "_assert_")
            ):
                return True
    return False


def without_assert(source: str) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not asserts(node)
    ]


def test_no_module_imports_a_test_module() -> None:
    wrong = {
        path.relative_to(ROOT).as_posix(): found
        for path in (ROOT / "tests").rglob("*.py")
        if (found := list(imported_tests(path.read_text(encoding="utf-8"))))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    [
        "from tests.unit.judging.test_judge import judge_hop",
        "from tests.unit.judging import test_judge",
        "def f():\n    import tests.vm.test_run",
    ],
)
def test_import_of_a_test_module_is_found(source: str) -> None:
    assert list(imported_tests(source))


def test_every_test_has_an_assert_of_its_own() -> None:
    wrong = {
        path.relative_to(ROOT).as_posix(): found
        for path in (ROOT / "tests").rglob("test_*.py")
        if (found := without_assert(path.read_text(encoding="utf-8")))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("parse(text)", ["test_x"]),
        ("check(parse(text))", ["test_x"]),
        ("assert parse(text)", []),
        ("with pytest.raises(ValueError):\n        parse(text)", []),
        ("desk.assert_updated(parse(text))", []),
    ],
)
def test_tests_without_an_assert_are_found(body: str, found: list[str]) -> None:
    assert without_assert(f"def test_x():\n    {body}") == found


def test_unit_tests_lie_as_the_package_does() -> None:
    """A test of ``liveupdate/ROOM/x.py`` lies in ``tests/unit/ROOM``."""
    unit = ROOT / "tests" / "unit"
    rooms = {path.parent.relative_to(unit) for path in unit.rglob("*.py")}
    assert {each.as_posix() for each in rooms if not (ROOT / "liveupdate" / each).is_dir()} == set()
