# SPDX-License-Identifier: Apache-2.0
"""The linters, as tests: what CI would say is known before."""

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


def check(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv[:2])}:\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    check(tool("ruff"), "check", ".")


def test_ruff_would_not_reformat() -> None:
    check(tool("ruff"), "format", "--check", ".")


@pytest.mark.timeout(300)
def test_mypy_finds_nothing() -> None:
    check(tool("mypy"))


def test_shellcheck_finds_nothing() -> None:
    scripts = [
        str(path)
        for pattern in (".ci/*", "guest-images/**/*.sh", "scripts/*")
        for path in ROOT.glob(pattern)
        if path.is_file() and path.read_bytes()[:40].startswith((b"#!/bin/sh", b"#!/bin/bash"))
    ]
    if not scripts:
        pytest.skip("there is no shell script")
    check(tool("shellcheck"), *scripts)


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
