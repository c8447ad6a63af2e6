# SPDX-License-Identifier: Apache-2.0
"""PRMEM: persistent memory that is allocated as it is needed, in named instances.

Kernel side: ``guest-images/modules/drivers/misc/prmem``. KHO keeps the folios and passes one
pointer; LUO is switched off, to show that it takes no part. No memory is set aside at boot.
"""

from __future__ import annotations

from liveupdate.model.mechanism import KHO, Requirements, Trait, Traits

REQUIREMENTS = Requirements(
    name="prmem",
    kconfig=("KEXEC_HANDOVER", "MODULES", "TRANSPARENT_HUGEPAGE"),
    abi_prefixes=("kho-v",),
    append="kho=on liveupdate=off lu.mechanism=prmem",
    modules=("prmem",),
    devices=("/dev/prmem",),
    witnesses=(KHO,),
    traits=Traits(
        grows=Trait("yes", "folios from the kernel's allocator, until max_bytes or none are left"),
        kernel_users=Trait("yes", "prmem_create(), prmem_get(): named instances for drivers"),
        userspace_users=Trait("yes", "/dev/prmem: named instances, mmap, read, write"),
        kernel_code=(
            "modules/drivers/misc/prmem/[cmr]*.c",
            "modules/drivers/misc/prmem/*.h",
            "modules/include/**/prmem.h",
        ),
    ),
    # struct prmem_root: magic, sequence, version
    marker=int.from_bytes(b"L-PRMEM1", "little"),
    corrupt_at=16,
    version_at=8,
)
