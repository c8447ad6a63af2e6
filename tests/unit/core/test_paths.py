# SPDX-License-Identifier: Apache-2.0
"""Where things are."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.core.errors import PlanError
from liveupdate.core.paths import (
    cache_dir,
    checkout_root,
    guest_images_dir,
    results_dir,
    runtime_dir,
    scenarios_dir,
)


def test_checkout_is_the_one_this_package_stands_in() -> None:
    root = checkout_root({})
    assert (root / "liveupdate").is_dir()
    assert guest_images_dir({}) == root / "guest-images"
    assert scenarios_dir({}) == root / "scenarios"


def test_named_checkout_wins_and_must_be_one(tmp_path: Path) -> None:
    env = {"LIVEUPDATE_CHECKOUT": str(tmp_path)}
    with pytest.raises(PlanError, match="guest-images"):
        checkout_root(env)
    (tmp_path / "guest-images").mkdir()
    assert checkout_root(env) == tmp_path.resolve()


def test_xdg_variables_count_when_absolute() -> None:
    assert cache_dir({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/liveupdate")
    assert cache_dir({"XDG_CACHE_HOME": "c", "HOME": "/h"}) == Path("/h/.cache/liveupdate")


def test_results_go_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert results_dir() == tmp_path / "runs"
    assert results_dir(Path("/x")) == Path("/x")


def test_runtime_directory_is_ours_alone(tmp_path: Path) -> None:
    made = runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert made == tmp_path / "liveupdate"
    assert made.stat().st_mode & 0o777 == 0o700
    assert runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}) == made
    made.chmod(0o755)
    with pytest.raises(PlanError, match="mode 0700"):
        runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)})


def test_planted_link_does_not_get_our_sockets(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    fallback = runtime_dir({}, tmp=tmp_path)
    fallback.rmdir()
    fallback.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanError, match="not a directory of this user"):
        runtime_dir({}, tmp=tmp_path)
