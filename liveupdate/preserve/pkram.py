# SPDX-License-Identifier: Apache-2.0
"""pkram: guest RAM and VM state as files of our file system in ordinary memory, saved under a name.

Kernel side: ``guest-images/modules/fs/pkram``. KHO keeps the folios and passes one page, the
directory of saves; LUO is switched off, to show that it takes no part.
"""

from __future__ import annotations

from liveupdate.model.mechanism import KHO, Offer, Requirements, Trait, Traits

REQUIREMENTS = Requirements(
    name="pkram",
    kconfig=("KEXEC_HANDOVER", "MODULES", "TRANSPARENT_HUGEPAGE"),
    abi_prefixes=("kho-v",),
    append="kho=on liveupdate=off lu.mechanism=pkram",
    modules=("pkram",),
    witnesses=(KHO,),
    traits=Traits(
        grows=Trait("yes", "folios from the kernel's allocator, until size= or none are left"),
        kernel_users=Trait("no", "for userspace only, as the original"),
        userspace_users=Trait("yes", "files: mmap with 2 MiB pages, read, write, directories"),
        kernel_code=(
            "modules/fs/pkram/[dfirs]*.[ch]",
            "modules/include/linux/kho/abi/pkram.h",
            "modules/include/uapi/linux/pkram.h",
        ),
    ),
    # struct pkram_dir: magic, reserved, version
    marker=0x315249444D524B50,
    corrupt_at=0x20,
    version_at=8,
    lacks_too={Offer.KHO_SWITCH: "the kernel gives back what was preserved without a look at kho="},
)
