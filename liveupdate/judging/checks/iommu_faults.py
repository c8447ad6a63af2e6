# SPDX-License-Identifier: Apache-2.0
"""iommu.faults: the IOMMU refused no request."""

from __future__ import annotations

from liveupdate.formats import amdvi_regs, qemu_trace
from liveupdate.formats.vtd.regs import FaultStatus, decode_fault_records
from liveupdate.judging.check import CheckRow
from liveupdate.judging.checks.translation import without_device
from liveupdate.judging.context import Context, Finding, error_finding, failed, passed
from liveupdate.judging.hop_devices import (
    AMD,
    HopDevices,
    find_blindness,
    judge_hop_devices,
)
from liveupdate.model import slots
from liveupdate.model.iommu_samples import UnitSample


def judge_faults(context: Context) -> list[Finding]:
    """Require that the IOMMU refused no request, by its registers and by QEMU's trace."""
    return judge_hop_devices(context, _judge_faults)


def _judge_faults(hop_devices: HopDevices) -> list[Finding]:
    where, samples = f"hop {hop_devices.hop}", hop_devices.evidence.samples
    paths = tuple(slot.path(hop_devices.hop) for slot in (slots.SAMPLES, slots.DEVICE_EVENTS))
    if not samples:
        return [error_finding(f"{where}: no sample of the registers", evidence=paths)]
    events = [each for each in hop_devices.evidence.events if each.what == qemu_trace.FAULT]
    if events:
        first = events[0]
        return [
            failed(
                f"{where}: {len(events)} requests were refused, first {first.where} {first.note} "
                f"{first.value:#x} (reason {first.offset:#x}) at "
                f"{hop_devices.since_pause(first.host_ns)}",
                observed=f"{len(events)} faults",
                expected="0 faults",
                evidence=paths,
            )
        ]
    pending = [each for each in samples if not _is_clear(hop_devices, each)]
    if pending and pending[0] is samples[0]:
        return [
            error_finding(
                f"{where}: a fault was pending before the update: {_say_pending(pending[0])}",
                evidence=paths,
            )
        ]
    if pending:
        said = _say_pending(pending[0])
        return [
            failed(
                f"{where}: fault registers set in {len(pending)} samples, first at "
                f"{hop_devices.since_pause(pending[0].host_ns)}: {said}",
                observed=said,
                expected="FSTS 0",
                evidence=paths,
            )
        ]
    # fault bits stay until they are cleared, and the trace has every fault
    blind = find_blindness(hop_devices, is_sampled=False)
    if blind is not None:
        return [blind]
    return [
        passed(
            f"{where}: none in {len(samples)} samples of FSTS, none in QEMU's trace",
            observed="0 faults",
            evidence=paths,
        )
    ]


def _say_pending(sample: UnitSample) -> str:
    try:
        records = decode_fault_records(bytes.fromhex(sample.fault_records))
    except ValueError:
        records = ()
    said = "; ".join(str(each) for each in records)
    return f"FSTS {sample.fsts:#x}{': ' + said if said else ''}"


def _is_clear(hop_devices: HopDevices, sample: UnitSample) -> bool:
    if hop_devices.watch.unit == AMD:
        return amdvi_regs.Status(sample.fsts).is_clear
    return FaultStatus(sample.fsts).is_clear


CHECKS = (CheckRow(id="iommu.faults", judge=judge_faults, skip=without_device),)
