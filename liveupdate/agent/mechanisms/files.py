# SPDX-License-Identifier: Apache-2.0
"""Mechanisms that are file systems which outlive the kernel: a directory per preserved set.

RAM is a file ``ram`` that VMMs map; everything else gets a file named after its token when it is
preserved, is copied there when the preserved set is sealed, and unlinked when it is retrieved:
state that has been resumed once must never be found again. What a kernel left is only as good as
the manifest in it.
"""

from __future__ import annotations

import errno
import os

from ..base.host import find_extents
from .base import Mechanism, MechanismError, PreservedSet, Ram, populate
from .copies import HUGE_BYTES, CopySet, copy_all

_RAM = "ram"


class FileSet(CopySet):
    """A directory."""

    def __init__(self, path: str, name: str, *, incoming: bool) -> None:
        super().__init__(name, incoming=incoming)
        self._path = path

    def preserve_ram(self, ram: Ram) -> None:
        """Sync the blocks of the RAM's file; its content needs no copy."""
        os.fsync(ram.fd)  # its blocks; what is in them needs no copy
        self.tokens += 1

    def reserve(self, token: int, size: int) -> None:
        """Make the file of ``token`` with all its blocks.

        :raises OSError: EEXIST: the token is taken; ENOSPC.
        """
        out = os.open(f"{self._path}/{token}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        try:
            if size:
                os.posix_fallocate(out, 0, size)
        finally:
            os.close(out)
        _sync_directory(self._path)

    def copy(self, source: int, token: int) -> None:
        """Copy the content of ``source`` into the file of ``token`` and sync it."""
        out = os.open(f"{self._path}/{token}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(out, copy_all(source, out))
            os.fsync(out)
        finally:
            os.close(out)

    def places(self, token: int, source: int) -> list[tuple[int, int]]:
        """Return where the file of ``token`` lies in memory."""
        fd = os.open(f"{self._path}/{token}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return find_extents(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def retrieve_ram(self, size: int) -> Ram:
        """Open the file of the RAM.

        :raises MechanismError: its size differs.
        """
        fd = os.open(f"{self._path}/{_RAM}", os.O_RDWR | os.O_CLOEXEC)
        found = os.fstat(fd).st_size
        if found != size:
            os.close(fd)
            raise MechanismError(f"RAM has {found} bytes, the manifest says {size}")
        self.tokens += 1
        return Ram(fd, size, align=HUGE_BYTES)

    def retrieve(self, token: int) -> int:
        """Open the file of ``token`` and remove its name, so that it is used once."""
        path = f"{self._path}/{token}"
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.unlink(path)
        self.tokens += 1
        return fd

    def finish(self) -> None:
        """Remove all files of the set except RAM, which is in use."""
        for name in os.listdir(self._path):
            if name != _RAM:
                os.unlink(f"{self._path}/{name}")
        _sync_directory(self._path)


class FileMechanism(Mechanism):
    """Preserved sets below a directory; subclasses mount a file system there."""

    def __init__(self, name: str, root: str) -> None:
        self.name = name
        self.root = root

    def allocate_ram(self, guest: str, size: int) -> Ram:
        """Return a new file for a guest's RAM, with all its blocks allocated."""
        directory = self._directory(f"lu.guest.{guest}")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        ram = Ram(os.open(f"{directory}/{_RAM}", flags, 0o600), size, align=HUGE_BYTES)
        try:
            os.posix_fallocate(ram.fd, 0, size)
            # Blocks that were never written would be holes for a reader.
            populate(ram)
        except BaseException:
            self.free_ram(guest, ram)
            raise
        return ram

    def free_ram(self, guest: str, ram: Ram) -> None:
        """Close the file and remove it."""
        ram.close()
        os.unlink(f"{self._directory(f'lu.guest.{guest}')}/{_RAM}")

    def metadata_bytes(self) -> int | None:
        """Return what is neither free nor the content of a file of the agent."""
        found = os.statvfs(self.root)
        held = sum(
            os.stat(f"{where}/{name}").st_blocks * 512
            for where, _, names in os.walk(self.root)
            for name in names
        )
        return self.region_bytes(found.f_blocks * found.f_frsize) - (
            found.f_bfree * found.f_frsize + held
        )

    def region_bytes(self, told: int) -> int:
        """Return the size of what the file system lies on; ``told`` is what it offers itself."""
        return told

    def create(self, name: str) -> PreservedSet:
        """Begin an outgoing preserved set, without leftovers of an interrupted update."""
        directory = self._directory(name)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        preserved = self.preserved(directory, name, incoming=False)
        preserved.finish()  # of an update that was broken off
        return preserved

    def retrieve(self, name: str) -> PreservedSet:
        """Return the previous kernel's directory of that name.

        :raises FileNotFoundError: it left none.
        """
        directory = self._directory(name)
        if not os.path.isdir(directory):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.preserved(directory, name, incoming=True)

    def preserved(self, directory: str, name: str, *, incoming: bool) -> PreservedSet:
        """Return the preserved set that lies in a directory."""
        return FileSet(directory, name, incoming=incoming)

    def _directory(self, name: str) -> str:
        return f"{self.root}/{name}"


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
