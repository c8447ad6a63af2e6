# SPDX-License-Identifier: Apache-2.0
"""The faults a run can inject, by name; each is a row in the file of its family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType, ModuleType

from liveupdate.faults import device, guest, handover, lab, memory, region, state, vcpu
from liveupdate.faults.base import Fault

FAMILIES = (memory, state, handover, region, guest, vcpu, device, lab)


def collect(families: Iterable[ModuleType]) -> Mapping[str, Fault]:
    """Return every fault that the modules define, by name, in the order of their definitions.

    :raises ValueError: two of them have the same name.
    """
    found: dict[str, Fault] = {}
    for family in families:
        for value in vars(family).values():
            if isinstance(value, Fault) and found.setdefault(value.name, value) is not value:
                raise ValueError(f"two faults are named '{value.name}'")
    return MappingProxyType(found)


FAULTS: Mapping[str, Fault] = collect(FAMILIES)
"""Every fault by name, in the order in which ``liveupdate faults`` lists them."""
