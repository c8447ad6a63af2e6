# SPDX-License-Identifier: Apache-2.0
"""Directories in RAM: evidence is synced file by file, which takes long on a disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHM = Path("/dev/shm")


@contextmanager
def directory() -> Iterator[Path]:
    """Make a directory with a path short enough for sockets; remove it and all in it at the end."""
    path = Path(tempfile.mkdtemp(prefix="lu-", dir=_SHM if _SHM.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)
