# SPDX-License-Identifier: Apache-2.0
"""Opens files of a run directory that may come from another user.

No link is followed below its root, no name leads out of it, and only regular files are opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

#: what a run directory may have at the most: files, and bytes of one file
MAX_FILES = 100_000
MAX_BYTES = 2 << 30
_CHUNK = 1 << 20


def open_beneath(root: Path, relative: str) -> BinaryIO:
    """Open a regular file below ``root`` to read it.

    :raises OSError: it is none, or its name leads through a link or out of ``root``.
    """
    *parents, name = PurePosixPath(relative).parts or ("..",)
    if relative.startswith("/") or ".." in (*parents, name) or "\0" in relative:
        raise OSError(errno.EXDEV, "leads out of the run directory")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    at = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        for parent in parents:
            inner = os.open(parent, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = inner
        if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        file = os.fdopen(os.open(name, flags, dir_fd=at), "rb")
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def read_beneath(root: Path, relative: str, limit: int = MAX_BYTES) -> bytes:
    """Read a whole file; its size is looked at first.

    :raises OSError: it cannot be opened, or has more than ``limit`` bytes.
    """
    with open_beneath(root, relative) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
        if max(size, len(data)) > limit:
            raise OSError(errno.EFBIG, f"has {size} bytes, at most {limit} are read")
        return data


def digest_beneath(root: Path, relative: str, size_bytes: int | None = None) -> tuple[str, int]:
    """Return the SHA-256 of a file's first ``size_bytes`` (None: of all), and the file's size.

    :raises OSError: it cannot be opened, or is too large.
    """
    digest = hashlib.sha256()
    with open_beneath(root, relative) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"has {size} bytes, at most {MAX_BYTES} are read")
        left = size if size_bytes is None else size_bytes
        while left > 0 and (piece := file.read(min(_CHUNK, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest(), size


def names_beneath(root: Path) -> Iterator[str]:
    """Name everything below ``root`` that is no directory, as paths relative to it.

    :raises OSError: there are more than :data:`MAX_FILES`.
    """
    count = 0
    for parent, directories, names in os.walk(root):
        links = [each for each in directories if Path(parent, each).is_symlink()]
        for name in (*names, *links):
            count += 1
            if count > MAX_FILES:
                raise OSError(errno.EFBIG, f"has more than {MAX_FILES} files")
            yield Path(parent, name).relative_to(root).as_posix()
