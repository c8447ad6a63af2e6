# SPDX-License-Identifier: Apache-2.0
"""iommu.translation, iommu.mappings, iommu.faults: what translates the devices' addresses."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise

from liveupdate.core.units import format_ns, format_size
from liveupdate.formats import amdvi_regs, qemu_trace
from liveupdate.formats.iommu import (
    Binding,
    IommuFormatError,
    MappingSet,
    Requester,
    Translation,
    parse_bdf,
    unpack_runs,
)
from liveupdate.formats.pci_config import COMMAND, COMMAND_MASTER
from liveupdate.formats.vtd.regs import FaultStatus, GlobalStatus, decode_fault_records
from liveupdate.formats.vtd.tables import RootPointer
from liveupdate.judging.compare_iommu import ChangeKind, MappingDiff, diff_requesters
from liveupdate.judging.context import Context, Finding, failed, passed, unknown
from liveupdate.judging.guest_share import where_mapped
from liveupdate.judging.hop_devices import (
    CONTINUOUS,
    Kept,
    Scene,
    find_blindness,
    find_spaces,
    judge_scenes,
    say_rate,
)
from liveupdate.model import layout
from liveupdate.model.evidence import BindingSample, DeviceEvent, MappingFacts, UnitSample

AMD = "amd"
#: what leads to page tables
WITH_TABLES = (Translation.SECOND_STAGE, Translation.FIRST_STAGE, Translation.HOST)
MOMENTS = ("before", "after")
_WALKS = tuple((view, moment) for view in ("outside", "inside") for moment in MOMENTS)


def judge_translation(context: Context) -> list[Finding]:
    """Translation never went off under a device that goes on, and is on again for any other."""
    return judge_scenes(context, _judge_translation)


def _judge_translation(scene: Scene) -> list[Finding]:
    samples = scene.evidence.samples
    path = layout.iommu_file(scene.hop, "samples.jsonl")
    if not samples:
        return [unknown(f"hop {scene.hop}: no sample of the registers", evidence=(path,))]
    findings = _judge_enabled(scene) if scene.is_continuous else _judge_stop(scene)
    for device in scene.devices:
        if device.tier == CONTINUOUS:
            findings += _judge_entries(scene, device)
    if findings:
        return findings
    blind = find_blindness(scene, is_sampled=True)
    if blind is not None:
        return [blind]
    roots = sum(old.rtaddr != new.rtaddr for old, new in pairwise(samples))
    if scene.is_continuous:
        said = f"on in all {say_rate(scene)}; QEMU saw it off at no time"
    else:
        said = _say_stop(scene)
    return [
        passed(
            f"hop {scene.hop}: {said}; root pointer replaced {roots} times",
            observed=f"{len(samples)} samples",
            evidence=(path,),
        )
    ]


def _is_on(scene: Scene, sample: UnitSample) -> bool:
    if scene.watch.unit == AMD:
        return amdvi_regs.Control(sample.gsts).is_translating
    status = GlobalStatus(sample.gsts)
    return status.is_translating and status.has_root_pointer


def _is_clear(scene: Scene, sample: UnitSample) -> bool:
    if scene.watch.unit == AMD:
        return amdvi_regs.Status(sample.fsts).is_clear
    return FaultStatus(sample.fsts).is_clear


def _switches(scene: Scene) -> list[DeviceEvent]:
    return [each for each in scene.evidence.events if each.what == qemu_trace.TRANSLATION]


def _judge_enabled(scene: Scene) -> list[Finding]:
    where, samples = f"hop {scene.hop}", scene.evidence.samples
    path = layout.iommu_file(scene.hop, "samples.jsonl")
    off = [each for each in samples if not _is_on(scene, each)]
    if off:
        return [
            failed(
                f"{where}: translation was off in {len(off)} of {len(samples)} samples, first at "
                f"{scene.since_pause(off[0].host_ns)} (GSTS {off[0].gsts:#x})",
                observed=f"off in {len(off)} samples",
                expected="on in every sample",
                evidence=(path,),
            )
        ]
    dropped = [each for each in _switches(scene) if each.value == 0]
    if dropped:
        return [
            failed(
                f"{where}: translation was switched off {len(dropped)} times between samples, "
                f"first at {scene.since_pause(dropped[0].host_ns)}",
                observed="enable 0 in QEMU's trace",
                expected="never off",
                evidence=(layout.iommu_file(scene.hop, "events.jsonl"),),
            )
        ]
    modes = {RootPointer.decode(each.rtaddr).mode for each in samples}
    if scene.watch.unit != AMD and len(modes) > 1:
        return [
            failed(
                f"{where}: the mode of the root table changed under running DMA",
                observed=f"modes {sorted(modes)}",
                expected="one mode",
                evidence=(path,),
            )
        ]
    return []


def _judge_entries(scene: Scene, device: Kept) -> list[Finding]:
    """The device was attached to page tables in every sample."""
    where = f"hop {scene.hop}, {device.name} ({device.found.function})"
    path = layout.iommu_file(scene.hop, "bindings.jsonl")
    rows = _rows_of(scene, device)
    if not rows:
        return [unknown(f"{where}: its entries were never looked at", evidence=(path,))]
    good = [each.value for each in WITH_TABLES]
    for row in rows:
        if row.fault or row.translation not in good:
            what = row.fault or f"it was {row.translation}"
            return [
                failed(
                    f"{where}: its entry did not lead to page tables at "
                    f"{scene.since_pause(row.host_ns)}: {what}",
                    observed=row.fault or row.translation,
                    expected="an entry with page tables in every sample",
                    evidence=(path,),
                )
            ]
    return []


def _rows_of(scene: Scene, device: Kept) -> list[BindingSample]:
    function = device.found.function
    return [each for each in scene.evidence.bindings if each.requester.split()[0] == function]


def _judge_stop(scene: Scene) -> list[Finding]:
    """Tier quiesce: on at both ends, and no device could do DMA while it was off."""
    where, samples = f"hop {scene.hop}", scene.evidence.samples
    path = layout.iommu_file(scene.hop, "samples.jsonl")
    for moment, sample in (("before", samples[0]), ("after", samples[-1])):
        if not _is_on(scene, sample):
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
            evidence=(layout.iommu_file(scene.hop, "events.jsonl"),),
        )
        for device in scene.devices
        if _is_master_when_off(scene, device)
    ]


def _is_master_when_off(scene: Scene, device: Kept) -> bool:
    """Follow QEMU's trace, whose lines are in the order in which things happened."""
    spaces = find_spaces(scene, device.found.function)
    is_master = isinstance(spaces, str) or spaces[0].is_master
    is_awake = True
    for event in scene.evidence.events:
        if event.what == qemu_trace.TRANSLATION and event.value == 0 and is_master and is_awake:
            return True
        if event.where != device.found.function:
            continue
        if event.what == qemu_trace.CONFIG_WRITE and event.offset == COMMAND:
            is_master = bool(event.value & COMMAND_MASTER)
        elif event.what == qemu_trace.POWER:
            is_awake = event.value == 0
    return False


def _say_stop(scene: Scene) -> str:
    samples = scene.evidence.samples
    off = [each for each in samples if not _is_on(scene, each)]
    if not off:
        return f"on in all {say_rate(scene)}, although tier quiesce does not ask for it"
    last = max(each.host_ns for each in off)
    back = next(each.host_ns for each in samples if each.host_ns > last)
    return (
        f"tier quiesce: DMA was stopped; translation off for {format_ns(back - off[0].host_ns)}, "
        f"bus masters off before it; {say_rate(scene)}"
    )


# --- mappings


def judge_mappings(context: Context) -> list[Finding]:
    """Every watched device reaches the same memory as before, and both oracles say so."""
    return judge_scenes(
        context, lambda scene: [_judge_device(scene, device) for device in scene.devices]
    )


def _judge_device(scene: Scene, device: Kept) -> Finding:
    where = f"hop {scene.hop}, {device.name} ({device.found.function})"
    listing = layout.iommu_file(scene.hop, "mappings.jsonl")
    walks: dict[tuple[str, str], tuple[MappingSet, ...]] = {}
    files: list[str] = []
    altered: list[str] = []
    for facts in scene.evidence.mappings:
        if facts.requester.split()[0] != device.found.function:
            continue
        path = layout.runs(scene.hop, facts.view, facts.moment, facts.requester)
        files.append(path)
        is_altered = hashlib.sha256(facts.runs).hexdigest() != facts.artifact.sha256
        altered += [path] * is_altered
        try:
            found = _to_set(facts)
        except IommuFormatError as error:
            return (failed if is_altered else unknown)(
                f"{where}: {path} holds no mappings{' (evidence altered)' * is_altered}: {error}",
                evidence=(path,),
            )
        if facts.faults:
            return _judge_faulty(where, facts, path)
        key = facts.view, facts.moment
        walks[key] = (*walks.get(key, ()), found)
    missing = next((key for key in _WALKS if key not in walks), None)
    if missing is not None and missing[0] == "outside":
        return _say_missing(where, missing, listing)
    alteration = f" (or evidence altered: {', '.join(altered)})" if altered else ""
    both = walks["outside", "before"], walks["outside", "after"]
    if device.share is None:
        said = _say_difference(*both, is_exact=False)
    else:
        # What a VMM has beside its guest's memory, such as the firmware, is its own, and new.
        said = _say_difference(*device.share.guests(*both), is_exact=False)
        said = said or _say_difference(*device.share.others(*both), is_exact=False)
    if said:
        return failed(
            f"{where}: mappings changed over the update: {said}{alteration}",
            observed=said,
            expected="the same mappings",
            evidence=tuple(files),
        )
    if missing is not None:
        return _say_missing(where, missing, listing)
    return _compare_views(scene, device, where, walks, tuple(files), altered)


def _say_missing(where: str, walk: tuple[str, str], listing: str) -> Finding:
    view, moment = walk
    return unknown(
        f"{where}: no mappings as seen from {view}, {moment} the update", evidence=(listing,)
    )


def _to_set(facts: MappingFacts) -> MappingSet:
    """Put a mapping set together again.

    :raises IommuFormatError: its runs or its names make no sense.
    """
    return MappingSet(
        binding=Binding(
            requester=_parse_requester(facts.requester),
            translation=_parse_translation(facts.translation),
            domain_id=facts.domain_id,
            top=facts.top,
            levels=facts.levels,
            access=facts.access,
        ),
        runs=unpack_runs(facts.runs),
    )


def _parse_requester(text: str) -> Requester:
    bdf, _, pasid = text.partition(" pasid ")
    try:
        return parse_bdf(bdf, pasid=int(pasid, 16) if pasid else None)
    except ValueError as error:
        raise IommuFormatError(f"'{text}' is no requester", where="requester") from error


def _parse_translation(text: str) -> Translation:
    try:
        return Translation(text)
    except ValueError as error:
        raise IommuFormatError(f"'{text}' is no translation", where="translation") from error


def _judge_faulty(where: str, facts: MappingFacts, path: str) -> Finding:
    """Tables that cannot be followed: before the update we cannot tell, after it they are lost."""
    said = (
        f"{where}: tables cannot be followed {facts.moment} the update ({facts.view}): "
        f"{facts.faults[0]}"
    )
    if facts.moment == "after" and facts.view == "outside":
        return failed(said, observed=facts.faults[0], expected="whole tables", evidence=(path,))
    return unknown(said, evidence=(path,))


def _compare_views(
    scene: Scene,
    device: Kept,
    where: str,
    walks: dict[tuple[str, str], tuple[MappingSet, ...]],
    files: tuple[str, ...],
    altered: list[str],
) -> Finding:
    alteration = f" (or evidence altered: {', '.join(altered)})" if altered else ""
    before = walks["outside", "before"]
    for moment in MOMENTS:
        inside, outside = walks["inside", moment], walks["outside", moment]
        # the view inside is the driver's own with an AMD unit, and knows no tables; of a guest it
        # is where the guest's memory lies
        if scene.watch.unit == AMD and device.share is not None:
            outside = device.share.guests_at(moment, outside)
            inside = where_mapped(inside, outside)
        said = _say_difference(inside, outside, is_exact=scene.watch.unit != AMD)
        if said:
            return failed(
                f"{where}: {moment} the update the kernel says otherwise than its tables: "
                f"{said}{alteration}",
                observed=said,
                expected="inside = outside",
                evidence=files,
            )
    if altered:
        return unknown(f"{where}: evidence altered: {', '.join(altered)}", evidence=files)
    mapped = sum(each.mapped_bytes for each in before)
    if not mapped:
        return unknown(f"{where}: nothing was mapped, so nothing could be preserved")
    tampered = _find_tampering(scene, device)
    if device.tier == CONTINUOUS and tampered is not None:
        return replace(tampered, reason=f"{where}: {tampered.reason}")
    blind = find_blindness(scene, is_sampled=True) if device.tier == CONTINUOUS else None
    if blind is not None:
        return blind
    runs = sum(len(each.runs) for each in before)
    tables = [each.top for each in _rows_of(scene, device) if each.top]
    replaced = sum(old != new for old, new in pairwise(tables))
    beside = ""
    if device.share is not None:
        guests, _after = device.share.guests(before, ())
        own = sum(each.mapped_bytes for each in guests)
        if not own:
            return unknown(f"{where}: nothing of {device.share.guest}'s memory was mapped")
        rest = format_size(mapped - own)
        beside = f"; {rest} beside it, the VMM's firmware and registers, at the same IOVAs"
        mapped, runs = own, sum(len(each.runs) for each in guests)
    return passed(
        f"{where}: {format_size(mapped)} in {runs} runs reach the same memory before and after"
        f"{beside}, inside = outside; tables replaced {replaced} times",
        observed=f"{runs} runs equal",
        evidence=files,
    )


def _say_difference(
    first: tuple[MappingSet, ...], second: tuple[MappingSet, ...], *, is_exact: bool
) -> str:
    """Say what differs, or nothing."""
    diff = diff_requesters(first, second)
    gone = [f"{each} is gone" for each in diff.lost] + [f"{each} is new" for each in diff.added]
    if gone:
        return gone[0]
    for both in diff.both:
        if not (both.is_identical if is_exact else both.is_same_translation):
            return _say_diff(both)
    return ""


def _say_diff(diff: MappingDiff) -> str:
    said = [f"{each.field} {each.before} -> {each.after}" for each in diff.bindings]
    counts = ", ".join(
        f"{format_size(diff.bytes_of(kind))} {kind}" for kind in ChangeKind if diff.bytes_of(kind)
    )
    if diff.changes:
        said = [each for each in said if each.startswith("translation ")]
        said += [f"{counts}; first: {diff.changes[0]}"]
    return "; ".join(said)


def _find_tampering(scene: Scene, device: Kept) -> Finding | None:
    """Page tables that changed while the device used them, whoever did it."""
    for row in scene.evidence.tables:
        if row.requester.split()[0] == device.found.function and row.pages:
            return failed(
                f"page tables in use changed at {scene.since_pause(row.host_ns)}: {row.first}",
                observed=f"{row.pages} tables changed, first {row.first}",
                expected="page tables untouched while they are in use",
                evidence=(layout.iommu_file(scene.hop, "tables.jsonl"),),
            )
    return None


# --- faults


def judge_faults(context: Context) -> list[Finding]:
    """The IOMMU refused no request, by its registers and by QEMU's trace."""
    return judge_scenes(context, _judge_faults)


def _judge_faults(scene: Scene) -> list[Finding]:
    where, samples = f"hop {scene.hop}", scene.evidence.samples
    paths = tuple(layout.iommu_file(scene.hop, name) for name in ("samples.jsonl", "events.jsonl"))
    if not samples:
        return [unknown(f"{where}: no sample of the registers", evidence=paths)]
    events = [each for each in scene.evidence.events if each.what == qemu_trace.FAULT]
    if events:
        first = events[0]
        return [
            failed(
                f"{where}: {len(events)} requests were refused, first {first.where} {first.note} "
                f"{first.value:#x} (reason {first.offset:#x}) at "
                f"{scene.since_pause(first.host_ns)}",
                observed=f"{len(events)} faults",
                expected="0 faults",
                evidence=paths,
            )
        ]
    pending = [each for each in samples if not _is_clear(scene, each)]
    if pending and pending[0] is samples[0]:
        return [
            unknown(
                f"{where}: a fault was pending before the update: {_say_pending(pending[0])}",
                evidence=paths,
            )
        ]
    if pending:
        said = _say_pending(pending[0])
        return [
            failed(
                f"{where}: fault registers set in {len(pending)} samples, first at "
                f"{scene.since_pause(pending[0].host_ns)}: {said}",
                observed=said,
                expected="FSTS 0",
                evidence=paths,
            )
        ]
    # fault bits stay until they are cleared, and the trace has every fault
    blind = find_blindness(scene, is_sampled=False)
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
