# SPDX-License-Identifier: Apache-2.0
"""Devices that fail on request, for tests of the checks; off the path of other runs."""

from __future__ import annotations

from mmap import PROT_READ, mmap

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.fault_tools import PAGE_BYTES, report

if TYPE_CHECKING:
    from .devices import Device
    from .driver_binding import Pin

#: by kind of device, a register that is not zero while the device works, and zero after a reset:
#: RCTL of a network card, CC of an NVMe controller (NVM Express Base 2.0, 3.1.4.5), the address of
#: a transfer of QEMU's edu
_REGISTERS = {"igb": 0x100, "e1000e": 0x100, "nvme": 0x14, "edu": 0x80}


def reset(device: Device, pin: Pin) -> None:
    """Let the kernel reset the function of a device that is at work.

    :raises OSError: it cannot, or the register cannot be read.
    """
    spec = device.spec
    path, at = f"/sys/bus/pci/devices/{spec.bdf}/resource0", _REGISTERS[spec.kind]
    before = _read(path, at)
    pin.reset()
    where = f"register {at:#x} of {spec.bdf}"
    device.tell("struck", **report("reset-device", "the device", where, before, _read(path, at)))


def _read(path: str, at: int) -> str:
    """Read a register of 32 bits through sysfs."""
    with (
        open(path, "rb") as file,
        mmap(file.fileno(), PAGE_BYTES, prot=PROT_READ) as area,
        memoryview(area) as view,
        view.cast("I") as words,
    ):
        return f"{words[at // 4]:#010x}"
