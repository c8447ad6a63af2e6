# SPDX-License-Identifier: Apache-2.0
"""What passed-through devices need of a scenario and of its machine. Pure; a part of planning."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from msgspec.structs import replace

from liveupdate.core.errors import ScenarioError
from liveupdate.model.device_models import FED_KINDS, GUEST_KINDS, UNSAVED_KINDS
from liveupdate.model.mechanism import Offer, Requirements
from liveupdate.model.scenario import DeviceSpec, Scenario
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.scenario.load import where

#: words for the command line by kind of IOMMU and scalable mode; AMD's is on by default, and Linux
#: does not use QEMU's to remap interrupts, which VFIO wants to know to be intended
IOMMU_APPEND: Mapping[tuple[str, bool], str] = MappingProxyType(
    {
        ("intel", False): "intel_iommu=on",
        ("intel", True): "intel_iommu=on,sm_on",
        ("amd", False): "vfio_iommu_type1.allow_unsafe_interrupts=1"
        " iommufd.allow_unsafe_interrupts=1",
    }
)

#: as long as a machine has shown no blackout, one under TCG is supposed to take so long
ASSUMED_BLACKOUT_S = 6.0
#: a ring has room for so many times the blackout that was shown
_MARGIN = 3
#: a slower stream of frames would test little
LEAST_RATE = 200


def pace_devices(
    devices: tuple[DeviceSpec, ...], blackout_s: float | None
) -> tuple[DeviceSpec, ...]:
    """Lower rates at which a ring would be full before the blackout is over.

    :param blackout_s: the longest that this machine has shown lately; None: it has shown none.
    """

    def pace(device: DeviceSpec) -> DeviceSpec:
        if device.tier != "continuous" or device.kind not in FED_KINDS or device.guest is not None:
            return device
        room = int((device.ring - 1) / (_MARGIN * (blackout_s or ASSUMED_BLACKOUT_S)))
        return replace(device, rate=min(device.rate, max(room, LEAST_RATE)))

    return tuple(pace(device) for device in devices)


def check_devices(scenario: Scenario, mechanism: Requirements) -> None:
    """Refuse devices that the machine or the mechanism does not support.

    :raises ScenarioError: they contradict the IOMMU or the mechanism.
    """
    iommu = scenario.iommu
    if iommu.scalable and iommu.kind != "intel":
        raise ScenarioError(
            f"an IOMMU of kind '{iommu.kind}' has no scalable mode",
            where=where(scenario, "iommu.scalable"),
        )
    for device in scenario.devices:
        place = where(scenario, f"device.{device.name}.name")
        if iommu.kind == "none":
            raise ScenarioError(
                f"device '{device.name}': without an IOMMU its addresses are not translated",
                where=place,
                hint='set iommu.kind = "intel"',
            )
        if iommu.kind != "intel" and device.tier == "continuous":
            raise ScenarioError(
                f"device '{device.name}': the kernels keep the tables of an IOMMU of kind 'intel',"
                f" not of kind '{iommu.kind}', so tier 'continuous' is not supported",
                where=place,
                hint='set its tier = "quiesce", or iommu.kind = "intel"',
            )
        if device.guest is not None:
            _check_guests_own(scenario, device)
        elif device.tier == "quiesce" and device.kind == "nvme":
            raise ScenarioError(
                f"device '{device.name}': the agent's nvme driver does not repeat reads that"
                " were in flight, so tier 'quiesce' is not supported",
                where=place,
            )
        if Offer.MEMFD in mechanism.lacks:
            able = [each.name for each in MECHANISMS.values() if Offer.MEMFD not in each.lacks]
            raise ScenarioError(
                f"device '{device.name}': the memory it works on is carried over by mechanism"
                f" {' or '.join(map(repr, able))}, not by '{mechanism.name}'",
                where=place,
            )


def _check_guests_own(scenario: Scenario, device: DeviceSpec) -> None:
    """Refuse a device that its guest could not use or not release."""
    guest = next((each for each in scenario.guests if each.name == device.guest), None)
    others = [each for each in scenario.devices if each.guest == device.guest]
    wrong: tuple[str, str, str | None] | None = None
    if guest is None:
        wrong = "guest", f"there is no guest '{device.guest}'", None
    elif device.tier != "quiesce":
        # The mappings are the VMM's, which cannot take over a running device.
        said = "a guest's own device stops for the update"
        wrong = "tier", said, 'set its tier = "quiesce"'
    elif not guest.kind.payload:
        wrong = (
            "guest",
            f"'{guest.name}' is an image of yours, and only the shipped payload sleeps",
            None,
        )
    elif device.kind not in GUEST_KINDS:
        said = f"no guest has a driver for kind '{device.kind}'"
        wrong = "kind", said, f"one of {', '.join(GUEST_KINDS)}"
    elif device.mapped_bytes is not None:
        wrong = "mapped", "what is mapped for it is its guest's memory", None
    elif len({each.access for each in others}) > 1:
        # QEMU 11.1 aborts: it takes the one's address space for the other's
        wrong = "access", f"one VMM opens all devices of '{guest.name}' in the same way", None
    elif sum(each.kind == "nvme" for each in others) > 1:
        wrong = "kind", f"'{guest.name}' has another nvme, and keeps a journal on one", None
    if wrong is not None:
        key, said, hint = wrong
        raise ScenarioError(
            f"device '{device.name}': {said}",
            where=where(scenario, f"device.{device.name}.{key}"),
            hint=hint,
        )


def mapped_bytes(scenario: Scenario) -> int:
    """Memory that is mapped for devices beside what they work on."""
    return sum(device.mapped_bytes or 0 for device in scenario.devices)


def can_be_saved(scenario: Scenario) -> bool:
    """Tell whether QEMU can save a machine with these devices, and load it again."""
    return not any(
        # a guest that has a device was not saved while it ran, ever
        device.kind in UNSAVED_KINDS or device.guest is not None
        for device in scenario.devices
    )
