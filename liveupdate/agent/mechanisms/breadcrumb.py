# SPDX-License-Identifier: Apache-2.0
"""A stream of records (:mod:`.stream`) in the pool, found through a pointer on the command line.

Guest RAM is in objects of the pool, and the records say where. All else is in the stream, which has
an object of its own from the start: its address goes to the next kernel as ``lu.breadcrumb=`` when
that is loaded, long before the stream is written. A kernel that was told of none believes none,
whatever is in the pool.

An outgoing stream is written anew with each preserved set that is sealed, its first 8 bytes last.
They are zeroed when a stream is taken over or given up: what was resumed once is never found again.
"""

from __future__ import annotations

import _thread
import errno
import os

from ..base.fast_stdlib import read_text
from . import pool, stream
from .base import MechanismError, PreservedSet, Ram
from .copies import HUGE_BYTES, CopySet
from .pool import PoolMechanism, region_of

OBJECT = "lu.breadcrumb"
#: what all VM states and the manifest may come to
ROOM_BYTES = 32 << 20
_WORD = "lu.breadcrumb="
_EMPTY = bytes(8)
_PAGE_BYTES = 4096

REQUIREMENTS = {
    **pool.REQUIREMENTS,
    "append": "kho=off liveupdate=off memmap={size}${start} lu.mechanism=breadcrumb",
    "has": ("pointer",),
    "traits": {
        **pool.TRAITS,
        "kernel_code": (*pool.CODE, "modules/include/uapi/linux/lu_stream.h"),
    },
    # LU_VERSION and its length; the first preserved set's name, its version
    "marker": 0x00000010_562D554C,
    "corrupt_at": 32,
    "version_at": 8,
}


class BreadcrumbSet(CopySet):
    """The content of one preserved set, for the stream or from it."""

    def __init__(
        self, mechanism: BreadcrumbMechanism, name: str, parts: stream.Parts | None
    ) -> None:
        """:param parts: of an incoming one."""
        super().__init__(name, incoming=parts is not None)
        self._mechanism = mechanism
        self._parts = stream.Parts() if parts is None else parts

    def preserve_ram(self, ram: Ram) -> None:
        """Note where the RAM is in the pool; it stays in place."""
        self._parts.ram = (self._mechanism.pool.start + ram.offset, ram.size)
        self.tokens += 1

    def reserve(self, token: int, size: int) -> None:
        """Reserve room in the stream for a content of this size.

        :raises OSError: ENOSPC when there is too little.
        """
        if token in self._sources:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), f"{self.name}/{token}")
        self._mechanism.take_room(self.name, size)

    def seal(self) -> None:
        """Write the stream with all sets so far."""
        super().seal()
        self._mechanism.put(self.name, self._parts)

    def copy(self, source: int, token: int) -> None:
        """Keep a copy of the content for the stream."""
        self._parts.data[token] = _read_all(source, 0, os.fstat(source).st_size)

    def places(self, token: int, source: int) -> list[tuple[int, int]]:
        """Return where the stream has the content of ``token``."""
        return [(self._mechanism.address_of(self.name, token), len(self._parts.data[token]))]

    def retrieve_ram(self, size: int) -> Ram:
        """Return the object of the pool that the stream names.

        :raises MechanismError: the stream names none, or its size or place do not fit.
        """
        if self._parts.ram is None:
            raise MechanismError("the stream says nothing of RAM")
        start, found = self._parts.ram
        if found != size:
            raise MechanismError(f"RAM has {found} bytes, the manifest says {size}")
        pool = self._mechanism.pool
        offset = start - pool.start
        if not any(where == offset and held == size for _, held, where in pool.objects()):
            raise MechanismError(f"the pool has no object of {size} bytes at {start:#x}")
        self.tokens += 1
        return Ram(os.dup(pool.fd), size, offset=offset, align=HUGE_BYTES, pinnable=False)

    def retrieve(self, token: int) -> int:
        """Return a memfd with the content of ``token``.

        :raises FileNotFoundError: the stream has none.
        """
        data = self._parts.data.pop(token, None)
        if data is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.name}/{token}")
        fd = os.memfd_create(f"{self.name}-{token}", os.MFD_CLOEXEC)
        at = 0
        while at < len(data):
            at += os.write(fd, memoryview(data)[at:])
        self.tokens += 1
        return fd

    def finish(self) -> None:
        """Forget the contents of an incoming set; leave an outgoing one out of the stream."""
        if self.incoming:
            self._parts.data.clear()
        else:
            self._mechanism.drop(self.name)


class BreadcrumbMechanism(PoolMechanism):
    """The stream of the previous kernel, and the one for the next."""

    def __init__(self) -> None:
        cmdline = read_text("/proc/cmdline")
        super().__init__("breadcrumb", region_of(cmdline))
        self._lock = _thread.allocate_lock()
        #: preserved sets that are in the outgoing stream; room that preserved sets have taken
        self._sealed: dict[str, stream.Parts] = {}
        self._taken: dict[str, int] = {}
        self._incoming: dict[str, stream.Parts] = {}
        #: how far beside the stream the next kernel is pointed; for faults
        self._beside = 0
        pointer = pointer_of(cmdline)
        if pointer is None:
            self._offset, self._room = self._own()
        else:
            self._offset, self._room = self._at(pointer)
            self._incoming = self._read()

    # --- finding and reading it

    def _own(self) -> tuple[int, int]:
        """Return place and size of the stream's object; one that is there is written over later."""
        try:
            room, offset = self.pool.find(OBJECT)
        except FileNotFoundError:
            room, offset = ROOM_BYTES, self.pool.allocate(OBJECT, ROOM_BYTES)
        return offset, room

    def _at(self, pointer: int) -> tuple[int, int]:
        """Return place and size of the object that the previous kernel's agent points at."""
        for name, size, offset in self.pool.objects():
            if self.pool.start + offset == pointer and name == OBJECT:
                return offset, size
        raise MechanismError(f"{_WORD}{pointer:#x}: the pool has no stream there")

    def _read(self) -> dict[str, stream.Parts]:
        fd, offset = self.pool.fd, self._offset
        head = os.pread(fd, stream.HEAD.size, offset)
        if head[: len(_EMPTY)] == _EMPTY:
            return {}  # taken over already, by an agent of this boot
        try:
            total = stream.read_head(head, self._room)
            return stream.decode(_read_all(fd, offset, total))
        except stream.StreamError as err:
            raise MechanismError(
                f"the stream at {self.pool.start + offset:#x} is refused: {err}; it is left alone"
            ) from None

    def retrieve(self, name: str) -> PreservedSet:
        """Return a preserved set of the previous kernel's stream.

        :raises FileNotFoundError: it left none of that name.
        """
        parts = self._incoming.pop(name, None)
        if parts is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        self._empty()
        return BreadcrumbSet(self, name, parts)

    # --- writing it

    def metadata_bytes(self) -> int | None:
        """Return what is neither free nor guests' RAM: the pool's own, and the stream's object."""
        rest = super().metadata_bytes()
        return None if rest is None else rest + self._room

    def next_words(self) -> str:
        """Return ``lu.breadcrumb=`` with the address of the outgoing stream."""
        return f"{_WORD}{self.pool.start + self._offset + self._beside:#x}"

    def mislead(self) -> None:
        """Point the next kernel a page beside the stream; for faults."""
        self._beside = _PAGE_BYTES

    def exhaust(self) -> tuple[int, int]:
        """Count all room in the stream as taken; for faults."""
        before = self._room - sum(self._taken.values())
        self._taken["exhaust"] = before
        return before, self._room - sum(self._taken.values())

    def create(self, name: str) -> PreservedSet:
        """Begin an outgoing preserved set, without leftovers of an interrupted update."""
        preserved = BreadcrumbSet(self, name, None)
        preserved.finish()  # of an update that was broken off
        return preserved

    def take_room(self, name: str, size: int) -> None:
        """Account for content that a preserved set will have.

        :raises OSError: ENOSPC when the stream has no room for it.
        """
        with self._lock:
            total = sum(self._taken.values()) + size
            # records, padding and names are small against what is taken here, in pages
            if total > self._room - (1 << 20):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            self._taken[name] = self._taken.get(name, 0) + size

    def put(self, name: str, parts: stream.Parts) -> None:
        """Have a preserved set in the stream, which is whole when this returns."""
        with self._lock:
            self._sealed[name] = parts
            data = stream.encode(self._sealed)
            if len(data) > self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            self._empty()
            at = len(_EMPTY)
            while at < len(data):
                at += os.pwrite(self.pool.fd, memoryview(data)[at:], self._offset + at)
            os.pwrite(self.pool.fd, data[: len(_EMPTY)], self._offset)

    def address_of(self, name: str, token: int) -> int:
        """Return where the outgoing stream has the content of a token, which it has once its set
        is sealed.
        """
        with self._lock:
            return self.pool.start + self._offset + stream.offset_of(self._sealed, name, token)

    def drop(self, name: str) -> None:
        """Leave a preserved set out; a stream that had it is none any more."""
        with self._lock:
            self._taken.pop(name, None)
            if self._sealed.pop(name, None) is not None:
                self._empty()

    def _empty(self) -> None:
        os.pwrite(self.pool.fd, _EMPTY, self._offset)


def pointer_of(cmdline: str) -> int | None:
    """Return the physical address of the stream that a command line names; None: it names none.

    :raises MechanismError: it is no address, or there are several.
    """
    found = [word[len(_WORD) :] for word in cmdline.split() if word.startswith(_WORD)]
    if not found:
        return None
    try:
        (text,) = found
        return int(text, 16)
    except ValueError:
        raise MechanismError(f"{_WORD}{','.join(found)} is not one address") from None


def _read_all(fd: int, offset: int, size: int) -> bytes:
    pieces, at = [], 0
    while at < size:
        piece = os.pread(fd, size - at, offset + at)
        if not piece:
            raise OSError(errno.EIO, f"read {at} of {size} bytes")
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


open_mechanism = BreadcrumbMechanism
