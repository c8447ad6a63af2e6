# SPDX-License-Identifier: Apache-2.0
"""Write an initramfs: a cpio archive in the ``newc`` format, without root and without cpio(1).

Device nodes are only bytes in the archive, so nothing has to be created on disk. The output
depends on the input alone: no times, no owners, inode numbers in order.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member; ``mode`` holds the file type as well, as ``st_mode`` does."""

    name: str
    mode: int
    data: bytes = b""
    #: device number of a node
    major: int = 0
    minor: int = 0


def make_directory(name: str) -> Entry:
    """A directory, 0755."""
    return Entry(name=name, mode=stat.S_IFDIR | 0o755)


def make_program(name: str, data: bytes) -> Entry:
    """An executable regular file, 0755."""
    return Entry(name=name, mode=stat.S_IFREG | 0o755, data=data)


def make_char_device(name: str, major: int, minor: int) -> Entry:
    """A character device node, 0600."""
    return Entry(name=name, mode=stat.S_IFCHR | 0o600, major=major, minor=minor)


def pack_cpio(entries: Iterable[Entry]) -> bytes:
    """Pack the entries, in the order given: a directory comes before what is in it.

    :raises ValueError: a name is absolute, empty or the trailer's.
    """
    out = io.BytesIO()
    inode = 0
    for inode, entry in enumerate(entries, start=1):
        if not entry.name or entry.name.startswith("/") or entry.name == _TRAILER:
            raise ValueError(f"'{entry.name}' cannot be the name of a member")
        _write(out, inode, entry)
    _write(out, 0, Entry(name=_TRAILER, mode=0))
    return out.getvalue()


def compress(archive: bytes) -> bytes:
    """Gzip with neither name nor time in the header."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as stream:
        stream.write(archive)
    return out.getvalue()


def make_initramfs(init: bytes) -> bytes:
    """Return the uncompressed archive of a guest with ``init`` as its only program.

    It contains the console node, because the kernel opens the first process's standard streams
    before devtmpfs can be mounted.
    """
    return pack_cpio(
        (
            make_directory("dev"),
            make_char_device("dev/console", 5, 1),
            make_directory("proc"),
            make_directory("sys"),
            make_program("init", init),
        )
    )


def _write(out: io.BytesIO, inode: int, entry: Entry) -> None:
    name = os.fsencode(entry.name) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (
        inode, entry.mode, 0, 0, links, 0, len(entry.data),
        0, 0, entry.major, entry.minor, len(name), 0,
    )  # fmt: skip
    out.write(_MAGIC + b"".join(b"%08x" % field for field in fields) + name)
    _pad(out)
    out.write(entry.data)
    _pad(out)


def _pad(out: io.BytesIO) -> None:
    out.write(bytes(-out.tell() % 4))


def main() -> None:
    """``python -m liveupdate.images.cpio INIT OUTPUT``; compressed if OUTPUT ends in .gz."""
    init, output = Path(sys.argv[1]), Path(sys.argv[2])
    archive = make_initramfs(init.read_bytes())
    output.write_bytes(compress(archive) if output.suffix == ".gz" else archive)


if __name__ == "__main__":
    main()
