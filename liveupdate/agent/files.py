# SPDX-License-Identifier: Apache-2.0
"""Carriers that are file systems whose content outlives the kernel: a directory per bundle.

RAM is a file ``ram`` that VMMs map; everything else is copied into a file named after its token
when it is preserved, and unlinked when it is retrieved: state that has been resumed once must never
be found again. What a kernel left is only as good as the manifest in it says.
"""

from __future__ import annotations

import errno
import os

from .carrier import Bundle, Carrier, CarrierError, Ram

_RAM = "ram"
_COPY_BYTES = 1 << 20
#: include/uapi/asm-generic/mman-common.h, since Linux 5.14
_MADV_POPULATE_WRITE = 23
HUGE_BYTES = 2 << 20


class FileBundle(Bundle):
    """A directory."""

    def __init__(self, path: str, name: str, *, incoming: bool) -> None:
        self._path = path
        self.name = name
        self.incoming = incoming
        self.tokens = 0
        self._sources: dict[int, int] = {}
        self._open = True

    @property
    def is_open(self) -> bool:
        return self._open

    def preserve_ram(self, ram: Ram) -> None:
        os.fsync(ram.fd)  # its blocks; what is in them needs no copy
        self.tokens += 1

    def preserve(self, fd: int, token: int) -> None:
        self._need_open()
        out = os.open(f"{self._path}/{token}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        self._sources[token] = fd
        self.tokens += 1
        try:
            _copy(fd, out)
        finally:
            os.close(out)
        _sync_directory(self._path)

    def seal(self) -> None:
        self._need_open()
        for token, fd in self._sources.items():
            out = os.open(f"{self._path}/{token}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                _copy(fd, out)
            finally:
                os.close(out)

    def retrieve_ram(self, size: int) -> Ram:
        fd = os.open(f"{self._path}/{_RAM}", os.O_RDWR | os.O_CLOEXEC)
        found = os.fstat(fd).st_size
        if found != size:
            os.close(fd)
            raise CarrierError(f"RAM has {found} bytes, the manifest says {size}")
        self.tokens += 1
        return Ram(fd, size, align=HUGE_BYTES)

    def retrieve(self, token: int) -> int:
        path = f"{self._path}/{token}"
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.unlink(path)
        self.tokens += 1
        return fd

    def finish(self) -> None:
        self._clear()

    def close(self) -> None:
        if self._open and not self.incoming:
            self._clear()
        self._open = False

    def _need_open(self) -> None:
        if not self._open:
            raise OSError(errno.EBADF, "the bundle has been given up", self.name)

    def _clear(self) -> None:
        """Forget everything but RAM, which is in use."""
        for name in os.listdir(self._path):
            if name != _RAM:
                os.unlink(f"{self._path}/{name}")
        _sync_directory(self._path)


class FileCarrier(Carrier):
    """Bundles below a directory; what mounts it there is the business of its heirs."""

    def __init__(self, name: str, root: str) -> None:
        self.name = name
        self.root = root

    def allocate_ram(self, guest: str, size: int) -> Ram:
        directory = self._directory(f"lu.guest.{guest}")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        ram = Ram(os.open(f"{directory}/{_RAM}", flags, 0o600), size, align=HUGE_BYTES)
        try:
            os.posix_fallocate(ram.fd, 0, size)
            # Blocks that were never written to would be holes to whoever only reads.
            _populate(ram)
        except BaseException:
            self.free_ram(guest, ram)
            raise
        return ram

    def free_ram(self, guest: str, ram: Ram) -> None:
        ram.close()
        os.unlink(f"{self._directory(f'lu.guest.{guest}')}/{_RAM}")

    def create(self, name: str) -> Bundle:
        directory = self._directory(name)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        bundle = FileBundle(directory, name, incoming=False)
        bundle.finish()  # of an update that was broken off
        return bundle

    def retrieve(self, name: str) -> Bundle:
        directory = self._directory(name)
        if not os.path.isdir(directory):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return FileBundle(directory, name, incoming=True)

    def _directory(self, name: str) -> str:
        return f"{self.root}/{name}"


def _copy(source: int, out: int) -> None:
    """Make ``out`` what ``source`` is, whatever their offsets."""
    at, size = 0, os.fstat(source).st_size
    while at < size:
        data = os.pread(source, min(_COPY_BYTES, size - at), at)
        if not data:
            break
        at += os.pwrite(out, data, at)
    if at != size:
        raise OSError(errno.EIO, f"copied {at} of {size} bytes")
    os.ftruncate(out, size)
    os.fsync(out)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _populate(ram: Ram) -> None:
    """Write to every block; MAP_POPULATE would only read a shared mapping."""
    from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap

    with mmap(ram.fd, ram.size, MAP_SHARED, PROT_READ | PROT_WRITE) as area:
        area.madvise(_MADV_POPULATE_WRITE)
