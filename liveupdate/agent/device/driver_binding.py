# SPDX-License-Identifier: Apache-2.0
"""Takes a PCI device from its driver for vfio-pci, and gives it back.

Paths: Documentation/ABI/testing/sysfs-bus-pci of Linux; ``liveupdate_keep_dma`` is from the series
in guest-images/kernel/patches.
"""

from __future__ import annotations

import os

from ..base.fast_stdlib import read_text, write_text

#: vendor and device IDs
KINDS = {
    "igb": ("0x8086", "0x10c9"),
    "e1000e": ("0x8086", "0x10d3"),
    "edu": ("0x1234", "0x11e8"),
    # QEMU's controller, whose vendor is Red Hat
    "nvme": ("0x1b36", "0x0010"),
}
VFIO = "vfio-pci"
_KEEP = "liveupdate_keep_dma"


class PinError(Exception):
    """A device that cannot be taken, with the reason."""


def find(kind: str, taken: set[str], sysfs: str = "/sys") -> str:
    """Return the address of the first free device of a kind.

    :raises PinError: there is none.
    """
    wanted = KINDS[kind]
    bus = f"{sysfs}/bus/pci/devices"
    for bdf in sorted(os.listdir(bus)):
        ids = (read_text(f"{bus}/{bdf}/vendor"), read_text(f"{bus}/{bdf}/device"))
        if ids == wanted and bdf not in taken:
            return bdf
    raise PinError(f"no {kind} ({':'.join(wanted)}) that is free, {sorted(taken)} are taken")


class Pin:
    """One device and its driver."""

    def __init__(self, bdf: str, sysfs: str = "/sys") -> None:
        self.bdf = bdf
        self._sysfs = sysfs
        self._path = f"{sysfs}/bus/pci/devices/{bdf}"

    @property
    def driver(self) -> str | None:
        """Name of the driver it is bound to."""
        try:
            return os.readlink(f"{self._path}/driver").rpartition("/")[2]
        except FileNotFoundError:
            return None

    @property
    def group(self) -> str:
        """Number of its IOMMU group.

        :raises PinError: it has none, or is not alone in it: opening a group takes every device in
            it from its driver.
        """
        try:
            link = os.readlink(f"{self._path}/iommu_group")
        except FileNotFoundError:
            what = "is behind no IOMMU" if os.path.exists(self._path) else "is not there"
            raise PinError(f"device {self.bdf} {what}") from None
        members = sorted(os.listdir(f"{self._path}/iommu_group/devices"))
        if members != [self.bdf]:
            others = ", ".join(member for member in members if member != self.bdf)
            raise PinError(f"device {self.bdf} shares its IOMMU group with {others}")
        return link.rpartition("/")[2]

    @property
    def cdev(self) -> str:
        """Path of its VFIO character device.

        :raises PinError: it has none (no CONFIG_VFIO_DEVICE_CDEV).
        """
        try:
            names = os.listdir(f"{self._path}/vfio-dev")
        except FileNotFoundError:
            names = []
        if len(names) != 1:
            raise PinError(f"device {self.bdf} has no VFIO character device")
        return f"/dev/vfio/devices/{names[0]}"

    def take(self) -> str:
        """Bind it to vfio-pci; return the number of its group.

        :raises PinError: it cannot be taken; it has its driver again then.
        """
        group = self.group
        self._bind(VFIO)
        if self.driver != VFIO:
            found = self.driver
            self.give_back()
            raise PinError(f"device {self.bdf} is bound to {found or 'nothing'}, not to {VFIO}")
        return group

    def give_back(self) -> str | None:
        """Let the kernel choose a driver again; return its name."""
        self._bind("\n")
        return self.driver

    def _bind(self, override: str) -> None:
        self._write("driver_override", override)
        driver = self.driver
        if driver is not None and driver != override:
            self._write("driver/unbind", self.bdf)
        if self.driver is None:
            write_text(f"{self._sysfs}/bus/pci/drivers_probe", self.bdf)

    # --- kept DMA

    def keep_state(self) -> str | None:
        """Return what becomes of its DMA; None: this kernel cannot keep it."""
        try:
            return read_text(f"{self._path}/{_KEEP}")
        except FileNotFoundError:
            return None

    def set_keep(self, word: str) -> None:
        """Write keep, none, adopt or discard.

        :raises PinError: the kernel refuses, and its log has the reason.
        """
        try:
            self._write(_KEEP, word)
        except FileNotFoundError:
            raise PinError(f"this kernel has no {_KEEP}: it cannot keep DMA running") from None
        except OSError as err:
            raise PinError(f"device {self.bdf}: '{word}' refused: {err.strerror}") from None

    def reset(self) -> None:
        """Let the kernel reset the function, even if it is in use."""
        self._write("reset", "1")

    def _write(self, name: str, value: str) -> None:
        write_text(f"{self._path}/{name}", value)
