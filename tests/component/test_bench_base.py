# SPDX-License-Identifier: Apache-2.0
"""The other commit's worktree: it is that commit's, outside of the checkout, and goes again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import base
from tests.bench.subject import Failed


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose package says which commit it is of."""
    root = tmp_path / "repository"
    (root / "liveupdate").mkdir(parents=True)
    base.git(root, "init", "--quiet", "--initial-branch=main")
    for name in ("first", "second"):
        (root / "liveupdate/__main__.py").write_text(
            f"import os, sys\nprint('{name}', os.environ['XDG_CACHE_HOME'], *sys.argv[1:])\n"
        )
        base.git(root, "add", ".")
        base.git(root, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", name)
        base.git(root, "tag", name)
    return root


def use_this_python(checkout: Path) -> None:
    """Stand in for the installation: the interpreter that runs the tests."""
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)


def worktrees(repository: Path) -> int:
    return len(base.git(repository, "worktree", "list").splitlines())


def test_its_own_tool_runs_on_its_own_cache_with_the_shared_images(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))
    cache = tmp_path / "home/liveupdate"
    with base.check_out(
        repository, "first", cache, tmp_path / "runs", installer=use_this_python
    ) as subject:
        name, own, *rest = subject.call("-m", "liveupdate", "run").split()
        assert (name, rest) == ("first", ["run"])
        assert not subject.root.is_relative_to(repository)
        assert (Path(own) / "liveupdate/images").resolve() == cache / "images"
        assert Path(own) != cache.parent
        base.build_images(subject, cache)
        (cache / "images/kernel").mkdir()
        assert (Path(own) / "liveupdate/images/kernel").is_dir()
        assert worktrees(repository) == 2
    assert worktrees(repository) == 1
    assert [path.name for path in cache.iterdir()] == ["images"]
    assert (cache / "images/kernel").is_dir(), "images stay"


def test_it_goes_when_the_bench_fails_and_when_an_earlier_one_was_killed(
    repository: Path, tmp_path: Path
) -> None:
    cache, runs = tmp_path / "cache", tmp_path / "runs"
    sha = base.git(repository, "rev-parse", "first")
    left = cache / "bench" / sha[:12] / "checkout"
    base.git(repository, "worktree", "add", "--detach", str(left), sha)

    def fail(_checkout: Path) -> None:
        assert worktrees(repository) == 2
        raise Failed("no network")

    with (
        pytest.raises(Failed, match="no network"),
        base.check_out(repository, "first", cache, runs, installer=fail),
    ):
        raise AssertionError("it was not installed")
    assert worktrees(repository) == 1
    assert not left.exists()


def test_a_commit_that_is_not_there_is_said(repository: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(Failed, match="git rev-parse"),
        base.check_out(repository, "v9", tmp_path / "cache", tmp_path, installer=use_this_python),
    ):
        raise AssertionError("there is no such commit")
    assert not (tmp_path / "cache").exists()
