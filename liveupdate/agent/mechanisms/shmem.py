# SPDX-License-Identifier: Apache-2.0
"""Guest RAM out of shmem in huge folios, without touching the host's settings for everybody else.

LUO's memfd handler takes any shmem file that has no name (memfd_luo_can_preserve() in
mm/memfd_luo.c), so the file comes from a tmpfs of its own, whose ``huge=`` says for it what
``shmem_enabled`` says for all memfds (Documentation/filesystems/tmpfs.rst).
"""

from __future__ import annotations

import errno
import os

from ..base.fast_stdlib import mount, read_text, unmount

DIRECTORY = "/run/liveupdate"
FREE_LISTS = "/proc/pagetypeinfo"
HUGE_BYTES = 2 << 20
_HUGE_ORDER = 9
#: what the kernel may hand out and a long-term pin may keep: CMA, where KHO's scratch lies, is not
_LASTING = ("Unmovable", "Movable", "Reclaimable")


def create(name: str, size: int) -> int:
    """Return a descriptor of nameless shmem of ``size`` bytes, in huge folios as far as there are.

    All of it is allocated now, because only then the kernel looks for huge folios whatever touches
    the memory later.

    Memory that is fragmented gives a plain memfd. Huge folios would then come out of KHO's scratch,
    from where PRESERVE_FD has to move them before it can pin them, and compaction waits forever for
    the pages that PRESERVE_FD itself isolated (reclaim_throttle() below memfd_pin_folios(), seen on
    7.3.4).

    :raises OSError: ENOSPC, ENOMEM: so much memory is not there.
    """
    if count_huge(read_text(FREE_LISTS)) * HUGE_BYTES < size:
        return _memfd(name, size)
    where = f"{DIRECTORY}/{name}"
    os.makedirs(where, mode=0o700)
    try:
        return _allocate(name, size, where)
    finally:
        os.rmdir(where)


def _allocate(name: str, size: int, where: str) -> int:
    try:
        mount("tmpfs", where, "tmpfs", "huge=within_size,size=100%,mode=0700")
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return _memfd(name, size)  # a kernel without huge pages
    try:
        fd = os.open(where, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            os.posix_fallocate(fd, 0, size)
            # khugepaged must not gather what came as small folios: an observer from outside knows
            # the frames
            mount("tmpfs", where, "tmpfs", "huge=never", remount=True)
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        # the file keeps the file system alive
        unmount(where)


def count_huge(free_lists: str) -> int:
    """Count the free blocks of 2 MiB that may be pinned for long.

    :param free_lists: what /proc/pagetypeinfo says (mm/vmstat.c).
    """
    found = 0
    for line in free_lists.splitlines():
        _place, found_type, row = line.partition(", type ")
        if not found_type:
            continue
        kind, *counts = row.split()
        if kind not in _LASTING:
            continue
        for order, count in enumerate(counts[_HUGE_ORDER:]):
            # a count that took too long is cut off, as in ">100000"
            found += int(count.lstrip(">")) << order
    return found


def _memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd
