# SPDX-License-Identifier: Apache-2.0
"""Devices that are passed through to a guest: its VMM has them, and its own drivers use them.

::

    start            bind vfio-pci, start the VMM with the device
    freeze           the guest is sent to sleep (S3): its drivers stop all DMA
                     --- kexec ---
    resume           bind vfio-pci, start a VMM with the same device, load, wake the guest up

QEMU saves a machine that has VFIO devices in mode ``cpr-reboot`` only while the guest sleeps
(hw/vfio/cpr.c): nothing of a device is saved then, and a guest expects its devices to have been
without power.
"""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.names import SpecError, check_name
from ..device.driver_binding import KINDS, Pin
from ..device.vfio import ACCESS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .guests import Guest

#: in the guest's own PCI hierarchy, clear of what ``build_argv`` puts there
_FIRST_SLOT = 0x8
DEVICES_MAX = 8
#: not "iommufd": the path of the devices' own links ends in that, and the name must be unique
_IOMMUFD = "iommufd0"


class Assigned:
    """One device of one guest. Validated, as it comes from the control host or a manifest."""

    def __init__(self, raw: object) -> None:
        """:raises SpecError: a field is wrong."""
        if not isinstance(raw, dict):
            raise SpecError("guest: a device must be an object")
        self.name = check_name(raw.get("name"))
        self.kind = str(raw.get("kind"))
        self.access = str(raw.get("access", ACCESS[0]))
        if self.kind not in KINDS or self.access not in ACCESS:
            raise SpecError(f"guest: no device of kind '{self.kind}' with access '{self.access}'")
        self.bdf = str(raw.get("bdf") or "")
        # becomes part of a path
        if not self.bdf or not set("0123456789abcdef:.").issuperset(self.bdf):
            raise SpecError(f"guest: a device's 'bdf' is {self.bdf!r}")

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON, for the manifest."""
        return dict(vars(self))

    @property
    def pin(self) -> Pin:
        """Return the device with its driver, to bind it to vfio-pci or give it back."""
        return Pin(self.bdf)

    def status(self) -> dict[str, object]:
        """Return its state, as :meth:`liveupdate.agent.device.devices.Device.status` does."""
        pin = self.pin
        return {
            "bdf": self.bdf,
            "driver": pin.driver,
            "keep": pin.keep_state(),
            "error": None,
            "account": None,
        }


def stop_guests(guests: Iterable[Guest], errors: tuple[type[Exception], ...]) -> dict[str, object]:
    """End the guests that have devices, and give the devices back: a VMM holds them while it runs.

    :param errors: exceptions that giving back may raise.
    :returns: for each device its driver, or what went wrong.
    """
    said: dict[str, object] = {}
    for guest in guests:
        if not guest.spec.devices:
            continue
        guest.error = guest.error or "it was ended, as its devices were given back"
        try:
            for name, driver in guest.discard().items():
                said[name] = {"driver": driver, "error": None}
        except errors as err:
            for each in guest.spec.devices:
                said[each.name] = {"driver": None, "error": str(err)}
    return said


def read_devices(raw: object) -> list[Assigned]:
    """Read the devices of a guest's spec.

    :raises SpecError: they are wrong.
    """
    if not isinstance(raw, list) or len(raw) > DEVICES_MAX:
        raise SpecError(f"guest: 'devices' must be a list of at most {DEVICES_MAX}")
    devices = [Assigned(each) for each in raw]
    if len({each.name for each in devices}) < len(devices):
        raise SpecError("guest: two devices have one name")
    return devices


def device_argv(devices: list[Assigned]) -> list[str]:
    """Return the part of a VMM's command line that gives it these devices."""
    # QEMU's help for 32-bit Windows has its option ROM writable or not as sleep and wake went, for
    # the guest's devices, too: their mappings would differ by that.
    argv = ["-global", "kvm-apic.vapic=off"]
    if any(each.access == "cdev" for each in devices):
        argv += ["-object", f"iommufd,id={_IOMMUFD}"]
    for number, each in enumerate(devices):
        # behind a port: a PCI Express device expects one
        port = f"port-{each.name}"
        slot = _FIRST_SLOT + number
        how = f",iommufd={_IOMMUFD}" if each.access == "cdev" else ""
        # fmt: off
        argv += [
            "-device", f"pcie-root-port,id={port},chassis={number + 1},addr={slot:#x}",
            "-device", f"vfio-pci,host={each.bdf},id=dev-{each.name},bus={port}{how}",
        ]
        # fmt: on
    return argv
