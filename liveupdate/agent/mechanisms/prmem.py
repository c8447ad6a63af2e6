# SPDX-License-Identifier: Apache-2.0
"""/dev/prmem (guest-images/modules/include/uapi/linux/prmem.h): named instances of any memory.

Used as the pool is (:mod:`.pool`), with other memory behind it: no region, but folios that the
kernel's allocator gives and KHO keeps. An instance whose record is not valid is refused alone; with
an invalid root, all are.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from . import modules
from .base import MechanismError
from .pool import Pool, PoolMechanism, encode_name, explain, ioc

DEVICE = "/dev/prmem"
MODULE = "prmem"

REQUIREMENTS = {
    "kconfig": ("KEXEC_HANDOVER", "MODULES", "TRANSPARENT_HUGEPAGE"),
    "abi_prefixes": ("kho-v",),
    # KHO keeps the folios and passes one pointer; LUO is off, to show that it takes no part
    "append": "kho=on liveupdate=off lu.mechanism=prmem",
    "modules": (MODULE,),
    "devices": (DEVICE,),
    "witnesses": ("kho",),
    "traits": {
        "grows": ("yes", "folios from the kernel's allocator, until max_bytes or none are left"),
        "kernel_users": ("yes", "prmem_create(), prmem_get(): named instances for drivers"),
        "userspace_users": ("yes", "/dev/prmem: named instances, mmap, read, write"),
        "kernel_code": (
            "modules/drivers/misc/prmem/[cmr]*.c",
            "modules/drivers/misc/prmem/*.h",
            "modules/include/**/prmem.h",
        ),
    },
    # struct prmem_root: magic, sequence, version
    "marker": 0x314D454D52502D4C,
    "corrupt_at": 16,
    "version_at": 8,
}
#: limit of all instances together; by default there is none
MAX_BYTES = "/sys/module/prmem/parameters/max_bytes"

#: name[64], u64 bytes, u64 value, u64 offset, u64 record, u32 flags, u32 users, reason[96]
_INFO = "=64s4QII96s"
#: u32 index, u32 reserved, info
_LIST = f"=II{_INFO[1:]}"
#: u32 state, instances, refused, reserved, u64 bytes, max_bytes, sequence, meta, root, reason[96]
_STAT = "=4I5Q96s"

CREATE = ioc(3, 0x60, struct.calcsize(_INFO))
INFO = ioc(3, 0x61, struct.calcsize(_INFO))
FREE = ioc(1, 0x62, struct.calcsize(_INFO))
SEAL = ioc(1, 0x65, struct.calcsize(_INFO))
VERIFY = ioc(1, 0x66, struct.calcsize(_INFO))
LIST = ioc(3, 0x67, struct.calcsize(_LIST))
STAT = ioc(2, 0x68, struct.calcsize(_STAT))
_IS_REFUSED = 2
_ALL_REFUSED = 2


class Prmem(Pool):
    """The device."""

    pinnable = True

    def __init__(self, path: str = DEVICE) -> None:
        """:raises MechanismError: nothing that the previous kernel left is valid."""
        super().__init__(path)

    def check(self) -> int:
        """Return the physical address of the root.

        :raises MechanismError: it is not valid.
        """
        state, _, _, root, reason = self._stat()
        if state == _ALL_REFUSED:
            raise MechanismError(
                f"persistent memory at {root:#x} is refused: {_text(reason)}; it is left alone"
            )
        return root

    def used(self) -> tuple[int, int]:
        """Return how many bytes instances have, and how many what describes them has."""
        _, held, meta, _, _ = self._stat()
        return held, meta

    def _stat(self) -> tuple[int, int, int, int, bytes]:
        """Return state, bytes of instances, bytes of metadata, address of the root, reason."""
        stat = bytearray(struct.calcsize(_STAT))
        fcntl.ioctl(self.fd, STAT, stat)
        state, _, _, _, held, _, _, meta, root, reason = struct.unpack(_STAT, stat)
        return state, held, meta, root, reason

    def _ask(self, request: int, name: str, size: int = 0) -> tuple[int, int]:
        """Return size and offset of an instance.

        :raises MechanismError: it is refused.
        """
        raw = encode_name(name)
        arg = bytearray(struct.pack(_INFO, raw, size, 0, 0, 0, 0, 0, b""))
        try:
            fcntl.ioctl(self.fd, request, arg)
        except OSError as err:
            err.filename = name
            raise
        _, found, _, offset, _, flags, _, reason = struct.unpack(_INFO, arg)
        if flags & _IS_REFUSED:
            raise MechanismError(f"'{name}' is refused: {_text(reason)}; its memory is left alone")
        return found, offset

    def allocate(self, name: str, size: int) -> int:
        """Make a zeroed instance; return its offset in the device."""
        return self._ask(CREATE, name, size)[1]

    def find(self, name: str) -> tuple[int, int]:
        """Return size and offset of an instance.

        :raises FileNotFoundError: there is none.
        :raises MechanismError: it is refused.
        """
        return self._ask(INFO, name)

    def free(self, name: str) -> None:
        """Free an instance.

        :raises OSError: EBUSY while it is mapped.
        """
        self._ask(FREE, name)

    def seal(self, name: str) -> None:
        """Seal an instance with a checksum of its content."""
        self._ask(SEAL, name)

    def verify(self, name: str) -> None:
        """Check the content of an instance against its seal.

        :raises MechanismError: it differs, or was never sealed.
        """
        self.find(name)  # says why, when it is refused
        try:
            self._ask(VERIFY, name)
        except OSError as err:
            raise explain(name, err) from None

    def objects(self) -> list[tuple[str, int, int]]:
        """Return name, size and offset of all instances; those that are refused have neither."""
        found: list[tuple[str, int, int]] = []
        while True:
            arg = bytearray(struct.calcsize(_LIST))
            struct.pack_into("=I", arg, 0, len(found))
            try:
                fcntl.ioctl(self.fd, LIST, arg)
            except OSError as err:
                if err.errno == errno.ENOENT:
                    return found
                raise
            raw, size, _, offset = struct.unpack(_LIST, arg)[2:6]
            found.append((_text(raw), size, offset))


class PrmemMechanism(PoolMechanism):
    """Preserved sets in instances of the device."""

    pool: Prmem

    def __init__(self) -> None:
        self.name = "prmem"
        modules.load(MODULE)
        self.pool = Prmem()

    def metadata_bytes(self) -> int | None:
        """Return what describes the instances, as the module counts it."""
        return self.pool.used()[1]

    def exhaust(self) -> None:
        """Set the limit to what is in use, so that there is no more room; for faults."""
        # to take all memory that the kernel has would be another fault
        with open(MAX_BYTES, "w") as limit:
            limit.write(str(self.pool.used()[0]))


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("ascii", "replace")


def open_mechanism() -> PrmemMechanism:
    """Return the mechanism of this boot, ready."""
    return PrmemMechanism()
