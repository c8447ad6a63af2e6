# SPDX-License-Identifier: Apache-2.0
"""What ``make lint`` looks at, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str) -> str:
    """Find a linter beside this Python or in the path; only outside of CI may it be absent."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        message = f"'{name}' is not installed: pip install -e '.[dev]'"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def test_every_shell_script_is_linted() -> None:
    """``make lint`` names the scripts for shellcheck; the other linters find their files."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: the list of source files is git's")
    scripts = {
        name
        for name in listed.stdout.split("\0")
        if name
        and (ROOT / name).is_file()
        and (ROOT / name).read_bytes()[:40].startswith((b"#!/bin/sh", b"#!/bin/bash"))
    }
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    line = next(each for each in makefile.splitlines() if each.startswith("SHELLS\t:="))
    assert scripts == set(line.partition(":=")[2].split())


def test_ansible_lint_leaves_nothing_in_the_checkout(tmp_path: Path) -> None:
    """A few files are enough: ansible-lint makes its cache before it reads any of them."""
    lint = tool("ansible-lint")
    for name in (".ansible-lint", "CHANGELOG.md", "galaxy.yml", "meta/runtime.yml"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "ansible" / name, copy)
    before = sorted(tmp_path.rglob("*"))
    path = f"{Path(lint).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [lint, "--offline", "-q"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(tmp_path.rglob("*")) == before
