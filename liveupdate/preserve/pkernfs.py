# SPDX-License-Identifier: Apache-2.0
"""pkernfs: guest RAM and VM state as files of our file system in reserved memory.

Kernel side: ``guest-images/modules/fs/pkernfs``. KHO is switched off, to show that it takes no
part: both kernels are told the same range, and the rest is in it.
"""

from __future__ import annotations

from liveupdate.core.units import MIB
from liveupdate.model.mechanism import SIZE, START, Requirements, Trait, Traits

REQUIREMENTS = Requirements(
    name="pkernfs",
    kconfig=("MODULES", "ZONE_DEVICE", "TRANSPARENT_HUGEPAGE"),
    abi_prefixes=(),
    append=(
        f"kho=off liveupdate=off memmap={SIZE}${START} pkernfs.region={SIZE}!{START}"
        " lu.mechanism=pkernfs"
    ),
    modules=("pkernfs",),
    traits=Traits(
        grows=Trait("no", "the region is what the command line says"),
        kernel_users=Trait("yes", "pkernfs_open(): files by name, in memory at a fixed address"),
        userspace_users=Trait("yes", "files: mmap with 2 MiB pages, read, write, directories"),
        kernel_code=(
            "modules/fs/pkernfs/[dfilmrs]*.[ch]",
            "modules/include/linux/pkernfs.h",
            "modules/include/linux/kho/abi/pkernfs.h",
        ),
    ),
    # Metadata, manifest and VMM states, a block of 2 MiB at least for each. With the smallest guest
    # it makes the region 512 MiB, of which the one block of metadata is 0.4 %.
    region_spare_bytes=132 * MIB,
    # struct pkernfs_super: reserved, version
    corrupt_at=1024 + 0x2C,
    version_at=8,
)
