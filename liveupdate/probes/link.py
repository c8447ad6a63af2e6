# SPDX-License-Identifier: Apache-2.0
"""Whether a network card of a QEMU machine has a link, by its register, read through the monitor.

QEMU has no command that says it.
"""

from __future__ import annotations

from collections.abc import Mapping

from liveupdate.core.errors import EvidenceError
from liveupdate.formats.qemu_pci import find_bar
from liveupdate.probes.qemu_machine import read_physical, soon
from liveupdate.transport.monitor import Commands

#: by kind of card: BAR, offset of a 32-bit register in it, and its bit that says "up"
_REGISTERS: Mapping[str, tuple[int, int, int]] = {
    # hw/virtio/virtio-pci.c has the device's configuration at 0x2000 of BAR 4; status of struct
    # virtio_net_config (virtio 1.3, 5.1.4) follows the six bytes of the MAC address
    "virtio": (4, 0x2004, 16),
    # LU of STATUS, Intel 82576 and 82574 datasheets
    "igb": (0, 0x0008, 1),
    "e1000e": (0, 0x0008, 1),
}


def read_link(monitor: Commands, qdev_id: str, kind: str) -> str | None:
    """Return "up" or "down"; None: it cannot be read now, such as while BARs are being placed.

    :param kind: a device's kind in a scenario, or "virtio".
    """
    number, offset, bit = _REGISTERS[kind]
    base = find_bar(monitor.execute("query-pci", {}, soon("QEMU's PCI devices")), qdev_id, number)
    if base is None:
        return None
    try:
        word = int.from_bytes(read_physical(monitor, base + offset, 4), "little")
    except EvidenceError:
        return None
    if word == 0xFFFFFFFF:  # nothing answers
        return None
    return "up" if word >> bit & 1 else "down"
