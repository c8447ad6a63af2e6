# SPDX-License-Identifier: Apache-2.0
"""The ioctls of /dev/liveupdate (include/uapi/linux/liveupdate.h of Linux 7.3).

Sessions are created on the outgoing kernel and retrieved by name on the incoming one; there is
no call that lists them. Closing an outgoing session drops everything in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from ..base.fast_stdlib import close_fd
from ..base.host import find_extents
from .base import TOKEN_RAM, Mechanism, MechanismError, PreservedSet, Ram
from .copies import HUGE_BYTES

DEVICE = "/dev/liveupdate"

REQUIREMENTS = {
    "kconfig": ("KEXEC_HANDOVER", "LIVEUPDATE", "LIVEUPDATE_MEMFD"),
    "abi_prefixes": ("kho-v", "luo-v", "memfd-v"),
    "append": "kho=on liveupdate=on",
    "devices": (DEVICE,),
    "witnesses": ("kho", "luo"),
    "has": ("memfd",),
    "traits": {
        "grows": ("yes", "any page of any memfd can be preserved at any time"),
        "kernel_users": (
            "yes",
            "kho_preserve_*() for memory, a file handler or FLB of LUO for state",
        ),
        "userspace_users": ("yes", "memfds, through sessions of /dev/liveupdate"),
    },
}

_CREATE_SESSION = 0xBA00
_RETRIEVE_SESSION = 0xBA01
_PRESERVE_FD = 0xBA40
_RETRIEVE_FD = 0xBA41
_FINISH = 0xBA42

#: u32 size, s32 fd (out), u8 name[64]
_SESSION = "=Ii64s"
#: u32 size, s32 fd, u64 token
_FD = "=IiQ"
#: u32 size, u32 reserved
_NONE = "=II"

#: how often RAM that the kernel cannot pin now is offered to it, and how long apart
PIN_ATTEMPTS = 5
PIN_PAUSE_S = 0.3

NAME_BYTES_MAX = 63


class Session(PreservedSet):
    """A session file descriptor; ``incoming`` ones came from the previous kernel."""

    def __init__(self, fd: int, name: str, *, incoming: bool) -> None:
        self.fd = fd
        self.name = name
        self.incoming = incoming
        self.tokens = 0
        self.is_open = True

    def preserve_ram(self, ram: Ram) -> None:
        """Preserve a running guest's RAM.

        Folios in KHO's scratch are moved out of it first. A folio that is in use at that moment
        cannot be moved, which is also ENOMEM (migrate_longterm_unpinnable_folios() in mm/gup.c), so
        ENOMEM counts only when it persists.
        """
        for left in reversed(range(PIN_ATTEMPTS)):
            try:
                return self.preserve(ram.fd, TOKEN_RAM)
            except OSError as err:
                if err.errno != errno.ENOMEM or not left:
                    raise
            self.refusals += 1
            time.sleep(PIN_PAUSE_S)
        return None

    def retrieve_ram(self, size: int) -> Ram:
        """Return the memfd of the RAM.

        :raises MechanismError: its size differs.
        """
        ram = Ram(self.retrieve(TOKEN_RAM), size, align=HUGE_BYTES)
        found = os.fstat(ram.fd).st_size
        if found != size:
            ram.close()
            raise MechanismError(f"RAM has {found} bytes, the manifest says {size}")
        return ram

    def seal(self) -> None:
        """Nothing to do: the memfds themselves are carried, with whatever is in them."""

    def places(self, token: int, source: int) -> list[tuple[int, int]]:
        """Return where the memfd's pages are: PRESERVE_FD has pinned them."""
        return find_extents(source, os.fstat(source).st_size)

    def preserve(self, fd: int, token: int) -> None:
        """Have ``fd`` carried over under ``token``; fills holes, so takes time by size."""
        fcntl.ioctl(self.fd, _PRESERVE_FD, bytearray(struct.pack(_FD, 16, fd, token)))
        self.tokens += 1

    def retrieve(self, token: int) -> int:
        """Return the file descriptor carried over under ``token`` (close-on-exec)."""
        arg = bytearray(struct.pack(_FD, 16, -1, token))
        fcntl.ioctl(self.fd, _RETRIEVE_FD, arg)
        fd: int = struct.unpack_from(_FD, arg)[1]
        os.set_inheritable(fd, False)
        self.tokens += 1
        return fd

    def finish(self) -> None:
        """Tell the kernel that an incoming session is done with; frees what was not retrieved."""
        fcntl.ioctl(self.fd, _FINISH, bytearray(struct.pack(_NONE, 8, 0)))

    def close(self) -> None:
        """Close the session. An outgoing one is dropped by the kernel."""
        self.fd = close_fd(self.fd)
        self.is_open = False


class Device(Mechanism):
    """/dev/liveupdate. Only one opener at a time, so it is kept open for the whole boot.

    :raises OSError: ENOENT without ``liveupdate=on``; EIO when what the previous kernel left
        cannot be read, for the rest of the boot.
    """

    name = "luo-memfd"

    def __init__(self, path: str = DEVICE) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def allocate_ram(self, guest: str, size: int) -> Ram:
        """Return shmem for a guest's RAM, in huge folios where the kernel has them, outside of
        KHO's scratch.

        :raises OSError: the kernel cannot allocate or pin it.
        """
        from . import shmem

        ram = Ram(shmem.create(f"lu-ram-{guest}", size), size, align=HUGE_BYTES)
        try:
            self._move_out_of_scratch(guest, ram)
        except OSError:
            ram.close()
            raise
        return ram

    def _move_out_of_scratch(self, guest: str, ram: Ram) -> None:
        """Move RAM to where it can stay before it is used, by preserving it for a moment.

        The kernel hands out KHO's scratch as movable memory (CMA), and the first PRESERVE_FD moves
        it. With a VMM in it that can fail for as long as the guest runs: seen with guests on huge
        folios, ENOMEM five times in a row and memory enough.
        """
        session = self.create(f"lu.settle.{guest}"[:NAME_BYTES_MAX])
        try:
            session.preserve_ram(ram)
        finally:
            session.close()

    def free_ram(self, guest: str, ram: Ram) -> None:
        """Close the memory."""
        ram.close()

    def create(self, name: str) -> Session:
        """Make an outgoing session."""
        return Session(self._session(_CREATE_SESSION, name), name, incoming=False)

    def retrieve(self, name: str) -> Session:
        """Return a session of the previous kernel; ``FileNotFoundError``: it left none."""
        return Session(self._session(_RETRIEVE_SESSION, name), name, incoming=True)

    def _session(self, request: int, name: str) -> int:
        raw = name.encode("ascii")
        if not 0 < len(raw) <= NAME_BYTES_MAX:
            raise ValueError(f"session name '{name}' must have 1 to {NAME_BYTES_MAX} bytes")
        arg = bytearray(struct.pack(_SESSION, 72, -1, raw))
        try:
            fcntl.ioctl(self.fd, request, arg)
        except OSError as err:
            err.filename = name  # "No such file or directory" alone says little
            raise
        fd: int = struct.unpack_from(_SESSION, arg)[1]
        os.set_inheritable(fd, False)
        return fd


open_mechanism = Device
