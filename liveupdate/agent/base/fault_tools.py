# SPDX-License-Identifier: Apache-2.0
"""Faults on request, for tests of the checks. Never on the path of a run that did not ask."""

from __future__ import annotations

import ctypes
import errno
import os

from .host import page_frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..guest.guests import Guest
    from ..mechanisms.base import Mechanism, PreservedSet

PAGE_BYTES = 4096
_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_HUGE_BYTES = 2 << 20
_FILL_BYTES = 1 << 30


def punch_hole(fd: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mode = _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def move_page(ram: int, page: int) -> tuple[int, int]:
    """Give page ``page`` of memfd ``ram`` another frame with the same content.

    Returns the frame numbers before and after. A punched page is the next one the allocator hands
    out, so something else takes it first; if it belongs to a huge folio, that is moved whole.
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


def take_token(session: PreservedSet, token: int) -> None:
    """Use a token for something else, so that the kernel refuses it to whom it belongs."""
    taken = os.memfd_create("lu-taken", os.MFD_CLOEXEC)
    try:
        os.ftruncate(taken, PAGE_BYTES)
        session.preserve(taken, token)
    finally:
        os.close(taken)


def fill(mechanism: Mechanism) -> int:
    """Take all memory a mechanism has left; return how many bytes that was."""
    mechanism.exhaust()
    taken, piece, number = 0, _FILL_BYTES, 0
    while piece >= _HUGE_BYTES:
        try:
            mechanism.allocate_ram(f"fill-{number}", piece)
        except OSError as err:
            if err.errno != errno.ENOSPC:
                raise
            piece //= 2
            continue
        taken, number = taken + piece, number + 1
    return taken


def apply_after_retrieve(guest: Guest) -> None:
    """Apply those of the guest's faults that come between retrieving it and starting its VMM."""
    for fault in guest.faults:
        page = fault.get("page")
        if fault.get("fault") == "move-page" and isinstance(page, int):
            if not 0 <= page < guest.spec.pages:
                continue
            if guest.ram is None:
                continue
            before, after = move_page(guest.ram.fd, page)
            guest.tell("fault", fault="move-page", page=page, pfn_before=before, pfn_after=after)


def apply_after_resume(guest: Guest) -> None:
    for fault in guest.faults:
        if fault.get("fault") == "kill-vmm":
            guest.vmm.kill()
            guest.tell("fault", fault="kill-vmm")


def spin() -> None:
    """Hang this host: a real-time busy loop on every CPU, for ever."""
    try:
        with open("/proc/sys/kernel/sched_rt_runtime_us", "w") as limit:
            limit.write("-1")
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
