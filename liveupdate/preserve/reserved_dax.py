# SPDX-License-Identifier: Apache-2.0
"""Reserved memory as it is done today: ``memmap=SIZE!START``, pmem, ext4 with DAX; no KHO.

Kernel side: ``drivers/nvdimm/e820.c``, ``fs/dax.c``. KHO is switched off, to show that it takes no
part: what carries the memory is that both kernels are told to leave the same range alone.
"""

from __future__ import annotations

from liveupdate.core.units import MIB
from liveupdate.model.mechanism import SIZE, START, Requirements, Trait, Traits

REQUIREMENTS = Requirements(
    name="reserved-dax",
    kconfig=("X86_PMEM_LEGACY", "BLK_DEV_PMEM", "FS_DAX", "EXT4_FS"),
    abi_prefixes=(),
    append=f"kho=off liveupdate=off memmap={SIZE}!{START} lu.mechanism=reserved-dax",
    devices=("/dev/pmem0",),
    traits=Traits(
        grows=Trait("no", "the region is what the command line says"),
        kernel_users=Trait(
            "no", "a driver would have to open files of a file system that user space mounts"
        ),
        userspace_users=Trait("yes", "files: mmap, read, write; names and permissions are ext4's"),
    ),
    # ext4's own: superblock, inodes and journal in clusters of 2 MiB; manifest and VMM states
    region_spare_bytes=64 * MIB,
    # ext4's superblock: s_mtime, s_rev_level
    corrupt_at=1024 + 0x2C,
    version_at=1024 + 0x4C,
)
