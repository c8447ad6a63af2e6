# SPDX-License-Identifier: Apache-2.0
"""Decode the registers of an AMD-Vi unit that tell whether it translates, and by which tables.

AMD I/O Virtualization Technology (IOMMU) Specification, 48882, 3.4; offsets
are into the unit's MMIO region.
"""

from __future__ import annotations

#: Device Table Base Address Register, 3.4.1; value as :class:`amdvi.DeviceTableBase` takes it
DEVICE_TABLE_BASE = 0x00
#: IOMMU Control Register, 3.4.4
CONTROL = 0x18
#: both, and what lies between
FIRST_BYTES = 0x20
#: IOMMU Status Register, 3.4.11
STATUS = 0x2020

_ENABLE = 1 << 0
_EVENT_OVERFLOW = 1 << 0
_EVENT_INTERRUPT = 1 << 1


def is_translating(control: int) -> bool:
    """IommuEn of the control register: requests are translated; without it they pass unchecked."""
    return bool(control & _ENABLE)


def is_clear(status: int) -> bool:
    """Whether the event log holds nothing new, and has lost nothing.

    What the kernel has taken note of is cleared in the status register: a trace says more.
    """
    return not status & (_EVENT_OVERFLOW | _EVENT_INTERRUPT)
