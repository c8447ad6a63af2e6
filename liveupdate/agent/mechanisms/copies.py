# SPDX-License-Identifier: Apache-2.0
"""Preserved sets that hold copies: files, objects of a pool, anything with a name and room.

Room is reserved when something is preserved, and all is copied once, when the preserved set is
sealed: that is in the blackout, where each copy of a guest's state counts.
"""

from __future__ import annotations

import errno
import os

from .base import PreservedSet

#: alignment of a mapping that huge pages can be used for
HUGE_BYTES = 2 << 20
COPY_BYTES = 1 << 20


class CopySet(PreservedSet):
    """What these sets share; subclasses say where the room of a token is.

    ``finish`` forgets everything but RAM, which is in use; an outgoing set is dropped by it, too.
    """

    def __init__(self, name: str, *, incoming: bool) -> None:
        self.name = name
        self.incoming = incoming
        self.tokens = 0
        #: token to what has to be in its place at last
        self._sources: dict[int, int] = {}
        self.is_open = True

    def preserve(self, fd: int, token: int) -> None:
        """Reserve room for what ``fd`` has now; the content is copied by ``seal``.

        :raises OSError: EEXIST: the token is taken; ENOSPC; EBADF: the preserved set is given up.
        """
        self._need_open()
        self.reserve(token, os.fstat(fd).st_size)
        self._sources[token] = fd
        self.tokens += 1

    def seal(self) -> None:
        """Copy all contents; they are final."""
        self._need_open()
        for token, fd in self._sources.items():
            self.copy(fd, token)

    def close(self) -> None:
        """Close the set; an outgoing one is dropped."""
        if self.is_open and not self.incoming:
            self.finish()
        self.is_open = False

    def reserve(self, token: int, size: int) -> None:
        """Make room of ``size`` bytes for a token."""
        raise NotImplementedError

    def copy(self, source: int, token: int) -> None:
        """Make the room of a token what ``source`` is, for good."""
        raise NotImplementedError

    def _need_open(self) -> None:
        if not self.is_open:
            raise OSError(errno.EBADF, "the preserved set has been given up", self.name)


def copy_all(
    source: int, out: int, *, start: int = 0, offset: int = 0, size: int | None = None
) -> int:
    """Copy a file, from ``start`` on, to ``offset`` in another; return how many bytes.

    :raises OSError: EIO: there is less than ``size`` in it.
    """
    at = 0
    size = os.fstat(source).st_size if size is None else size
    while at < size:
        data = os.pread(source, min(COPY_BYTES, size - at), start + at)
        if not data:
            raise OSError(errno.EIO, f"copied {at} of {size} bytes")
        at += os.pwrite(out, data, offset + at)
    return at
