# SPDX-License-Identifier: Apache-2.0
"""The kinds of host under update, and what each can offer: data for the loader and the planner.

``KIND`` or ``KIND:PLACE`` in a scenario. Whatever depends on the kind of target asks for a
:class:`Capability`, never for the kind's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class Capability(StrEnum):
    """What a kind of target may be able to do; the value is the name in messages."""

    POWER = "power"
    CONSOLE = "console"
    AGENT = "agent"
    SSH = "ssh"
    #: its RAM can be read and written from outside
    PHYSICAL_MEMORY = "physical_memory"
    #: its devices can be asked about from outside, and it can be reset there
    MONITOR = "monitor"
    #: raw frames can be exchanged with its guests
    WIRE = "wire"
    #: a guest's clock can be read at a known time
    CLOCK = "clock"
    #: the monitor's line can be cut without ending the machine
    MONITOR_CUT = "monitor-cut"
    #: the machine is a process of the control host, and its disks are files there
    PROCESS = "process"
    #: a guest can be given a device that is watched
    DEVICES = "devices"
    #: the machine is made for the run: memory, disks, IOMMU and command line are as planned
    MADE = "made"
    #: the machine can be saved with its guests, and loaded for another run
    SAVE = "save"


DEFAULT = "qemu"
"""The kind that a scenario without a target takes."""


@dataclass(frozen=True, slots=True)
class TargetKind:
    """One kind."""

    name: str
    #: module of :mod:`liveupdate.target` that finds and makes its hosts, see
    #: :class:`liveupdate.target.base.Entry`
    module: str
    #: each capability that it does not have, with the reason
    lacks: Mapping[Capability, str]
    #: what stands behind the colon: "" nothing, "optional" or "required"
    place: str = ""
    #: what that is, for messages
    place_is: str = ""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do: all that it does not lack."""
        return frozenset(Capability) - self.lacks.keys()


_TABLE = (
    TargetKind("qemu", "liveupdate.target.qemu.entry", {}),
    TargetKind(
        "libvirt",
        "liveupdate.target.libvirt.entry",
        {
            Capability.MONITOR_CUT: "libvirtd holds the monitor, and a machine ends with the"
            " connection to it",
            Capability.DEVICES: "devices are not part of the domain",
            Capability.SAVE: "a saved host is loaded into a QEMU started by target 'qemu' only",
        },
        "optional",
        "a libvirt URI",
    ),
    TargetKind(
        "ssh",
        "liveupdate.target.ssh.entry",
        {
            Capability.PHYSICAL_MEMORY: "memory is not seen from outside",
            Capability.MONITOR: "there is no monitor",
            Capability.MONITOR_CUT: "there is no monitor",
            Capability.WIRE: "there is no wire to the guests",
            Capability.DEVICES: "it has no device that the control host feeds",
            Capability.PROCESS: "the machine is no process here, and its disks are not seen from"
            " outside",
            Capability.CLOCK: "a guest's clock is read late, over SSH",
            Capability.MADE: "a lab machine's memory, disks and IOMMU are fixed",
            Capability.SAVE: "the machine is reset before each run",
        },
        "required",
        "a machine's name or description",
    ),
)

TARGETS: Mapping[str, TargetKind] = MappingProxyType({kind.name: kind for kind in _TABLE})
"""Every kind by name."""


class Target(NamedTuple):
    """What a scenario's ``target`` says."""

    kind: TargetKind
    #: what stands behind the colon, or ""
    place: str

    def has(self, capability: Capability) -> bool:
        """Return whether the kind has a capability."""
        return capability in self.kind.capabilities


def parse_target(text: str) -> Target:
    """Parse ``KIND[:PLACE]``.

    :raises ValueError: no such kind, or a place where none belongs or is missing.
    """
    name, colon, place = text.partition(":")
    kind = TARGETS.get(name)
    if kind is None:
        raise ValueError(f"one of {', '.join(map(repr, TARGETS))}")
    if colon and not kind.place:
        raise ValueError(f"'{name}' alone")
    if bool(colon) != bool(place) or (kind.place == "required" and not place):
        raise ValueError(f"'{name}:' with {kind.place_is} behind it")
    return Target(kind, place)
