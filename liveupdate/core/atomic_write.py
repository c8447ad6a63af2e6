# SPDX-License-Identifier: Apache-2.0
"""Writes a file so that it exists whole or not at all, also after a crash."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path


def atomic_write(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write ``data`` to a temporary file beside ``path``, sync it, and rename it over ``path``.

    A device, a FIFO or a terminal is written in place, for a rename would replace the node itself.
    ``/dev/stdout`` and other names of an open descriptor are appended to, whatever it is open on.
    Any other link stays, and what it leads to is replaced.

    :param mode: permissions of the new file, before the umask.
    :raises OSError: it cannot be written; nothing is left behind, and what was there is untouched.
    """
    names_descriptor = _names_descriptor(path)
    if names_descriptor or _is_special(path):
        with path.open("ab" if names_descriptor else "wb", buffering=0) as node:
            view = memoryview(data)
            while view:
                view = view[node.write(view) :]
        return
    path = path.resolve() if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename in a directory survive a power cut.

    :raises OSError: the directory cannot be opened or synced.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names_descriptor(path: Path) -> bool:
    """Whether a path is ``/dev/stdout``, ``/dev/fd/N`` or alike: a link below ``/proc/PID/fd``."""
    # /dev/stdout leads to /proc/self/fd/1, which leads to the file
    names = [path, path.parent / path.readlink()] if path.is_symlink() else []
    parents = [name.parent.resolve() for name in names]
    return any(each.name == "fd" and each.is_relative_to("/proc") for each in parents)


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False
