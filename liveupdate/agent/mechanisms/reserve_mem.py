# SPDX-License-Identifier: Apache-2.0
"""The pool (:mod:`.pool`) on memory that ``reserve_mem=SIZE:ALIGN:NAME`` keeps and KHO revives.

Without KHO such memory comes from no kernel, and holds what was left in RAM. With KHO, a region
with another name, size or alignment is other memory too, and the kernel says so in its log only. A
pool in it would be blank and look like a first boot, so the log is checked first.
"""

from __future__ import annotations

import os

from ..base.fast_stdlib import read_text
from ..base.host import KHO_DEBUGFS, last_messages
from . import pool
from .base import MechanismError, PreservedSet
from .pool import PoolMechanism

_WORD = "reserve_mem="

REQUIREMENTS = {
    "kconfig": ("KEXEC_HANDOVER", "MODULES"),
    "abi_prefixes": ("kho-v", "memblock-v", "reserve-mem-v"),
    # Without sizes KHO makes its scratch areas twice as large as all that was allocated so far,
    # the region included (scratch_size_update() in kernel/liveupdate/kexec_handover.c). The region
    # is in one piece, and a kernel that lies anywhere in a small machine's RAM cuts it in two.
    "append": (
        "kho=on liveupdate=off nokaslr kho_scratch=256M,64M,256M"
        " reserve_mem={size}:2M:liveupdate lu.mechanism=reserve-mem"
    ),
    "modules": (pool.MODULE,),
    "devices": (pool.DEVICE,),
    "witnesses": ("kho",),
    "lacks_too": {"kho-switch": "the kernel revives reserve_mem= without a look at kho="},
    "traits": pool.TRAITS,
    "region_spare_bytes": pool.SPARE_BYTES,
    # struct lu_pool_super: magic, sequence, version
    "marker": 0x314C4F4F502D554C,
    "corrupt_at": 24,
    "version_at": 8,
}


class ReserveMemMechanism(PoolMechanism):
    """The pool on the one reservation that the command line names."""

    def __init__(self) -> None:
        name = wanted_name(read_text("/proc/cmdline"))
        super().__init__("reserve-mem", f"reserve={name}", is_new=not was_handed_over(name))

    def retrieve(self, name: str) -> PreservedSet:
        """Return the previous kernel's preserved set of that name.

        :raises MechanismError: the region is not the previous kernel's.
        :raises FileNotFoundError: it left no such set.
        """
        try:
            return super().retrieve(name)
        except FileNotFoundError:
            said = why_not_revived()
            if said:
                raise MechanismError(f"the region is not the previous kernel's: {said}") from None
            raise


def wanted_name(cmdline: str) -> str:
    """Return the name of the one reservation that a kernel command line makes.

    :raises MechanismError: it makes none, or several.
    """
    words = [word[len(_WORD) :] for word in cmdline.split() if word.startswith(_WORD)]
    if len(words) != 1:
        raise MechanismError(
            f"the command line has {len(words)} times reserve_mem=SIZE:ALIGN:NAME, must be once"
        )
    name = words[0].rpartition(":")[2]
    if words[0].count(":") != 2 or not name:
        raise MechanismError(f"'{_WORD}{words[0]}' is not reserve_mem=SIZE:ALIGN:NAME")
    return name


def was_handed_over(name: str) -> bool:
    """Whether KHO brought reservations to this kernel, or that one at least.

    The log, which takes some hundred reads, has the last word: with kho=off there is no debugfs,
    and the kernel revives reservations all the same.
    """
    if os.path.exists(f"{KHO_DEBUGFS}/in/sub_fdts/memblock"):
        return True
    return last_messages(f"Revived memory reservation '{name}'") != ""


def why_not_revived() -> str:
    """Return what the kernel said of a region of KHO's that it did not take; "": nothing."""
    return last_messages("KHO reserve-mem", most=1) or last_messages("FDT 'memblock' ", most=1)


open_mechanism = ReserveMemMechanism
