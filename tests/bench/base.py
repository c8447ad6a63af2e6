# SPDX-License-Identifier: Apache-2.0
"""Another commit to measure against: a git worktree in the cache, with a virtual environment.

Images are built by that commit's own tool into the cache that all checkouts share, where each image
is named by a digest of its sources. All else that a run keeps in the cache (saved hosts, what the
probe guest found) is in a directory of that commit's own, so that neither finds what the other
left, in another format perhaps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.subject import Failed, Subject

#: would make the tool of the other commit use files of this one
_ENV_LEFT_OUT = ("LIVEUPDATE_CHECKOUT", "PYTHONPATH", "VIRTUAL_ENV")


def git(root: Path, *args: str) -> str:
    """Call git in a checkout. :raises Failed: with what git says."""
    done = subprocess.run(
        ["git", "-C", str(root), *args], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Failed(f"git {args[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def install(checkout: Path) -> None:
    """Make ``.venv`` in a checkout and install the tool in it, with what ``tests.bench`` needs.

    A commit without such an extra is installed without it.
    """
    venv = checkout / ".venv"
    for argv in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin/pip"), "install", "--quiet", "--disable-pip-version-check",
         "--editable", f"{checkout}[test]"],
    ):  # fmt: skip
        done = subprocess.run(argv, stdout=sys.stderr, check=False)
        if done.returncode != 0:
            raise Failed(f"'{' '.join(argv)}' exit {done.returncode}")


@contextmanager
def check_out(
    root: Path,
    commit: str,
    cache: Path,
    results: Path,
    *,
    installer: Callable[[Path], None] = install,
) -> Iterator[Subject]:
    """Have a commit checked out and its tool installed for the length of a block.

    :param root: a checkout of the repository that has the commit.
    :param cache: the tool's cache directory; the worktree is made below ``bench`` in it.
    :param results: where run directories go.
    :raises Failed: there is no such commit, or it cannot be installed.
    """
    sha = git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    directory = cache / "bench" / sha[:12]
    checkout = directory / "checkout"
    _remove(root, directory)  # left by a bench that was killed
    try:
        directory.mkdir(parents=True)
        git(root, "worktree", "add", "--detach", str(checkout), sha)
        installer(checkout)
        (directory / "cache/liveupdate").mkdir(parents=True)
        (cache / "images").mkdir(parents=True, exist_ok=True)
        (directory / "cache/liveupdate/images").symlink_to(cache / "images")
        env = {name: value for name, value in os.environ.items() if name not in _ENV_LEFT_OUT}
        yield Subject(
            name=commit,
            root=checkout,
            python=checkout / ".venv/bin/python",
            results=results,
            env={**env, "XDG_CACHE_HOME": str(directory / "cache")},
        )
    finally:
        _remove(root, directory)


def build_images(subject: Subject, cache: Path) -> None:
    """Have a subject's own tool build its images, at the path of the cache that all share.

    The path matters: objects of a kernel are built again when it is another one.

    :raises Failed: they cannot be built.
    """
    shared = Subject(
        name=subject.name,
        root=subject.root,
        python=subject.python,
        results=subject.results,
        env={**subject.env, "XDG_CACHE_HOME": str(cache.parent)},
    )
    shared.call("-m", "liveupdate", "images", "build")


def _remove(root: Path, directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
        with contextlib.suppress(OSError):  # another bench is at work
            directory.parent.rmdir()
    git(root, "worktree", "prune")
