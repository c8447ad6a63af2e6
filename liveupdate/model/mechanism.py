# SPDX-License-Identifier: Apache-2.0
"""What a mechanism asks of kernels and machines, as data; the registry is an explicit tuple."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

#: what the agent's own bundle (LUO: session) is called in evidence
AGENT_SESSION = "lu.agent"

#: witnesses: what the incoming kernel itself says of the handover
KHO = "kho"
LUO = "luo"


class Offer(StrEnum):
    """What a mechanism may have that a fault can strike, or a device needs."""

    #: guest RAM is a memfd, and so may be the memory of a device
    MEMFD = "memfd"
    #: the incoming kernel finds what was left by a word on its command line
    POINTER = "pointer"
    #: KHO takes part in the handover
    KHO = "kho"
    #: nothing comes through when the incoming kernel has ``kho=off``
    KHO_SWITCH = "kho-switch"
    #: LUO takes part in the handover
    LUO = "luo"
    #: works with kernels that our modules are not built for
    ANY_KERNEL = "any-kernel"
    #: memory is set aside at boot
    REGION = "region"
    #: what it keeps is described in memory of its own, and there is only so much room
    STORE = "store"


NO_REGION = "it strikes a region that was set aside, and this mechanism has none"

REASONS: Mapping[Offer, str] = MappingProxyType(
    {
        Offer.MEMFD: "the RAM of its guests is not in memfds",
        Offer.POINTER: "what it left is found without a pointer on the command line",
        Offer.KHO: "this mechanism does without KHO, which is switched off",
        Offer.KHO_SWITCH: "this mechanism does without KHO, which is switched off",
        Offer.LUO: "this mechanism does without LUO, which is switched off",
        Offer.ANY_KERNEL: "our modules are not built for the kernel that it needs",
        Offer.REGION: NO_REGION,
        Offer.STORE: NO_REGION,
    }
)
"""Why a fault that needs an offer says nothing about a mechanism without it."""

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
    abi_prefixes: tuple[str, ...] = ()
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
    #: of :data:`Offer.MEMFD` and :data:`Offer.POINTER`, which nothing else here tells
    has: tuple[Offer, ...] = ()
    #: what it does not offer for a reason of its own
    lacks_too: Mapping[Offer, str] = field(default_factory=dict)

    @property
    def lacks(self) -> Mapping[Offer, str]:
        """What it does not offer, with the reason; it follows from the other fields."""
        offered = {
            Offer.KHO: KHO in self.witnesses,
            Offer.KHO_SWITCH: KHO in self.witnesses,
            Offer.LUO: LUO in self.witnesses,
            Offer.ANY_KERNEL: not self.modules,
            Offer.REGION: self.region_spare_bytes is not None,
            Offer.STORE: self.region_spare_bytes is not None or self.marker is not None,
        }
        missing = [offer for offer in Offer if not offered.get(offer, offer in self.has)]
        return {offer: REASONS[offer] for offer in missing} | dict(self.lacks_too)
