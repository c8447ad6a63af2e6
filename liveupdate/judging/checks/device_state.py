# SPDX-License-Identifier: Apache-2.0
"""device.no-reset and device.config-space: the devices themselves, by QEMU's trace and the bus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from liveupdate.formats import qemu_trace
from liveupdate.formats.pci_config import (
    BRIDGE_CONTROL,
    BRIDGE_RESET,
    CAP_ADVANCED,
    CAP_EXPRESS,
    COMMAND,
    COMMAND_MASTER,
    EXPRESS_DEVICE_CONTROL,
    FUNCTION_RESET,
    diff_config,
)
from liveupdate.judging.check import CheckRow
from liveupdate.judging.checks.device import without_device
from liveupdate.judging.context import Context, Finding, Place, error_finding
from liveupdate.judging.hop_devices import (
    QUIESCE,
    HopDevices,
    JudgedDevice,
    find_blindness,
    find_spaces,
    judge_hop_devices,
)
from liveupdate.model import slots
from liveupdate.model.iommu_samples import DeviceEvent

#: kinds whose driver can reset them through a register; QEMU does not trace of which device
_SOFT_RESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {qemu_trace.NIC_RESET: ("igb", "e1000e"), qemu_trace.NVME_RESET: ("nvme",)}
)


def judge_no_reset(context: Context) -> Iterator[Finding]:
    """Require that no device that continues its DMA was reset, in any of the known ways."""
    return judge_hop_devices(
        context,
        lambda hop_devices: [_judge_resets(hop_devices, device) for device in hop_devices.devices],
    )


def _judge_resets(hop_devices: HopDevices, device: JudgedDevice) -> Finding:
    at = hop_devices.place(slots.DEVICE_EVENTS, device=device)
    spaces = find_spaces(hop_devices, device.found.function)
    express = None
    if isinstance(spaces, tuple):
        express = spaces[0].find_capability(CAP_EXPRESS)
    said = [
        (event, what)
        for event in hop_devices.evidence.events
        if (what := _name_reset(event, device, express)) is not None
    ]
    if device.tier == QUIESCE:
        return at.skipped(f"tier quiesce stops the device on purpose; {len(said)} resets")
    if said:
        event, what = said[0]
        return at.failed(
            f"{len(said)} resets, first {what} at {hop_devices.since_pause(event.host_ns)}",
            observed=what,
            expected="no reset",
        )
    blind = find_blindness(hop_devices, is_sampled=False)
    if blind is not None:
        return blind
    if isinstance(spaces, str):
        return error_finding(f"{at.where}: where a reset is asked for is not known: {spaces}")
    if spaces[0].find_capability(CAP_ADVANCED):
        return error_finding(f"{at.where}: it can be reset by a capability that is not watched")
    return at.passed(
        "not reset by function, bus, power state or register "
        f"({hop_devices.watch.trace_lines} lines of QEMU's trace)"
    )


def _name_reset(event: DeviceEvent, device: JudgedDevice, express: int | None) -> str | None:
    """Name the kind of reset an event is for a device; None: none."""
    if event.what == qemu_trace.RESET and event.note == device.kind:
        return f"reset of QEMU's {device.kind}"
    if event.what == qemu_trace.SOFT_RESET and device.kind in _SOFT_RESETS.get(event.note, ()):
        return "reset by its own register"
    if event.what == qemu_trace.POWER and event.value:
        is_above = event.where in device.found.bridges
        if is_above or event.where == device.found.function:
            return f"power state D{event.value} of {event.where}"
    if event.what == qemu_trace.CONFIG_WRITE:
        if (
            express is not None
            and event.where == device.found.function
            and _bits_at(event, express + EXPRESS_DEVICE_CONTROL) & FUNCTION_RESET
        ):
            return "function level reset"
        is_above = event.where in device.found.bridges
        if is_above and _bits_at(event, BRIDGE_CONTROL) & BRIDGE_RESET:
            return f"bus reset by {event.where}"
    return None


def _bits_at(event: DeviceEvent, offset: int) -> int:
    """Return the bits that a write put at ``offset``, as far as its value shows; its width is
    not traced.
    """
    shift = offset - event.offset
    return event.value >> 8 * shift if 0 <= shift < 4 else 0


def judge_config_space(context: Context) -> Iterator[Finding]:
    """Require that devices and the bridges above them have the same identity and place, and are
    bus masters.
    """
    return judge_hop_devices(
        context,
        lambda hop_devices: [
            _judge_function(hop_devices, device, function)
            for device in hop_devices.devices
            for function in (device.found.function, *device.found.bridges)
        ],
    )


def _judge_function(hop_devices: HopDevices, device: JudgedDevice, function: str) -> Finding:
    is_bridge = function != device.found.function
    what = "bridge above" if is_bridge else "function of"
    where = f"hop {hop_devices.hop}, {what} {device.name} ({function})"
    at = Place(where, (slots.CONFIGS.path(hop_devices.hop),))
    spaces = find_spaces(hop_devices, function)
    if isinstance(spaces, str):
        return at.error(spaces)
    before, after = spaces
    changes = diff_config(before, after)
    if changes:
        said = ", ".join(map(str, changes))
        return at.failed(
            f"changed over the update: {said}",
            observed=said,
            expected="the same identity, BARs, bus numbers, windows, and bus mastering",
        )
    if not after.is_master:
        return error_finding(f"{where}: was no bus master before the update: it could not do DMA")
    if device.tier == QUIESCE:
        return at.passed("as before; in between it was stopped")
    stops = [
        event
        for event in hop_devices.evidence.events
        if event.what == qemu_trace.CONFIG_WRITE
        and event.where == function
        and event.offset == COMMAND
        and not event.value & COMMAND_MASTER
    ]
    if stops:
        return replace(at, files=(slots.DEVICE_EVENTS.path(hop_devices.hop),)).failed(
            f"bus mastering was switched off {len(stops)} times, first at "
            f"{hop_devices.since_pause(stops[0].host_ns)}",
            observed=f"command {stops[0].value:#x}",
            expected="bus mastering on all the time",
        )
    return find_blindness(hop_devices, is_sampled=False) or at.passed(
        "identity, BARs, bus mastering as before, and never a master less"
    )


CHECKS = (
    CheckRow(id="device.no-reset", judge=judge_no_reset, skip=without_device),
    CheckRow(id="device.config-space", judge=judge_config_space, skip=without_device),
)
