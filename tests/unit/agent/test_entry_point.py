# SPDX-License-Identifier: Apache-2.0
"""The agent starts from a bare directory, as the kit holds it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from liveupdate.agent import __main__ as entry_point
from liveupdate.agent.link.main import READY_FD_ENV

AGENT = Path(entry_point.__file__).parent


@pytest.mark.parametrize("started", ["agent", "agent/__main__.py"])
def test_agent_starts_from_a_directory_outside_any_path(started: str, tmp_path: Path) -> None:
    (tmp_path / "agent").symlink_to(AGENT)
    # main() is reached, and refuses this before it touches the machine
    env = {**os.environ, READY_FD_ENV: "no number"}
    argv = [sys.executable, "-I", "-S", "-B", os.fspath(tmp_path / started)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("liveupdate agent: invalid literal"), done.stderr
    assert done.returncode == 1


def has_code(package: Path) -> bool:
    body = ast.parse((package / "__init__.py").read_text()).body
    return any(not isinstance(node, ast.Expr) for node in body)


def test_packages_without_code_are_made_without_their_files() -> None:
    packages = {path.parent for path in AGENT.glob("*/*.py")}
    assert {each.name for each in packages if not has_code(each)} == set(entry_point.ROOMS)
