# SPDX-License-Identifier: Apache-2.0
"""iommu.mappings: the same addresses reach the same memory, from inside and from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from liveupdate.core.units import format_size
from liveupdate.formats.iommu import (
    Binding,
    IommuFormatError,
    MappingSet,
    Requester,
    Translation,
    parse_bdf,
    unpack_runs,
)
from liveupdate.judging.check import CheckRow
from liveupdate.judging.checks.translation import without_device
from liveupdate.judging.compare_iommu import ChangeKind, MappingDiff, diff_requesters
from liveupdate.judging.context import Context, Finding, Place, error_finding, say_altered
from liveupdate.judging.guest_share import where_mapped
from liveupdate.judging.hop_devices import (
    AMD,
    CONTINUOUS,
    HopDevices,
    JudgedDevice,
    find_blindness,
    judge_hop_devices,
    rows_of,
)
from liveupdate.model import slots
from liveupdate.model.evidence import MappingFacts

MOMENTS = ("before", "after")
_WALKS = tuple((view, moment) for view in ("outside", "inside") for moment in MOMENTS)


def judge_mappings(context: Context) -> Iterator[Finding]:
    """Every watched device reaches the same memory as before, and both oracles say so."""
    return judge_hop_devices(
        context,
        lambda hop_devices: [_judge_device(hop_devices, device) for device in hop_devices.devices],
    )


def _judge_device(hop_devices: HopDevices, device: JudgedDevice) -> Finding:
    listing = hop_devices.place(slots.MAPPINGS, device=device)
    walks: dict[tuple[str, str], tuple[MappingSet, ...]] = {}
    files: list[str] = []
    altered: list[str] = []
    for facts in hop_devices.evidence.mappings:
        if facts.requester.split()[0] != device.found.function:
            continue
        path = slots.MAPPINGS.raw_path(hop_devices.hop, value=facts)
        files.append(path)
        at = replace(listing, files=(path,))
        is_altered = hashlib.sha256(facts.runs).hexdigest() != facts.artifact.sha256
        altered += [path] * is_altered
        try:
            found = _to_set(facts)
        except IommuFormatError as error:
            return (at.failed if is_altered else at.error)(
                f"{path} holds no mappings{' (evidence altered)' * is_altered}: {error}"
            )
        if facts.faults:
            return _judge_faulty(at, facts)
        key = facts.view, facts.moment
        walks[key] = (*walks.get(key, ()), found)
    view, moment = next((key for key in _WALKS if key not in walks), ("", ""))
    unseen = listing.error(f"no mappings as seen from {view}, {moment} the update")
    if view == "outside":
        return unseen
    at = replace(listing, files=tuple(files))
    both = walks["outside", "before"], walks["outside", "after"]
    if device.share is None:
        said = _say_difference(*both, is_exact=False)
    else:
        # What a VMM has beside its guest's memory, such as the firmware, is its own, and new.
        said = _say_difference(*device.share.guests(*both), is_exact=False)
        said = said or _say_difference(*device.share.others(*both), is_exact=False)
    if said:
        return at.failed(
            f"mappings changed over the update: {said}{say_altered(altered)}",
            observed=said,
            expected="the same mappings",
        )
    if view:
        return unseen
    return _compare_views(hop_devices, device, at, walks, altered)


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


def _judge_faulty(at: Place, facts: MappingFacts) -> Finding:
    """Tables that cannot be followed: before the update we cannot tell, after it they are lost."""
    said = f"tables cannot be followed {facts.moment} the update ({facts.view}): {facts.faults[0]}"
    if facts.moment == "after" and facts.view == "outside":
        return at.failed(said, observed=facts.faults[0], expected="whole tables")
    return at.error(said)


def _compare_views(
    hop_devices: HopDevices,
    device: JudgedDevice,
    at: Place,
    walks: dict[tuple[str, str], tuple[MappingSet, ...]],
    altered: list[str],
) -> Finding:
    before = walks["outside", "before"]
    for moment in MOMENTS:
        inside, outside = walks["inside", moment], walks["outside", moment]
        # the view inside is the driver's own with an AMD unit, and knows no tables; of a guest it
        # is where the guest's memory lies
        if hop_devices.watch.unit == AMD and device.share is not None:
            outside = device.share.guests_at(moment, outside)
            inside = where_mapped(inside, outside)
        said = _say_difference(inside, outside, is_exact=hop_devices.watch.unit != AMD)
        if said:
            return at.failed(
                f"{moment} the update the kernel says otherwise than its tables: "
                f"{said}{say_altered(altered)}",
                observed=said,
                expected="inside = outside",
            )
    if altered:
        return at.error(f"evidence altered: {', '.join(altered)}")
    mapped = sum(each.mapped_bytes for each in before)
    if not mapped:
        return error_finding(f"{at.where}: nothing was mapped, so nothing could be preserved")
    tampered = _find_tampering(hop_devices, device)
    if device.tier == CONTINUOUS and tampered is not None:
        return tampered
    if device.tier == CONTINUOUS:
        if (blind := find_blindness(hop_devices, is_sampled=True)) is not None:
            return blind
        compared = hop_devices.watch.compared
        if compared is not None and not _count_looks(compared, device):
            return hop_devices.place(slots.WATCH, device=device).error(
                "its page tables were compared at no time while they were in use"
            )
    runs = sum(len(each.runs) for each in before)
    tables = [each.top for each in rows_of(hop_devices, device) if each.top]
    replaced = sum(old != new for old, new in pairwise(tables))
    beside = ""
    if device.share is not None:
        guests, _after = device.share.guests(before, ())
        own = sum(each.mapped_bytes for each in guests)
        if not own:
            said = f"nothing of {device.share.guest}'s memory was mapped"
            return error_finding(f"{at.where}: {said}")
        rest = format_size(mapped - own)
        beside = f"; {rest} beside it, the VMM's firmware and registers, at the same IOVAs"
        mapped, runs = own, sum(len(each.runs) for each in guests)
    return at.passed(
        f"{format_size(mapped)} in {runs} runs reach the same memory before and after"
        f"{beside}, inside = outside; tables replaced {replaced} times",
        observed=f"{runs} runs equal",
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


def _count_looks(compared: Mapping[str, int], device: JudgedDevice) -> int:
    """Count how often the page tables of a device were compared, over its requesters."""
    function = device.found.function
    return sum(count for name, count in compared.items() if name.split()[0] == function)


def _find_tampering(hop_devices: HopDevices, device: JudgedDevice) -> Finding | None:
    """Find page tables that changed while the device used them, by any cause."""
    for row in hop_devices.evidence.tables:
        if row.requester.split()[0] == device.found.function and row.pages:
            return hop_devices.place(slots.TABLES, device=device).failed(
                f"page tables in use changed at {hop_devices.since_pause(row.host_ns)}: "
                f"{row.first}",
                observed=f"{row.pages} tables changed, first {row.first}",
                expected="page tables untouched while they are in use",
            )
    return None


# --- faults


CHECKS = (CheckRow(id="iommu.mappings", judge=judge_mappings, skip=without_device),)
