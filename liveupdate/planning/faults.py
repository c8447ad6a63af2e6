# SPDX-License-Identifier: Apache-2.0
"""Whether a fault applies: what it needs against what mechanism, target and scenario have. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from liveupdate.core.errors import ScenarioError
from liveupdate.faults.base import DEFAULT, Fault, Part
from liveupdate.model.device_models import FED_KINDS
from liveupdate.model.mechanism import Requirements
from liveupdate.model.scenario import Scenario
from liveupdate.model.targets import Target, TargetKind
from liveupdate.scenario.load import where


def check_fault(scenario: Scenario, fault: Fault, mechanism: Requirements, target: Target) -> None:
    """Refuse a fault that does not apply.

    :raises ScenarioError: mechanism, target or scenario lack what it needs.
    """
    place = where(scenario, "fault")
    reason = not_of_mechanism(fault, mechanism)
    if reason is not None:
        raise ScenarioError(
            f"fault '{fault.name}' does not affect mechanism '{mechanism.name}'",
            where=place,
            hint=reason,
        )
    reason = not_of_target(fault, target.kind)
    if reason is not None:
        raise ScenarioError(
            f"target '{target.kind.name}' cannot inject '{fault.name}': {reason}", where=place
        )
    for part, lacks in _PARTS.items():
        message = lacks(scenario) if part in fault.needs else None
        if message is not None:
            unlike = fault.scenario != DEFAULT and not scenario.devices
            hint = f"run it with scenario '{fault.scenario}'" if unlike else None
            raise ScenarioError(f"fault '{fault.name}' {message}", where=place, hint=hint)


def not_of_mechanism(fault: Fault, mechanism: Requirements) -> str | None:
    """Return why a fault says nothing about a mechanism; None: it does."""
    return next((why for offer, why in mechanism.lacks.items() if offer in fault.needs), None)


def not_of_target(fault: Fault, target: TargetKind) -> str | None:
    """Return why a fault cannot be injected into a kind of target; None: it can."""
    return next((why for each, why in target.lacks.items() if each in fault.needs), None)


def _no_device(scenario: Scenario) -> str | None:
    if not scenario.devices:
        return "strikes a device, and the scenario has none"
    first = scenario.devices[0]
    if first.guest is not None:
        return f"strikes a device of the host's own driver, and '{first.name}' is a guest's"
    return None


def _no_frames(scenario: Scenario) -> str | None:
    first = scenario.devices[0]
    if first.kind not in FED_KINDS:
        return f"drops frames, and none are sent to device '{first.name}' of kind '{first.kind}'"
    return None


def _no_guest_card(scenario: Scenario) -> str | None:
    if not scenario.devices:
        return "strikes a device, and the scenario has none"
    first = scenario.devices[0]
    if first.guest is None or first.kind not in FED_KINDS:
        return f"strikes a guest's own network card, and '{first.name}' is none"
    return None


def _no_payload(scenario: Scenario) -> str | None:
    return (
        None if scenario.guests[0].kind.payload else "needs the shipped payload in the first guest"
    )


def _no_digests(scenario: Scenario) -> str | None:
    if scenario.observe.memory:
        return None
    return "is seen by memory digests only, and observe.memory is false"


def _no_registers(scenario: Scenario) -> str | None:
    if scenario.vcpu_state:
        return None
    return "is seen by the registers of vCPUs only, and vcpu_state is false"


#: what a scenario lacks, as the rest of a sentence about the fault, or None; in this order, so that
#: each may rely on those before it
_PARTS: Mapping[Part, Callable[[Scenario], str | None]] = MappingProxyType(
    {
        Part.DEVICE: _no_device,
        Part.FRAMES: _no_frames,
        Part.GUEST_CARD: _no_guest_card,
        Part.PAYLOAD: _no_payload,
        Part.DIGESTS: _no_digests,
        Part.REGISTERS: _no_registers,
    }
)
