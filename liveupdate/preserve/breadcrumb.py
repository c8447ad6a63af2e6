# SPDX-License-Identifier: Apache-2.0
"""Breadcrumb: a stream of records that the incoming kernel's command line points at.

The idea is Xen's live update. Guest RAM is in objects of our pool, VM states and manifest are in
the stream (``guest-images/modules/include/uapi/linux/lu_stream.h``), which says where the RAM is.
KHO is switched off, to show that it takes no part.
"""

from __future__ import annotations

from dataclasses import replace

from liveupdate.model.mechanism import SIZE, START, Offer
from liveupdate.preserve import pool

REQUIREMENTS = replace(
    pool.REQUIREMENTS,
    name="breadcrumb",
    append=f"kho=off liveupdate=off memmap={SIZE}${START} lu.mechanism=breadcrumb",
    traits=replace(
        pool.POOL_TRAITS,
        kernel_code=(*pool.POOL_CODE, "modules/include/uapi/linux/lu_stream.h"),
    ),
    # LU_VERSION and its length; the first bundle's name, its version
    marker=int.from_bytes(b"LU-V\x10\0\0\0", "little"),
    corrupt_at=32,
    version_at=8,
    has=(Offer.POINTER,),
)
