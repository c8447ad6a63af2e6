# SPDX-License-Identifier: Apache-2.0
"""Memory and CPUs that fail on request, for tests of the checks; off the path of other runs."""

from __future__ import annotations

import os

from .fast_stdlib import call_libc, write_text
from .host import page_frames

PAGE_BYTES = 4096
_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_HUGE_BYTES = 2 << 20


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free the pages of a range of a file; it reads as zeros afterwards.

    :raises OSError: the file system cannot.
    """
    call_libc("fallocate", None, fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, length)


def move_page(ram: int, page: int) -> tuple[int, int]:
    """Give page ``page`` of memfd ``ram`` another frame with the same content.

    Returns the frame numbers before and after. The allocator would hand out a punched page next, so
    another page takes it first; a page of a huge folio is moved together with the folio.
    """
    size = os.fstat(ram).st_size
    before = page_frames(ram, size)[page]
    after = before
    for span in (PAGE_BYTES, _HUGE_BYTES):
        offset = page * PAGE_BYTES // span * span
        content = os.pread(ram, span, offset)
        punch_hole(ram, offset, len(content))
        taker = os.memfd_create("lu-taker", os.MFD_CLOEXEC)
        try:
            os.pwrite(taker, bytes(4 * _HUGE_BYTES), 0)
            os.pwrite(ram, content, offset)
            after = page_frames(ram, size)[page]
        finally:
            os.close(taker)
        if after != before:
            break
    return before, after


def spin() -> None:
    """Hang this host: a real-time busy loop on every CPU, for ever."""
    try:  # noqa: SIM105 - contextlib costs an import
        write_text("/proc/sys/kernel/sched_rt_runtime_us", "-1")
    except OSError:
        pass  # this kernel does not throttle real-time tasks
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus[1:]:
        if os.fork() == 0:
            _spin_on(cpu)
    _spin_on(cpus[0])


def _spin_on(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
    while True:
        pass
