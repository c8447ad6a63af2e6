# SPDX-License-Identifier: Apache-2.0
"""Find devices in QEMU's answer to ``query-pci`` by the id they have on its command line.

Bus numbers are those that firmware or kernel have given. Format: PciInfo and PciDeviceInfo of
QEMU's ``qapi/pci.json``. The answer is not trusted: what is misshapen is passed over, and depth is
bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from liveupdate.formats.iommu import Requester

_MAX_DEPTH = 8
_MAX_DEVICES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class PciFunction:
    """A function and the bridges above it, the one next to the root first."""

    qdev_id: str
    address: Requester
    bridges: tuple[Requester, ...]


def list_functions(answer: object) -> tuple[PciFunction, ...]:
    """List every function of every bus."""
    found: list[PciFunction] = []
    for bus in _objects(answer):
        found.extend(_walk(bus.get("devices"), ()))
    return tuple(found)


def find_function(answer: object, qdev_id: str) -> PciFunction | None:
    """Find a device; function 0 if it has several."""
    return next((each for each in list_functions(answer) if each.qdev_id == qdev_id), None)


def find_bar(answer: object, qdev_id: str, number: int) -> int | None:
    """Return the address of a BAR that is memory; None: the device is not there, or the BAR has no
    address now.
    """
    waiting = [device for bus in _objects(answer) for device in _objects(bus.get("devices"))]
    for _ in range(_MAX_DEVICES):
        if not waiting:
            return None
        device = waiting.pop(0)
        bridge = device.get("pci_bridge")
        if isinstance(bridge, dict):
            waiting += _objects(bridge.get("devices"))
        if device.get("qdev_id") != qdev_id:
            continue
        for region in _objects(device.get("regions")):
            address = region.get("address")
            if (region.get("bar"), region.get("type")) == (number, "memory"):
                return address if isinstance(address, int) and address > 0 else None
    return None


def _walk(devices: object, above: tuple[Requester, ...]) -> Iterator[PciFunction]:
    for device in _objects(devices):
        place = [device.get(name) for name in ("bus", "slot", "function")]
        if not all(isinstance(number, int) for number in place):
            continue
        bus, slot, function = (number for number in place if isinstance(number, int))
        if not (0 <= bus < 256 and 0 <= slot < 32 and 0 <= function < 8):
            continue
        address = Requester(bus=bus, devfn=slot << 3 | function)
        yield PciFunction(qdev_id=str(device.get("qdev_id", "")), address=address, bridges=above)
        bridge = device.get("pci_bridge")
        if isinstance(bridge, dict) and len(above) < _MAX_DEPTH:
            yield from _walk(bridge.get("devices"), (*above, address))


def _objects(value: object) -> Iterator[dict[str, object]]:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield item
