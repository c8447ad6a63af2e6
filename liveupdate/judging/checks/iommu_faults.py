# SPDX-License-Identifier: Apache-2.0
"""iommu.faults: the IOMMU refused no request."""

from __future__ import annotations

from collections.abc import Iterator

from liveupdate.formats import amdvi_regs, qemu_trace
from liveupdate.formats.vtd import regs
from liveupdate.judging.check import CheckRow
from liveupdate.judging.checks.translation import without_device
from liveupdate.judging.context import Context, Finding
from liveupdate.judging.hop_devices import AMD, HopDevices, find_blindness, judge_hop_devices
from liveupdate.model import slots
from liveupdate.model.iommu_samples import UnitSample


def judge_faults(context: Context) -> Iterator[Finding]:
    """Require that the IOMMU refused no request, by its registers and by QEMU's trace."""
    return judge_hop_devices(context, lambda hop_devices: [_judge_faults(hop_devices)])


def _judge_faults(hop_devices: HopDevices) -> Finding:
    samples = hop_devices.evidence.samples
    at = hop_devices.place(slots.SAMPLES, slots.DEVICE_EVENTS)
    if not samples:
        return at.error("no sample of the registers")
    events = [each for each in hop_devices.evidence.events if each.what == qemu_trace.FAULT]
    if events:
        first = events[0]
        return at.failed(
            f"{len(events)} requests were refused, first {first.where} {first.note} "
            f"{first.value:#x} (reason {first.offset:#x}) at "
            f"{hop_devices.since_pause(first.host_ns)}",
            observed=f"{len(events)} faults",
            expected="0 faults",
        )
    pending = [each for each in samples if not _is_clear(hop_devices, each)]
    if pending and pending[0] is samples[0]:
        return at.error(f"a fault was pending before the update: {_say_pending(pending[0])}")
    if pending:
        said = _say_pending(pending[0])
        return at.failed(
            f"fault registers set in {len(pending)} samples, first at "
            f"{hop_devices.since_pause(pending[0].host_ns)}: {said}",
            observed=said,
            expected="FSTS 0",
        )
    # fault bits stay until they are cleared, and the trace has every fault
    return find_blindness(hop_devices, is_sampled=False) or at.passed(
        f"none in {len(samples)} samples of FSTS, none in QEMU's trace", "0 faults"
    )


def _say_pending(sample: UnitSample) -> str:
    try:
        records = regs.decode_fault_records(bytes.fromhex(sample.fault_records))
    except ValueError:
        records = ()
    said = "; ".join(str(each) for each in records)
    return f"FSTS {sample.fsts:#x}{': ' + said if said else ''}"


def _is_clear(hop_devices: HopDevices, sample: UnitSample) -> bool:
    if hop_devices.watch.unit == AMD:
        return amdvi_regs.is_clear(sample.fsts)
    return regs.is_clear(sample.fsts)


CHECKS = (CheckRow(id="iommu.faults", judge=judge_faults, skip=without_device),)
