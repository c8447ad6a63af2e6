# SPDX-License-Identifier: Apache-2.0
"""Memory pool: a region kept free by ``memmap=SIZE$START``, our module cuts it into objects.

Kernel side: ``guest-images/modules/drivers/misc/lu_pool``. KHO is switched off, to show that it
takes no part. ``memmap=`` and not ``reserve_mem=``: the place is known before the machine boots,
which needs no handover at all, and the memory has no struct pages.
"""

from __future__ import annotations

from liveupdate.core.units import MIB
from liveupdate.model.mechanism import SIZE, START, Requirements, Trait, Traits

#: files that hold the pool's code, below guest-images/
POOL_CODE = (
    "modules/drivers/misc/lu_pool/[bct]*.c",
    "modules/drivers/misc/lu_pool/*.h",
    "modules/include/**/lu_pool.h",
)
#: block 0, and for each object (manifest, states) at least one block of 2 MiB
SPARE_BYTES = 64 * MIB
POOL_TRAITS = Traits(
    grows=Trait("no", "the region is what the command line says"),
    kernel_users=Trait("yes", "lu_pool_alloc() and lu_pool_get(): named objects for drivers"),
    userspace_users=Trait("yes", "/dev/lu_pool: named objects, mmap, read, write"),
    kernel_code=POOL_CODE,
)

REQUIREMENTS = Requirements(
    name="pool",
    kconfig=("MODULES",),
    abi_prefixes=(),
    append=f"kho=off liveupdate=off memmap={SIZE}${START} lu.mechanism=pool",
    modules=("lu_pool",),
    devices=("/dev/lu_pool",),
    traits=POOL_TRAITS,
    region_spare_bytes=SPARE_BYTES,
    # struct lu_pool_super: sequence, version
    corrupt_at=24,
    version_at=8,
)
