# SPDX-License-Identifier: Apache-2.0
"""The record of blackouts that this machine has shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.target.blackouts import longest_shown_s, note_shown


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "liveupdate").mkdir()
    return tmp_path / "liveupdate"


def test_the_longest_of_the_last_runs_counts_for_its_accelerator() -> None:
    assert longest_shown_s("tcg") is None
    for shown in (9.0, *[4.0] * 7):
        note_shown("tcg", shown)
    assert (longest_shown_s("tcg"), longest_shown_s("kvm")) == (9.0, None)
    note_shown("tcg", 5.0)
    assert longest_shown_s("tcg") == 5.0


def test_a_record_that_cannot_be_used_is_none(cache: Path) -> None:
    (cache / "blackouts.json").write_text('{"tcg": "long"}')
    assert longest_shown_s("tcg") is None
    note_shown("tcg", 4.0)
    assert longest_shown_s("tcg") == 4.0


def test_a_cache_that_cannot_be_written_is_no_trouble(cache: Path) -> None:
    cache.rmdir()
    note_shown("tcg", 4.0)
    assert longest_shown_s("tcg") is None
