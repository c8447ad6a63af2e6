# SPDX-License-Identifier: Apache-2.0
"""The kinds of host under update, and what each can offer: data for the loader and the planner.

``KIND`` or ``KIND:PLACE`` in a scenario. Capabilities are those of
:data:`liveupdate.target.base.CAPABILITIES`, and more: "monitor-cut" (the monitor's line can
be cut without ending the machine), "process" (the machine is a process of the control host, its
disks are files there), "clock" (a guest's clock can be read at a known time) and "devices" (a
guest can be given one that is watched).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_ALL = ("power", "console", "agent", "ssh", "physical_memory", "monitor", "wire", "clock")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetKind:
    """One kind. ``lacks``: capability to the reason why it is not there."""

    name: str
    capabilities: frozenset[str]
    lacks: Mapping[str, str]
    #: what stands behind the colon: "" nothing, "optional" or "required"
    place: str
    #: what that is, for messages
    place_is: str = ""


def _kind(name: str, has: tuple[str, ...], place: str, place_is: str, **lacks: str) -> TargetKind:
    return TargetKind(
        name=name,
        capabilities=frozenset(has),
        lacks=MappingProxyType({key.replace("_cut", "-cut"): why for key, why in lacks.items()}),
        place=place,
        place_is=place_is,
    )


_TABLE = (
    _kind("qemu", (*_ALL, "monitor-cut", "process", "devices"), "", ""),
    _kind(
        "libvirt",
        (*_ALL, "process"),
        "optional",
        "a libvirt URI",
        monitor_cut="libvirtd holds the monitor, and a machine ends with our connection to it",
        devices="devices are not part of the domain",
    ),
    _kind(
        "ssh",
        ("power", "console", "agent", "ssh"),
        "required",
        "a machine's name or description",
        physical_memory="memory is not seen from outside",
        monitor="there is no monitor",
        monitor_cut="there is no monitor",
        wire="there is no wire to the guests",
        devices="nobody feeds its devices",
        process="the machine is not ours to kill, and its disks are not seen from outside",
        clock="a guest's clock is read late, over SSH",
    ),
)

TARGETS: Mapping[str, TargetKind] = MappingProxyType({kind.name: kind for kind in _TABLE})
"""Every kind by name."""

CHECK_NEEDS: Mapping[str, str] = MappingProxyType(
    {"guest.clock": "clock", "guest.network": "wire", "guest.storage": "process"}
)
"""The capability of the target without which a check is SKIP."""

FAULT_NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "flip-bit": "physical_memory",
        "region-corrupt": "physical_memory",
        "region-version": "physical_memory",
        "clock-jump": "clock",
        "tsc-skew": "clock",
        "cold-reset": "monitor",
        "guest-disk-lost": "process",
        "ssh-drop": "monitor",
        "qmp-drop": "monitor-cut",
        "qemu-killed": "process",
    }
)
"""The capability of the target that a fault needs; one that is not here is the agent's doing."""


def split_target(text: str) -> tuple[TargetKind, str]:
    """Split ``KIND[:PLACE]``.

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
    return kind, place
