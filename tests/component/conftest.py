# SPDX-License-Identifier: Apache-2.0
"""Fixtures of hosts whose QEMU never runs an instruction, see :mod:`tests.support.idle_qemu`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ram


@pytest.fixture
def root() -> Iterator[Path]:
    """A runtime directory with a path short enough for sockets."""
    path = Path(f"/tmp/lu-test-{os.getpid()}")
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def in_ram() -> Iterator[Path]:
    with ram.directory() as path:
        yield path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The directory of a host's images."""
    # Never run: a boot sector is enough for QEMU to take it for a kernel of the old protocol.
    kernel = bytearray(64 * 1024)
    kernel[0x1F1] = 4
    kernel[0x1FE:0x200] = b"\x55\xaa"
    for name in ("kernel", "root", "kit"):
        (tmp_path / name).write_bytes(kernel)
    return tmp_path
