# SPDX-License-Identifier: Apache-2.0
"""iommu.translation: the units that translate the devices' addresses."""

from __future__ import annotations

from itertools import pairwise

from liveupdate.core.units import format_ns
from liveupdate.formats import amdvi_regs, qemu_trace
from liveupdate.formats.iommu import (
    Translation,
)
from liveupdate.formats.pci_config import COMMAND, COMMAND_MASTER
from liveupdate.formats.vtd.regs import GlobalStatus
from liveupdate.formats.vtd.tables import RootPointer
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.context import Context, Finding, error_finding, failed, passed
from liveupdate.judging.hop_devices import (
    AMD,
    CONTINUOUS,
    HopDevices,
    JudgedDevice,
    find_blindness,
    find_spaces,
    judge_hop_devices,
    rows_of,
    say_rate,
)
from liveupdate.model import slots
from liveupdate.model.iommu_samples import DeviceEvent, UnitSample

#: what leads to page tables
WITH_TABLES = (Translation.SECOND_STAGE, Translation.FIRST_STAGE, Translation.HOST)


def judge_translation(context: Context) -> list[Finding]:
    """Require that translation never went off under a continuous device, and is on again for any
    other.
    """
    return judge_hop_devices(context, _judge_translation)


def _judge_translation(hop_devices: HopDevices) -> list[Finding]:
    samples = hop_devices.evidence.samples
    path = slots.SAMPLES.path(hop_devices.hop)
    if not samples:
        return [
            error_finding(f"hop {hop_devices.hop}: no sample of the registers", evidence=(path,))
        ]
    findings = (
        _judge_enabled(hop_devices) if hop_devices.is_continuous else _judge_stop(hop_devices)
    )
    for device in hop_devices.devices:
        if device.tier == CONTINUOUS:
            findings += _judge_entries(hop_devices, device)
    if findings:
        return findings
    blind = find_blindness(hop_devices, is_sampled=True)
    if blind is not None:
        return [blind]
    roots = sum(old.rtaddr != new.rtaddr for old, new in pairwise(samples))
    if hop_devices.is_continuous:
        said = f"on in all {say_rate(hop_devices)}; QEMU saw it off at no time"
    else:
        said = _say_stop(hop_devices)
    return [
        passed(
            f"hop {hop_devices.hop}: {said}; root pointer replaced {roots} times",
            observed=f"{len(samples)} samples",
            evidence=(path,),
        )
    ]


def _is_on(hop_devices: HopDevices, sample: UnitSample) -> bool:
    if hop_devices.watch.unit == AMD:
        return amdvi_regs.Control(sample.gsts).is_translating
    status = GlobalStatus(sample.gsts)
    return status.is_translating and status.has_root_pointer


def _switches(hop_devices: HopDevices) -> list[DeviceEvent]:
    return [each for each in hop_devices.evidence.events if each.what == qemu_trace.TRANSLATION]


def _judge_enabled(hop_devices: HopDevices) -> list[Finding]:
    where, samples = f"hop {hop_devices.hop}", hop_devices.evidence.samples
    path = slots.SAMPLES.path(hop_devices.hop)
    off = [each for each in samples if not _is_on(hop_devices, each)]
    if off:
        return [
            failed(
                f"{where}: translation was off in {len(off)} of {len(samples)} samples, first at "
                f"{hop_devices.since_pause(off[0].host_ns)} (GSTS {off[0].gsts:#x})",
                observed=f"off in {len(off)} samples",
                expected="on in every sample",
                evidence=(path,),
            )
        ]
    dropped = [each for each in _switches(hop_devices) if each.value == 0]
    if dropped:
        return [
            failed(
                f"{where}: translation was switched off {len(dropped)} times between samples, "
                f"first at {hop_devices.since_pause(dropped[0].host_ns)}",
                observed="enable 0 in QEMU's trace",
                expected="never off",
                evidence=(slots.DEVICE_EVENTS.path(hop_devices.hop),),
            )
        ]
    modes = {RootPointer.decode(each.rtaddr).mode for each in samples}
    if hop_devices.watch.unit != AMD and len(modes) > 1:
        return [
            failed(
                f"{where}: the mode of the root table changed under running DMA",
                observed=f"modes {sorted(modes)}",
                expected="one mode",
                evidence=(path,),
            )
        ]
    return []


def _judge_entries(hop_devices: HopDevices, device: JudgedDevice) -> list[Finding]:
    """Require that the device was attached to page tables in every sample."""
    where = f"hop {hop_devices.hop}, {device.name} ({device.found.function})"
    path = slots.BINDINGS.path(hop_devices.hop)
    rows = rows_of(hop_devices, device)
    if not rows:
        return [error_finding(f"{where}: its entries were never sampled", evidence=(path,))]
    good = [each.value for each in WITH_TABLES]
    for row in rows:
        if row.fault or row.translation not in good:
            what = row.fault or f"it was {row.translation}"
            return [
                failed(
                    f"{where}: its entry did not lead to page tables at "
                    f"{hop_devices.since_pause(row.host_ns)}: {what}",
                    observed=row.fault or row.translation,
                    expected="an entry with page tables in every sample",
                    evidence=(path,),
                )
            ]
    return []


def _judge_stop(hop_devices: HopDevices) -> list[Finding]:
    """Judge tier quiesce: on at both ends, and no device could do DMA while translation was off."""
    where, samples = f"hop {hop_devices.hop}", hop_devices.evidence.samples
    path = slots.SAMPLES.path(hop_devices.hop)
    for moment, sample in (("before", samples[0]), ("after", samples[-1])):
        if not _is_on(hop_devices, sample):
            return [
                failed(
                    f"{where}: translation is off {moment} the update (GSTS {sample.gsts:#x})",
                    observed=f"GSTS {sample.gsts:#x}",
                    expected="translation on",
                    evidence=(path,),
                )
            ]
    return [
        failed(
            f"{where}, {device.name} ({device.found.function}): could still do DMA when "
            "translation went off",
            observed="bus master on",
            expected="bus master off before translation is",
            evidence=(slots.DEVICE_EVENTS.path(hop_devices.hop),),
        )
        for device in hop_devices.devices
        if _is_master_when_off(hop_devices, device)
    ]


def _is_master_when_off(hop_devices: HopDevices, device: JudgedDevice) -> bool:
    """Follow QEMU's trace, whose lines are in the order in which things happened."""
    spaces = find_spaces(hop_devices, device.found.function)
    is_master = isinstance(spaces, str) or spaces[0].is_master
    is_awake = True
    for event in hop_devices.evidence.events:
        if event.what == qemu_trace.TRANSLATION and event.value == 0 and is_master and is_awake:
            return True
        if event.where != device.found.function:
            continue
        if event.what == qemu_trace.CONFIG_WRITE and event.offset == COMMAND:
            is_master = bool(event.value & COMMAND_MASTER)
        elif event.what == qemu_trace.POWER:
            is_awake = event.value == 0
    return False


def _say_stop(hop_devices: HopDevices) -> str:
    samples = hop_devices.evidence.samples
    off = [each for each in samples if not _is_on(hop_devices, each)]
    if not off:
        return f"on in all {say_rate(hop_devices)}, although tier quiesce does not ask for it"
    last = max(each.host_ns for each in off)
    back = next(each.host_ns for each in samples if each.host_ns > last)
    return (
        f"tier quiesce: DMA was stopped; translation off for {format_ns(back - off[0].host_ns)}, "
        f"bus masters off before it; {say_rate(hop_devices)}"
    )


def without_device(asked: Asked) -> str | None:
    """Return why there is no translation to judge."""
    if asked.scenario.devices:
        return None
    return "the scenario has no device whose translation is to be preserved"


CHECKS = (CheckRow(id="iommu.translation", judge=judge_translation, skip=without_device),)
