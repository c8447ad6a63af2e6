# SPDX-License-Identifier: Apache-2.0
"""/dev/lu_pool (guest-images/modules/include/uapi/linux/lu_pool.h): objects with names.

A guest's RAM is an object ``NAME/ram`` that VMMs map; what else a preserved set has is an object
``NAME/TOKEN`` that is written and sealed, with a checksum of its content, when all is final.
What was never sealed is not believed: the kernel was left in the middle. What was retrieved is
freed, so that it is never found again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from ..base.fast_stdlib import TYPE_CHECKING, read_text
from ..base.host import find_extents
from . import modules
from .base import Mechanism, MechanismError, PreservedSet, Ram
from .copies import HUGE_BYTES, CopySet, copy_all

if TYPE_CHECKING:
    from typing import Any

DEVICE = "/dev/lu_pool"
MODULE = "lu_pool"

#: files that hold the pool's code, below guest-images/
CODE = (
    "modules/drivers/misc/lu_pool/[bct]*.c",
    "modules/drivers/misc/lu_pool/*.h",
    "modules/include/**/lu_pool.h",
)
TRAITS = {
    "grows": ("no", "the region is what the command line says"),
    "kernel_users": ("yes", "lu_pool_alloc() and lu_pool_get(): named objects for drivers"),
    "userspace_users": ("yes", "/dev/lu_pool: named objects, mmap, read, write"),
    "kernel_code": CODE,
}
#: block 0, and for each object (manifest, states) at least one block of 2 MiB
SPARE_BYTES = 64 << 20
#: memmap= and not reserve_mem=: the place is known before the machine boots, which needs no
#: handover at all, and the memory has no struct pages. KHO is off, to show that it takes no part.
REQUIREMENTS = {
    "kconfig": ("MODULES",),
    "append": "kho=off liveupdate=off memmap={size}${start} lu.mechanism=pool",
    "modules": (MODULE,),
    "devices": (DEVICE,),
    "traits": TRAITS,
    "region_spare_bytes": SPARE_BYTES,
    # struct lu_pool_super: sequence, version
    "corrupt_at": 24,
    "version_at": 8,
}

#: name[64], u64 bytes, u64 offset, u32 flags, u32 users
_OBJECT = "=64sQQII"
#: u32 state, u32 objects, u64 start, size, free, largest, sequence, meta, reason[96]
_STAT = "=II6Q96s"


def ioc(direction: int, number: int, size: int) -> int:
    """Number of an ioctl, include/uapi/asm-generic/ioctl.h."""
    return direction << 30 | size << 16 | ord("l") << 8 | number


RELEASE = ioc(1, 0x47, 8)
_CONFIRM = 0x72656C65617365
_REFUSED = 2

#: what the particular errors of the device mean
_MEANINGS = {
    errno.ENODATA: "was never sealed: the previous kernel was left before all was in it",
    errno.EBADMSG: "is not what was sealed",
}


def encode_name(name: str) -> bytes:
    """Return a name as the device takes it: 63 bytes and a zero.

    :raises OSError: ENAMETOOLONG.
    """
    raw = name.encode("ascii")
    if len(raw) >= 64:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
    return raw


def text_of(raw: bytes) -> str:
    """Return a name or a reason of the device."""
    return raw.rstrip(b"\0").decode("ascii", "replace")


class Pool:
    """The device."""

    #: whether its pages can be pinned, see :class:`.mechanism.Ram`
    pinnable = False
    #: structs of the ioctls: an object, u32 index and u32 reserved with an object, and the state
    OBJECT = _OBJECT
    LISTED = f"=II{OBJECT[1:]}"
    STATE = _STAT
    #: which field of LISTED says where the object is
    OFFSET_AT = 4
    ALLOC = ioc(3, 0x40, struct.calcsize(OBJECT))
    INFO = ioc(3, 0x41, struct.calcsize(OBJECT))
    FREE = ioc(1, 0x42, struct.calcsize(OBJECT))
    SEAL = ioc(1, 0x43, struct.calcsize(OBJECT))
    VERIFY = ioc(1, 0x44, struct.calcsize(OBJECT))
    LIST = ioc(3, 0x45, struct.calcsize(LISTED))
    STAT = ioc(2, 0x46, struct.calcsize(STATE))

    def __init__(self, path: str = DEVICE) -> None:
        """:raises MechanismError: the content of the region is not valid."""
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        #: physical address of the region
        self.start = self.check()

    def check(self) -> int:
        """Return the physical address of the region.

        :raises MechanismError: the content of the region is not valid.
        """
        start: int
        state, _, start, size, *_, reason = self.state()
        if state == _REFUSED:
            why = text_of(reason)
            raise MechanismError(
                f"the pool of {size >> 20} MiB at {start:#x} is refused: {why}; it is left alone"
            )
        return start

    def state(self) -> tuple[Any, ...]:
        """Return the fields of STATE."""
        stat = bytearray(struct.calcsize(self.STATE))
        fcntl.ioctl(self.fd, self.STAT, stat)
        return struct.unpack(self.STATE, stat)

    def room(self) -> tuple[int, int]:
        """Return the size of the region and how much of it is free."""
        size, free = self.state()[3:5]
        return size, free

    def _call(self, request: int, name: str, size: int = 0) -> tuple[int, int]:
        """Return size and place of an object, after what is asked for it."""
        found, offset = self._ask(request, name, size, *bytes(3))[1:3]
        return found, offset

    def _ask(self, request: int, name: str, *fields: int | bytes) -> tuple[Any, ...]:
        """Return the fields of OBJECT, which begins with the name."""
        arg = bytearray(struct.pack(self.OBJECT, encode_name(name), *fields))
        try:
            fcntl.ioctl(self.fd, request, arg)
        except OSError as err:
            err.filename = name
            raise
        return struct.unpack(self.OBJECT, arg)

    def allocate(self, name: str, size: int) -> int:
        """Return where a new, zeroed object is in the device."""
        return self._call(self.ALLOC, name, size)[1]

    def find(self, name: str) -> tuple[int, int]:
        """Return size and place of an object.

        :raises FileNotFoundError: there is none.
        """
        return self._call(self.INFO, name)

    def free(self, name: str) -> None:
        """Free an object.

        :raises OSError: EBUSY while it is mapped.
        """
        self._call(self.FREE, name)

    def seal(self, name: str) -> None:
        """Seal an object with a checksum of its content."""
        self._call(self.SEAL, name)

    def verify(self, name: str) -> None:
        """:raises MechanismError: the content is not what was sealed, or nothing was."""
        try:
            self._call(self.VERIFY, name)
        except OSError as err:
            meaning = _MEANINGS.get(err.errno or 0)
            if meaning is None:
                raise
            raise MechanismError(f"'{name}' {meaning}") from None

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return [name for name, _, _ in self.objects()]

    def objects(self) -> list[tuple[str, int, int]]:
        """Return name, size and place of all objects."""
        found: list[tuple[str, int, int]] = []
        while True:
            arg = bytearray(struct.calcsize(self.LISTED))
            struct.pack_into("=I", arg, 0, len(found))
            try:
                fcntl.ioctl(self.fd, self.LIST, arg)
            except OSError as err:
                if err.errno == errno.ENOENT:
                    return found
                raise
            fields = struct.unpack(self.LISTED, arg)
            found.append((text_of(fields[2]), fields[3], fields[self.OFFSET_AT]))

    def read(self, name: str) -> int:
        """Return a memfd with the content of an object."""
        size, offset = self.find(name)
        out = os.memfd_create(name.replace("/", "-"), os.MFD_CLOEXEC)
        copy_all(self.fd, out, start=offset, size=size)
        return out


class PoolSet(CopySet):
    """Objects whose names begin with the preserved set's."""

    def __init__(self, pool: Pool, name: str, *, incoming: bool) -> None:
        super().__init__(name, incoming=incoming)
        self._pool = pool

    def preserve_ram(self, ram: Ram) -> None:
        """Do nothing: the object is already where it has to be."""
        self.tokens += 1  # it is where it has to be

    def reserve(self, token: int, size: int) -> None:
        """Allocate the object of a content of this size.

        :raises OSError: ENOSPC when there is no room.
        """
        self._pool.allocate(self._object(token), size)

    def copy(self, source: int, token: int) -> None:
        """Copy the content of ``source`` into the object of ``token`` and seal it."""
        name = self._object(token)
        size, offset = self._pool.find(name)
        copy_all(source, self._pool.fd, offset=offset, size=size)
        self._pool.seal(name)

    def places(self, token: int, source: int) -> list[tuple[int, int]]:
        """Return where the object of ``token`` lies in memory."""
        size, offset = self._pool.find(self._object(token))
        return find_extents(self._pool.fd, size, offset)

    def retrieve_ram(self, size: int) -> Ram:
        """Return the object of the RAM.

        :raises MechanismError: its size differs.
        """
        found, offset = self._pool.find(f"{self.name}/ram")
        if found != size:
            raise MechanismError(f"RAM has {found} bytes, the manifest says {size}")
        self.tokens += 1
        return _ram_of(self._pool, size, offset)

    def retrieve(self, token: int) -> int:
        """Return a memfd with the verified content of ``token``; the object is freed."""
        name = self._object(token)
        self._pool.verify(name)
        fd = self._pool.read(name)
        self._pool.free(name)
        self.tokens += 1
        return fd

    def finish(self) -> None:
        """Free all objects of the set except RAM, which is in use."""
        mine = f"{self.name}/"
        for name in self._pool.names():
            if name.startswith(mine) and name != f"{mine}ram":
                self._pool.free(name)

    def _object(self, token: int) -> str:
        return f"{self.name}/{token}"


class PoolMechanism(Mechanism):
    """Preserved sets in the pool."""

    def __init__(self, name: str, parameters: str, *, is_new: bool = False) -> None:
        """:param parameters: of the module: which memory it has.
        :param is_new: the previous kernel did not hand this memory over: its content is forgotten.
        """
        self.name = name
        if modules.load(MODULE, parameters) and is_new:
            release()
        self.pool = Pool()

    def allocate_ram(self, guest: str, size: int) -> Ram:
        """Return a new object for a guest's RAM."""
        offset = self.pool.allocate(_ram_name(guest), size)
        return _ram_of(self.pool, size, offset)

    def free_ram(self, guest: str, ram: Ram) -> None:
        """Close the memory and free the object."""
        ram.close()
        self.pool.free(_ram_name(guest))

    def metadata_bytes(self) -> int | None:
        """What is neither free nor the content of an object."""
        size, free = self.pool.room()
        return size - free - sum(held for _, held, _ in self.pool.objects())

    def create(self, name: str) -> PreservedSet:
        """Begin an outgoing preserved set, without leftovers of an interrupted update."""
        preserved = PoolSet(self.pool, name, incoming=False)
        preserved.finish()  # of an update that was broken off
        return preserved

    def retrieve(self, name: str) -> PreservedSet:
        """Return the previous kernel's preserved set of that name.

        :raises FileNotFoundError: it left none.
        """
        mine = f"{name}/"
        if not any(found.startswith(mine) for found in self.pool.names()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return PoolSet(self.pool, name, incoming=True)


def release(path: str = DEVICE) -> None:
    """Forget all that is in the region, whatever it is.

    :raises OSError: EBUSY: some of it is in use.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, RELEASE, struct.pack("=Q", _CONFIRM))
    finally:
        os.close(fd)


def _ram_of(pool: Pool, size: int, offset: int) -> Ram:
    fd = os.dup(pool.fd)
    return Ram(fd, size, offset=offset, align=HUGE_BYTES, pinnable=pool.pinnable)


def _ram_name(guest: str) -> str:
    return f"lu.guest.{guest}/ram"


def open_mechanism() -> PoolMechanism:
    """Return the pool on ``memmap=SIZE$START``.

    :raises MechanismError: no such region on the command line, or several.
    """
    return PoolMechanism("pool", region_of(read_text("/proc/cmdline")))


def region_of(cmdline: str) -> str:
    """Return the module's parameters for the one region that a command line keeps free.

    :raises MechanismError: it keeps none free, or several.
    """
    words = [word[7:] for word in cmdline.split() if word.startswith("memmap=") and "$" in word]
    if len(words) != 1:
        raise MechanismError(
            f"the command line has {len(words)} times memmap=SIZE$START, must be once"
        )
    size, _, start = words[0].partition("$")
    return f"start={start} size={size}"
