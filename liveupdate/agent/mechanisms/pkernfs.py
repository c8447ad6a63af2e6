# SPDX-License-Identifier: Apache-2.0
"""pkernfs: a file system in a reserved region, ``guest-images/modules/fs/pkernfs``.

The same words on the next command line give the same region again, and the module finds its files
in it; no KHO. The first mount formats a region that was never used. The kernel refuses a region
that is not valid, and leaves it as it is until a command is written to ``/sys/fs/pkernfs``.
"""

from __future__ import annotations

import os

from ..base.fast_stdlib import mount, read_text
from ..base.host import kernel_said
from .base import MechanismError
from .files import FileMechanism
from .modules import load

MODULE = "pkernfs"
MOUNT_POINT = "/run/liveupdate/keep"
SYSFS = "/sys/fs/pkernfs"
_WORD = "pkernfs.region="

REQUIREMENTS = {
    "kconfig": ("MODULES", "ZONE_DEVICE", "TRANSPARENT_HUGEPAGE"),
    # KHO is off, to show that it takes no part
    "append": (
        "kho=off liveupdate=off memmap={size}${start} pkernfs.region={size}!{start}"
        " lu.mechanism=pkernfs"
    ),
    "modules": (MODULE,),
    "traits": {
        "grows": ("no", "the region is what the command line says"),
        "kernel_users": ("yes", "pkernfs_open(): files by name, in memory at a fixed address"),
        "userspace_users": ("yes", "files: mmap with 2 MiB pages, read, write, directories"),
        "kernel_code": (
            "modules/fs/pkernfs/[dfilmrs]*.[ch]",
            "modules/include/linux/pkernfs.h",
            "modules/include/linux/kho/abi/pkernfs.h",
        ),
    },
    # Metadata, manifest and VMM states, a block of 2 MiB at least for each. With the smallest guest
    # it makes the region 512 MiB, of which the one block of metadata is 0.4 %.
    "region_spare_bytes": 132 << 20,
    # struct pkernfs_super: reserved, version
    "corrupt_at": 1024 + 0x2C,
    "version_at": 8,
}


class PkernfsMechanism(FileMechanism):
    """The file system on the one region that the command line names."""

    def __init__(self) -> None:
        super().__init__("pkernfs", MOUNT_POINT)
        region = wanted_region(read_text("/proc/cmdline"))
        load(MODULE, f"region={region}")
        os.makedirs(MOUNT_POINT, mode=0o700, exist_ok=True)
        try:
            mount("pkernfs", MOUNT_POINT, "pkernfs", "")
        except OSError as err:
            raise MechanismError(f"{err}{kernel_said('pkernfs: ', most=1)}") from err

    def region_bytes(self, told: int) -> int:
        """Return the size of the region in bytes, as the module reports it."""
        return int(read_text(f"{SYSFS}/region").partition("!")[0], 16)


def wanted_region(cmdline: str) -> str:
    """Return the region that a kernel command line names, as ``SIZE!START``.

    :raises MechanismError: it names none.
    """
    found = [word[len(_WORD) :] for word in cmdline.split() if word.startswith(_WORD)]
    if not found:
        raise MechanismError(f"the kernel was given no {_WORD}SIZE!START")
    return found[-1]


open_mechanism = PkernfsMechanism
