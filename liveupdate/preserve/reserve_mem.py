# SPDX-License-Identifier: Apache-2.0
"""Reserved memory with a name: ``reserve_mem=SIZE:ALIGN:NAME``, revived by KHO.

Kernel side: ``reserve_mem()`` in ``mm/memblock.c`` (7.3) keeps the memory and hands it on, our pool
(``guest-images/modules/drivers/misc/lu_pool``) cuts it into objects. The outgoing kernel chooses
the place when it boots; the incoming one is told it by KHO and finds the region by its name.
"""

from __future__ import annotations

from liveupdate.model.mechanism import KHO, SIZE, Offer, Requirements
from liveupdate.preserve.pool import POOL_TRAITS, SPARE_BYTES

REQUIREMENTS = Requirements(
    name="reserve-mem",
    kconfig=("KEXEC_HANDOVER", "MODULES"),
    abi_prefixes=("kho-v", "memblock-v", "reserve-mem-v"),
    # Without sizes KHO makes its scratch areas twice as large as all that was allocated so far,
    # the region included (scratch_size_update() in kernel/liveupdate/kexec_handover.c). The region
    # is in one piece, and a kernel that lies anywhere in a small machine's RAM cuts it in two.
    append=(
        "kho=on liveupdate=off nokaslr kho_scratch=256M,64M,256M"
        f" reserve_mem={SIZE}:2M:liveupdate lu.mechanism=reserve-mem"
    ),
    modules=("lu_pool",),
    devices=("/dev/lu_pool",),
    witnesses=(KHO,),
    traits=POOL_TRAITS,
    region_spare_bytes=SPARE_BYTES,
    # struct lu_pool_super: magic, sequence, version
    marker=int.from_bytes(b"LU-POOL1", "little"),
    corrupt_at=24,
    version_at=8,
    lacks_too={Offer.KHO_SWITCH: "the kernel revives reserve_mem= without a look at kho="},
)
