# SPDX-License-Identifier: Apache-2.0
"""/dev/prmem (guest-images/modules/include/uapi/linux/prmem.h): named instances of any memory.

Used as the pool is (:mod:`.pool`), with other memory behind it: no region, but folios that the
kernel's allocator gives and KHO keeps. An instance whose record is not valid is refused alone; with
an invalid root, all are.
"""

from __future__ import annotations

import struct

from ..base.fast_stdlib import read_text, write_text
from . import modules
from .base import MechanismError
from .pool import Pool, PoolMechanism, ioc, text_of

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

_IS_REFUSED = 2
_ALL_REFUSED = 2


class Prmem(Pool):
    """The device, whose objects are called instances."""

    pinnable = True
    #: name[64], u64 bytes, u64 value, u64 offset, u64 record, u32 flags, u32 users, reason[96]
    OBJECT = "=64s4QII96s"
    LISTED = f"=II{OBJECT[1:]}"
    #: u32 state, instances, refused, reserved, u64 bytes, max_bytes, sequence, meta, root,
    #: reason[96]
    STATE = "=4I5Q96s"
    OFFSET_AT = 5
    ALLOC = ioc(3, 0x60, struct.calcsize(OBJECT))
    INFO = ioc(3, 0x61, struct.calcsize(OBJECT))
    FREE = ioc(1, 0x62, struct.calcsize(OBJECT))
    SEAL = ioc(1, 0x65, struct.calcsize(OBJECT))
    VERIFY = ioc(1, 0x66, struct.calcsize(OBJECT))
    LIST = ioc(3, 0x67, struct.calcsize(LISTED))
    STAT = ioc(2, 0x68, struct.calcsize(STATE))

    def __init__(self) -> None:
        """:raises MechanismError: nothing that the previous kernel left is valid."""
        super().__init__(DEVICE)

    def check(self) -> int:
        """Return the physical address of the root.

        :raises MechanismError: it is not valid.
        """
        root: int
        state, *_, root, reason = self.state()
        if state == _ALL_REFUSED:
            raise MechanismError(
                f"persistent memory at {root:#x} is refused: {text_of(reason)}; it is left alone"
            )
        return root

    def used(self) -> tuple[int, int]:
        """Return how many bytes instances have, and how many what describes them has."""
        held, _, _, meta = self.state()[4:8]
        return held, meta

    def _call(self, request: int, name: str, size: int = 0) -> tuple[int, int]:
        """Return size and offset of an instance, after what is asked for it.

        :raises MechanismError: it is refused.
        """
        fields = self._ask(request, name, size, *bytes(5), b"")
        _, found, _, offset, _, flags, _, reason = fields
        if flags & _IS_REFUSED:
            why = text_of(reason)
            raise MechanismError(f"'{name}' is refused: {why}; its memory is left alone")
        return found, offset

    def verify(self, name: str) -> None:
        """Check the content of an instance against its seal.

        :raises MechanismError: it differs, or was never sealed.
        """
        self.find(name)  # says why, when it is refused
        super().verify(name)


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

    def exhaust(self) -> tuple[int, int]:
        """Set the limit to what is in use, so that there is no more room; for faults."""
        # to take all memory that the kernel has would be another fault
        used, before = self.pool.used()[0], int(read_text(MAX_BYTES))
        write_text(MAX_BYTES, str(used))
        return before - used, int(read_text(MAX_BYTES)) - used


open_mechanism = PrmemMechanism
