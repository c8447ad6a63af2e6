# SPDX-License-Identifier: Apache-2.0
"""iommu.translation: the units that translate the devices' addresses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from liveupdate.core.units import format_ns
from liveupdate.formats import amdvi_regs, qemu_trace
from liveupdate.formats.iommu import Translation
from liveupdate.formats.pci_config import COMMAND, COMMAND_MASTER
from liveupdate.formats.vtd.regs import GlobalStatus, RootPointer
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.context import Context, Finding
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
from liveupdate.model.iommu_samples import UnitSample

#: what leads to page tables
WITH_TABLES = (Translation.SECOND_STAGE, Translation.FIRST_STAGE, Translation.HOST)


def judge_translation(context: Context) -> Iterator[Finding]:
    """Require that translation never went off under a continuous device, and is on again for any
    other.
    """
    return judge_hop_devices(context, _judge_translation)


def _judge_translation(hop_devices: HopDevices) -> list[Finding]:
    samples = hop_devices.evidence.samples
    at = hop_devices.place(slots.SAMPLES)
    if not samples:
        return [at.error("no sample of the registers")]
    findings = list((_judge_enabled if hop_devices.is_continuous else _judge_stop)(hop_devices))
    for device in hop_devices.devices:
        if device.tier == CONTINUOUS:
            findings += _judge_entries(hop_devices, device)
    if findings:
        return findings
    if blind := find_blindness(hop_devices, is_sampled=True):
        return [blind]
    roots = sum(old.rtaddr != new.rtaddr for old, new in pairwise(samples))
    if hop_devices.is_continuous:
        said = f"on in all {say_rate(hop_devices)}; QEMU saw it off at no time"
    else:
        said = _say_stop(hop_devices)
    return [at.passed(f"{said}; root pointer replaced {roots} times", f"{len(samples)} samples")]


def _is_on(hop_devices: HopDevices, sample: UnitSample) -> bool:
    if hop_devices.watch.unit == AMD:
        return amdvi_regs.is_translating(sample.gsts)
    status = GlobalStatus(sample.gsts)
    return status.is_translating and status.has_root_pointer


def _judge_enabled(hop_devices: HopDevices) -> Iterator[Finding]:
    """Judge tier continuous: on in every sample and between them, in one mode."""
    samples = hop_devices.evidence.samples
    at = hop_devices.place(slots.SAMPLES)
    off = [each for each in samples if not _is_on(hop_devices, each)]
    dropped = [
        each
        for each in hop_devices.evidence.events
        if each.what == qemu_trace.TRANSLATION and each.value == 0
    ]
    modes = {RootPointer.decode(each.rtaddr).mode for each in samples}
    if off:
        yield at.failed(
            f"translation was off in {len(off)} of {len(samples)} samples, first at "
            f"{hop_devices.since_pause(off[0].host_ns)} (GSTS {off[0].gsts:#x})",
            observed=f"off in {len(off)} samples",
            expected="on in every sample",
        )
    elif dropped:
        yield hop_devices.place(slots.DEVICE_EVENTS).failed(
            f"translation was switched off {len(dropped)} times between samples, "
            f"first at {hop_devices.since_pause(dropped[0].host_ns)}",
            observed="enable 0 in QEMU's trace",
            expected="never off",
        )
    elif hop_devices.watch.unit != AMD and len(modes) > 1:
        yield at.failed(
            "the mode of the root table changed under running DMA",
            observed=f"modes {sorted(modes)}",
            expected="one mode",
        )


def _judge_entries(hop_devices: HopDevices, device: JudgedDevice) -> Iterator[Finding]:
    """Require that the device was attached to page tables in every sample."""
    at = hop_devices.place(slots.BINDINGS, device=device)
    rows = rows_of(hop_devices, device)
    if not rows:
        yield at.error("its entries were never sampled")
    good = [each.value for each in WITH_TABLES]
    bad = next((row for row in rows if row.fault or row.translation not in good), None)
    if bad is not None:
        yield at.failed(
            f"its entry did not lead to page tables at {hop_devices.since_pause(bad.host_ns)}: "
            f"{bad.fault or f'it was {bad.translation}'}",
            observed=bad.fault or bad.translation,
            expected="an entry with page tables in every sample",
        )


def _judge_stop(hop_devices: HopDevices) -> Iterator[Finding]:
    """Judge tier quiesce: on at both ends, and no device could do DMA while translation was off."""
    samples = hop_devices.evidence.samples
    for moment, sample in (("before", samples[0]), ("after", samples[-1])):
        if not _is_on(hop_devices, sample):
            yield hop_devices.place(slots.SAMPLES).failed(
                f"translation is off {moment} the update (GSTS {sample.gsts:#x})",
                observed=f"GSTS {sample.gsts:#x}",
                expected="translation on",
            )
            return
    for device in hop_devices.devices:
        if _is_master_when_off(hop_devices, device):
            yield hop_devices.place(slots.DEVICE_EVENTS, device=device).failed(
                "could still do DMA when translation went off",
                observed="bus master on",
                expected="bus master off before translation is",
            )


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
