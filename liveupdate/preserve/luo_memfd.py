# SPDX-License-Identifier: Apache-2.0
"""LUO memfd: guest RAM and VM state in memfds that a Live Update Orchestrator session preserves.

Kernel side: ``mm/memfd_luo.c``, ``kernel/liveupdate/`` (7.3). The work on the host is done
by the agent (``liveupdate.agent``); here stands only what the planner must know.
"""

from __future__ import annotations

from liveupdate.model.mechanism import KHO, LUO, Offer, Requirements, Trait, Traits

REQUIREMENTS = Requirements(
    name="luo-memfd",
    kconfig=("KEXEC_HANDOVER", "LIVEUPDATE", "LIVEUPDATE_MEMFD"),
    abi_prefixes=("kho-v", "luo-v", "memfd-v"),
    append="kho=on liveupdate=on",
    devices=("/dev/liveupdate",),
    witnesses=(KHO, LUO),
    traits=Traits(
        grows=Trait("yes", "any page of any memfd can be preserved at any time"),
        kernel_users=Trait(
            "yes", "kho_preserve_*() for memory, a file handler or FLB of LUO for state"
        ),
        userspace_users=Trait("yes", "memfds, through sessions of /dev/liveupdate"),
    ),
    has=(Offer.MEMFD,),
)
