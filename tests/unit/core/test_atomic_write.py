# SPDX-License-Identifier: Apache-2.0
"""Files are there whole or not at all; nodes that are no files stay what they are."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from liveupdate.core.atomic_write import atomic_write


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "report"
    atomic_write(target, b"one")
    atomic_write(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_was_there_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report"
    target.write_bytes(b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_the_mode_is_that_of_the_caller_and_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "open", b"")
        atomic_write(tmp_path / "own", b"", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").write_bytes(b"old")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_fifo_is_written_in_place(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    atomic_write(fifo, b"x" * 200_000)
    reader.join(10.0)
    assert got == [b"x" * 200_000]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_full_device_refuses_and_stays_a_device() -> None:
    with pytest.raises(OSError, match="No space left"):
        atomic_write(Path("/dev/full"), b"report")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_name_of_an_open_descriptor_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb") as file:
        file.write(b"verdict\n")
        file.flush()
        atomic_write(Path(f"/dev/fd/{file.fileno()}"), b"report\n")
    assert path.read_bytes() == b"verdict\nreport\n"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
