# SPDX-License-Identifier: Apache-2.0
"""``git bisect run liveupdate bisect`` on a small real history; the machine is a file's content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: a run whose verdict is what the tree of the bad side says; all else is the tool's own
DRIVER = """\
import sys
from pathlib import Path
from types import SimpleNamespace
from liveupdate.cli import bisect
from liveupdate.cli.app import main
from liveupdate.core.errors import BuildError, DeadlineExceeded
from liveupdate.images import catalogue
from liveupdate.model.verdict import Outcome, Verdict

side, key, call = sys.argv[1], sys.argv[2], sys.argv[3:]

def prepare(app, args, results):
    given = {each.key: each.value for each in args.overrides}
    state = Path(given[key], "state").read_text().strip()
    assert side != "outgoing" or given["next_kernel"] == "/built/b", given
    if state == "broken":
        raise BuildError("a.c:1: error: no")
    if state == "hangs":
        raise DeadlineExceeded("the agent", 1.0)
    return state

def carry_out(app, state, required):
    verdict = Verdict(outcome=Outcome[state], checks=(), reason="seen")
    return SimpleNamespace(verdict=verdict, run_dir="runs/1"), ()

bisect.prepare, bisect.carry_out = prepare, carry_out
bisect.build_missing = lambda app, purpose, names: None
catalogue.find_kernel = lambda name: SimpleNamespace(path="/built/b")
sys.exit(main(["bisect", "--bad-side", side, *call]))
"""
STATES = ["PASS", "ERROR", "PASS", "hangs", "broken", "PASS", "FAIL", "FAIL"]
FIRST_BAD = 6
ROOT = Path(__file__).parents[2]


def git(tree: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    argv = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tree), *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, check=check, capture_output=True, text=True, env=env)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A history with one commit for each state."""
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q")
    for number, state in enumerate(STATES):
        (tree / "state").write_text(f"{state}\n")
        (tree / "number").write_text(str(number))
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-m", f"commit {number}")
    git(tree, "bisect", "start", "HEAD", f"HEAD~{len(STATES) - 1}")
    (tmp_path / "driver.py").write_text(DRIVER)
    return tree


@pytest.mark.parametrize(
    ("side", "key"), [("outgoing", "kernel_tree"), ("incoming", "next_kernel_tree")]
)
def test_the_planted_commit_is_found(side: str, key: str, tree: Path) -> None:
    driver = str(tree.parent / "driver.py")
    done = git(tree, "bisect", "run", sys.executable, driver, side, key)
    assert "is the first bad commit" in done.stdout
    bad = git(tree, "rev-parse", "refs/bisect/bad").stdout.strip()
    assert git(tree, "show", f"{bad}:number").stdout == str(FIRST_BAD)
    lines = [line for line in done.stdout.splitlines() if line.startswith("bisect: ")]
    assert any(f"{side} kernel: bad: FAIL: seen (runs/1)" in line for line in lines)
    assert any("kernel: good: PASS" in line for line in lines)


def test_a_wrong_call_ends_it_at_the_first_step(tree: Path) -> None:
    driver = str(tree.parent / "driver.py")
    done = git(
        tree, "bisect", "run", sys.executable, driver, "both", "kernel_tree", "--guest", "1",
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "first bad commit" not in done.stdout
