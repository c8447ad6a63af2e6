# SPDX-License-Identifier: Apache-2.0
"""Memory and CPUs that fail on request, for tests of the checks; off the path of other runs."""

from __future__ import annotations

import os

from .fast_stdlib import TYPE_CHECKING, call_libc, read_text, write_text
from .host import page_frames

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE_BYTES = 4096
_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_HUGE_BYTES = 2 << 20


def report(fault: str, what: str, where: str, before: object, after: object) -> dict[str, object]:
    """Make the data of event ``struck``: what a fault changed, as it was read after the strike.

    :param before: as it was read before.
    """
    return {
        "fault": fault, "what": what, "where": where, "before": str(before), "after": str(after),
    }  # fmt: skip


def process_state(pid: int) -> str:
    """Return a process's state, a letter, or "gone"; see proc_pid_stat(5)."""
    try:
        fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        fields = []  # it may end while this is read, too
    return fields[0] if fields else "gone"


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


def spin(fault: str, tell: Callable[[dict[str, object]], None]) -> None:
    """Hang this host: a real-time busy loop on every CPU, for ever.

    :param tell: sends the report of it, which must have left when it returns: nothing else runs
        afterwards.
    """
    try:  # noqa: SIM105 - contextlib costs an import
        write_text("/proc/sys/kernel/sched_rt_runtime_us", "-1")
    except OSError:
        pass  # this kernel does not throttle real-time tasks
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[0]})
    # 0 is this thread
    tasks = [0, *(_spin_child(cpu) for cpu in cpus[1:])]
    before = _policies(tasks)
    for task in tasks:
        os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(99))
    where = f"CPU {', CPU '.join(map(str, cpus))}"
    tell(report(fault, "how busy loops are scheduled", where, before, _policies(tasks)))
    while True:
        pass


def _spin_child(cpu: int) -> int:
    """Start a process that loops on a CPU."""
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {cpu})
        while True:
            pass
    return pid


def _policies(tasks: list[int]) -> str:
    """Read how tasks are scheduled."""
    names = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO"}
    return ", ".join(names.get(os.sched_getscheduler(task), "other") for task in tasks)
