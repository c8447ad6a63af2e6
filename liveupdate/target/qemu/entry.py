# SPDX-License-Identifier: Apache-2.0
"""Target ``qemu``: a machine of this run, a child of this process."""

from __future__ import annotations

from liveupdate.target.base import Located, Order
from liveupdate.target.qemu.host import QemuHost


def locate(place: str) -> Located:
    """Return an empty location: there is nothing to find."""
    return Located(place=place)


def make(order: Order) -> QemuHost:
    """Return the machine of a plan, not started."""
    return QemuHost(order)
