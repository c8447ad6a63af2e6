# SPDX-License-Identifier: Apache-2.0
"""Holds single pages of this process in place by lending them to pipes (vmsplice(2)).

A page in a pipe has one reference more than its mappings, so the kernel can neither move it
(compaction, CMA) nor free it, even when it is not mapped any more.
"""

from __future__ import annotations

import ctypes
import fcntl
import os

from .fast_stdlib import TYPE_CHECKING

if TYPE_CHECKING:
    from mmap import mmap

PAGE_BYTES = 4096
#: a pipe's slots are pages; /proc/sys/fs/pipe-max-size allows every user so many
PIPE_PAGES = 256


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


def address_of(area: mmap) -> int:
    """Return where a writable mapping of this process begins."""
    view = ctypes.c_char.from_buffer(area)
    try:
        return ctypes.addressof(view)
    finally:
        del view  # a mapping that is exported cannot be closed


class Pins:
    """Pages that are held until ``close``, or until this process ends."""

    def __init__(self) -> None:
        self._pipes: list[int] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.vmsplice.restype = ctypes.c_ssize_t
        self.count = 0

    def add(self, addresses: list[int]) -> None:
        """Hold one page at each address.

        :raises OSError: EFAULT when the kernel can take no reference to it.
        """
        for first in range(0, len(addresses), PIPE_PAGES):
            self._fill_pipe(addresses[first : first + PIPE_PAGES])

    def _fill_pipe(self, addresses: list[int]) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pipes += [reader, writer]
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_PAGES * PAGE_BYTES)
        vector = (_Iovec * len(addresses))(*(_Iovec(address, PAGE_BYTES) for address in addresses))
        wanted = len(addresses) * PAGE_BYTES
        taken = self._libc.vmsplice(writer, vector, ctypes.c_size_t(len(addresses)), 0)
        if taken < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"vmsplice: {os.strerror(code)}")
        if taken != wanted:
            raise OSError(5, f"vmsplice took {taken} of {wanted} bytes")
        self.count += len(addresses)

    def close(self) -> None:
        """Release all pages."""
        for fd in self._pipes:
            os.close(fd)
        self._pipes.clear()
        self.count = 0
