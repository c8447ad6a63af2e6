# SPDX-License-Identifier: Apache-2.0
"""What a fault is: a row, and beside it the function that strikes.

A fault says what it needs; which mechanisms, targets and scenarios it applies to follows from what
these offer (:mod:`liveupdate.planning.faults`). The judge never reads any of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from liveupdate.core.units import PhysAddr, format_addr
from liveupdate.model.evidence import Struck
from liveupdate.model.mechanism import Offer
from liveupdate.model.plan import Expected
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    # a row is read by the planner, which knows no machine: for types only
    from liveupdate.run.testbed import Testbed

DEFAULT = "default"
"""The scenario of a run that names none: one guest, one kexec."""

REGION_WORDS = ("memmap", "reserve_mem")
"""Kernel parameters that set memory aside for a mechanism."""

CALL_S = 10.0
"""How long the agent or a monitor may take to do what a fault asks, in seconds."""


class Moment(StrEnum):
    """When a fault strikes, in the order of a hop."""

    #: it changes what is planned for the first hop
    PLAN = "plan"
    #: the guests run, and nothing is preserved yet
    PREPARE = "prepare"
    #: the guests run, everything is prepared and the incoming kernel is loaded
    BROWNOUT = "brownout"
    #: it takes the place of the jump
    JUMP = "jump"
    #: the guests are frozen and their memory has been digested
    BLACKOUT = "blackout"
    #: the incoming kernel has written its first line and has touched no device yet
    INCOMING = "incoming"
    #: the guests run again
    RESUMED = "resumed"


class Part(StrEnum):
    """What a scenario may have that a fault strikes, or that shows its effect."""

    #: its first device is one that a driver of the host uses
    DEVICE = "device"
    #: the control host sends frames to its first device
    FRAMES = "frames"
    #: its first device is a guest's own network card
    GUEST_CARD = "guest-card"
    #: the first guest runs our payload
    PAYLOAD = "payload"
    #: guest memory is digested
    DIGESTS = "digests"
    #: the registers of vCPUs are compared
    REGISTERS = "registers"


Need = Capability | Offer | Part
"""What a fault needs: of the target, of the mechanism, or of the scenario."""

SCENARIOS: Mapping[Need, str] = {
    Part.GUEST_CARD: "vfio-quiesce",
    Part.DEVICE: "vfio-continuous",
    Offer.POINTER: "reserved-region",
    Offer.REGION: "reserved-region",
    Offer.STORE: "reserved-region",
}
"""The shipped scenario that has what a need asks for; the default has all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopChange:
    """What a fault of :attr:`Moment.PLAN` changes in the first hop."""

    #: words of the incoming command line to leave out, by their part before "="
    drop: tuple[str, ...] = ()
    add: str = ""
    loader: str = "file"
    #: the incoming kernel's command line has a region that is smaller by a section
    shrink: bool = False
    #: False: the outgoing kernel's TSC calibration is not handed over
    calibration: bool = True
    #: images that replace kernels, by "outgoing" and "incoming"
    kernels: Mapping[str, str] = field(default_factory=dict)
    #: handover ABI of the incoming kernel compared with the outgoing one's: "same", "other" or
    #: "none"
    abi: str = "same"


Later = Callable[[], Struck | None]
"""Looks at the end of the hop for what was changed; None: nothing was."""

Strike = Callable[["Testbed"], Struck | Later]
"""Breaks something, and returns what it changed, read before and read back; or how to find out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Either ``strike`` is called at the moment ``at``, or ``change`` is applied to the plan.
    """

    name: str
    #: one line for people
    what: str
    at: Moment
    expected: Expected
    needs: frozenset[Need] = frozenset()
    strike: Strike | None = None
    change: HopChange | None = None

    @property
    def where(self) -> str:
        """The part of a hop in which it strikes, for people."""
        return Moment.BROWNOUT if self.at is Moment.PREPARE else self.at

    @property
    def scenario(self) -> str:
        """The shipped scenario that has what it strikes; the default of a run with this fault."""
        return next((name for need, name in SCENARIOS.items() if need in self.needs), DEFAULT)


def fails(check: str, exit_code: int = 1) -> Expected:
    """Return the expectation that ``check`` is FAIL."""
    return Expected(check=check, status="FAIL", exit_code=exit_code)


def errs(check: str, exit_code: int = 3) -> Expected:
    """Return the expectation that ``check`` is ERROR: the fault removes its evidence."""
    return Expected(check=check, status="ERROR", exit_code=exit_code)


def fault(
    name: str, what: str, *, at: Moment, expect: Expected, needs: Iterable[Need] = ()
) -> Callable[[Strike | None], Fault]:
    """Decorate a function that strikes; it becomes a :class:`Fault`."""

    def make(strike: Strike | None) -> Fault:
        return Fault(
            name=name, what=what, at=at, expected=expect, needs=frozenset(needs), strike=strike
        )

    return make


def planned_fault(
    name: str, what: str, change: HopChange, *, expect: Expected, needs: Iterable[Need] = ()
) -> Fault:
    """Return a fault that changes the plan of the first hop."""
    row = fault(name, what, at=Moment.PLAN, expect=expect, needs=needs)
    return replace(row(None), change=change)


def struck(
    what: str, where: str, before: str, after: str, *, view: str = "outside", at_ns: int = 0
) -> Struck:
    """Make the record of a strike.

    :param at_ns: when its effect was read; 0: just now.
    """
    at_ns = at_ns or time.monotonic_ns()
    return Struck(what=what, where=where, before=before, after=after, at_ns=at_ns, view=view)


def ask_agent(bed: Testbed, name: str, **details: object) -> Later:
    """Let the agent carry out its part of fault ``name``; errors as :meth:`AgentLink.call`.

    :return: looks for the agent's event ``struck``, which may come as late as in the incoming
        kernel.
    """
    agent = bed.host.agent
    mark = agent.mark()
    bed.call("inject", {"fault": name, "args": details}, timeout_s=CALL_S)

    def find() -> Struck | None:
        for event in agent.events(mark):
            if event.name == "struck" and event.data.get("fault") == name:
                told = [event.data.get(key) for key in ("what", "where", "before", "after")]
                texts = [str(each) for each in told if isinstance(each, (str, int))]
                if len(texts) == len(told):
                    return struck(*texts, view="inside", at_ns=event.at_ns)
        return None

    return find


def write_memory(bed: Testbed, what: str, address: int, data: bytes) -> Struck:
    """Write to the host's RAM from outside, and read back what is there then.

    :raises NotRam: the bytes are not all RAM.
    """
    ram = bed.own_machine.ram
    before = ram.read(address, len(data))
    ram.write(PhysAddr(address), data)
    after = ram.read(address, len(data))
    return struck(what, f"host-physical {format_addr(address)}", before.hex(), after.hex())


def flip(bed: Testbed, what: str, address: int, bit: int) -> Struck:
    """Flip one bit of a byte of the host's RAM; errors as :func:`write_memory`."""
    (byte,) = bed.own_machine.ram.read(address, 1)
    return write_memory(bed, f"bit {bit} of a byte of {what}", address, bytes([byte ^ 1 << bit]))
