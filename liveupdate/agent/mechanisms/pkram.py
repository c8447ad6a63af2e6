# SPDX-License-Identifier: Apache-2.0
"""pkram: a file system in ordinary memory, ``guest-images/modules/fs/pkram``.

One mount, whose save the next kernel finds under its name. A save is made when RAM is preserved,
with the guest running, so that what is left for the blackout is what has come since: VM state and
the description of all. Whatever changes names or sizes after a save gives it up in the kernel, so
each preserved set that is sealed makes it anew; the last one holds.
"""

from __future__ import annotations

import fcntl
import os

from ..base.fast_stdlib import TYPE_CHECKING, mount, read_text
from ..base.host import kernel_said
from .base import MechanismError, Ram
from .files import FileMechanism, FileSet
from .modules import load

if TYPE_CHECKING:
    from .base import PreservedSet

MODULE = "pkram"
MOUNT_POINT = "/run/liveupdate/keep"
SYSFS = "/sys/fs/pkram"
#: name of the agent's save, for the next kernel
SAVE_NAME = "liveupdate"
#: guest-images/modules/include/uapi/linux/pkram.h
_SAVE = 0x70C0

REQUIREMENTS = {
    "kconfig": ("KEXEC_HANDOVER", "MODULES", "TRANSPARENT_HUGEPAGE"),
    "abi_prefixes": ("kho-v",),
    # KHO keeps the folios and passes one page, the directory of saves; LUO is off, to show that it
    # takes no part
    "append": "kho=on liveupdate=off lu.mechanism=pkram",
    "modules": (MODULE,),
    "witnesses": ("kho",),
    "lacks_too": {"kho-switch": "the kernel gives back what was preserved without a look at kho="},
    "traits": {
        "grows": ("yes", "folios from the kernel's allocator, until size= or none are left"),
        "kernel_users": ("no", "for userspace only, as the original"),
        "userspace_users": ("yes", "files: mmap with 2 MiB pages, read, write, directories"),
        "kernel_code": (
            "modules/fs/pkram/[dfirs]*.[ch]",
            "modules/include/linux/kho/abi/pkram.h",
            "modules/include/uapi/linux/pkram.h",
        ),
    },
    # struct pkram_dir: magic, reserved, version
    "marker": 0x315249444D524B50,
    "corrupt_at": 0x20,
    "version_at": 8,
}


class PkramSet(FileSet):
    """A directory in the one file system that is saved."""

    def __init__(self, root: str, path: str, name: str, *, incoming: bool) -> None:
        super().__init__(path, name, incoming=incoming)
        self._root = root

    def preserve_ram(self, ram: Ram) -> None:
        """Save the file system, which holds the file of the RAM."""
        save(self._root)
        self.tokens += 1

    def seal(self) -> None:
        """Save the file system again, now with the VM state."""
        super().seal()
        save(self._root)


class PkramMechanism(FileMechanism):
    """The file system with the agent's save, or an empty one."""

    def __init__(self) -> None:
        super().__init__("pkram", MOUNT_POINT)
        try:
            load(MODULE)
            os.makedirs(MOUNT_POINT, mode=0o700, exist_ok=True)
            mount("pkram", MOUNT_POINT, "pkram", f"name={SAVE_NAME},size={_memory_bytes()}")
        except (MechanismError, OSError) as err:
            raise MechanismError(f"{err}{kernel_said('pkram: ', most=1)}") from err

    def preserved(self, directory: str, name: str, *, incoming: bool) -> PreservedSet:
        """Return a preserved set in ``directory``."""
        return PkramSet(self.root, directory, name, incoming=incoming)

    def metadata_bytes(self) -> int | None:
        """Return what describes the content, as the module counts it."""
        return int(read_text(f"{SYSFS}/metadata_bytes"))

    def exhaust(self) -> tuple[int, int]:
        """Set the limit to what is in use, so that there is no more room; for faults."""
        # to take all memory that the kernel has would be another fault
        found = os.statvfs(self.root)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        mount("pkram", self.root, "pkram", f"size={used}", remount=True)
        return found.f_bfree * found.f_frsize, os.statvfs(self.root).f_bfree * found.f_frsize


def save(root: str) -> None:
    """Have all that is in the file system now carried over.

    :raises OSError: ENOMEM, or EOPNOTSUPP: this kernel has no KHO.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _SAVE)
    except OSError as err:
        err.filename = root
        raise
    finally:
        os.close(fd)


def _memory_bytes() -> int:
    """Size of all memory: guests take what they were planned to take."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


open_mechanism = PkramMechanism
