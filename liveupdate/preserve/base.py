# SPDX-License-Identifier: Apache-2.0
"""What a mechanism asks of kernels and machines, as data; the registry is an explicit tuple."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: what the agent's own bundle (LUO: session) is called in evidence
AGENT_SESSION = "lu.agent"

#: witnesses: what the incoming kernel itself says of the handover
KHO = "kho"
LUO = "luo"

#: why faults say nothing about some mechanisms
NO_POINTER = "what it left is found without a pointer on the command line"
NO_KHO = "this mechanism does without KHO, which is switched off"
NO_LUO = "this mechanism does without LUO, which is switched off"
NO_MEMFD = "it moves a page of a memfd"
NO_MODULES = "our modules are not built for the kernel that it needs"
NO_REGION = "it strikes a region that was set aside, and this mechanism has none"

#: stand in :attr:`Requirements.append` for the region's place, known once the guests are
SIZE = "{size}"
START = "{start}"


@dataclass(frozen=True, slots=True)
class Trait:
    """A property of a mechanism that no run can measure: a short answer, and why it is so."""

    answer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What ``liveupdate matrix`` shows of a mechanism beside what was measured."""

    #: can it hold more than was known at boot
    grows: Trait
    #: can a driver or a subsystem of the kernel use it
    kernel_users: Trait
    #: can a process use it
    userspace_users: Trait
    #: our own kernel code that it needs, as patterns below ``guest-images/``; its lines are counted
    kernel_code: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a mechanism needs before it can be planned, and what can be asked of it afterwards."""

    name: str
    #: kernel symbols, without CONFIG_, that both kernels must have
    kconfig: tuple[str, ...]
    #: compatible strings must exist with these prefixes and be equal in both kernels
    abi_prefixes: tuple[str, ...]
    #: words for both kernels' command lines
    append: str
    traits: Traits
    #: our own kernel modules that the agent loads, in this order
    modules: tuple[str, ...] = ()
    #: device nodes the agent needs on the host under update
    devices: tuple[str, ...] = ()
    #: which parts of the kernel take part in the handover (:data:`KHO`, :data:`LUO`) and have to
    #: say so; what has no witness is not asked for, with the reason
    witnesses: tuple[str, ...] = ()
    #: bytes of the region beside the guests' RAM, or None: no memory is set aside at boot
    region_spare_bytes: int | None = None
    #: first u64 (little endian) of the page that describes what is there, for faults to find it by
    #: in all RAM; None: the region begins with it, and where that is has been planned
    marker: int | None = None
    #: bytes of that page that faults flip a bit of: one that only the checksum vouches for, and
    #: the low one of its version
    corrupt_at: int = 0
    version_at: int = 0
    #: faults that say nothing about this mechanism, with the reason
    immune: Mapping[str, str] = field(default_factory=dict)
