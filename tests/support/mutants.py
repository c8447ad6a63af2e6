# SPDX-License-Identifier: Apache-2.0
"""Evidence with one thing altered, dropped, repeated or swapped, for tests of the judge.

A value is walked by its type. Of each series a few elements are taken: the first, the last and some
between. A mutant is named by its place, without the numbers of elements, and by what was done.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from msgspec import structs

from liveupdate.judging.judge import judge
from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Outcome

#: of a series, by their share of its length
_PLACES = (0.0, 0.3, 0.7, 1.0)
_FAR = 1 << 40


def mutants(evidence: Evidence, *, with_fields: bool = True) -> Iterator[tuple[str, str, Evidence]]:
    """Yield (place, what was done, evidence)."""
    for place, done, value in _mutate(evidence, "") if with_fields else ():
        if not place.startswith(("unreadable", "seal")):
            yield place, done, value
    hops = evidence.hops
    if len(hops) > 1:
        for name in structs.asdict(hops[0]):
            first = structs.replace(hops[0], **{name: getattr(hops[1], name)})
            if name != "number" and first != hops[0]:
                yield (
                    f"hops.{name}",
                    "of the other hop",
                    structs.replace(evidence, hops=(first, *hops[1:])),
                )


def _mutate(value: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, msgspec.Struct):
        hints = _hints(type(value))
        for name in structs.asdict(value):
            inner = getattr(value, name)
            where = f"{place}.{name}".lstrip(".")
            for path, done, other in _mutate(inner, where):
                if other is not None or type(None) in typing.get_args(hints[name]):
                    yield path, done, structs.replace(value, **{name: other})
    elif isinstance(value, tuple):
        yield from _mutate_series(value, place)
    elif isinstance(value, Mapping):
        for key in value:
            rest = {k: v for k, v in value.items() if k != key}
            yield f"{place}[]", "dropped", rest
            for path, done, other in _mutate(value[key], f"{place}[]"):
                if other is not None:
                    yield path, done, {**value, key: other}
    elif value is not None:
        for done, other in _others(value):
            yield place, done, other
        yield place, "dropped", None


@functools.cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """What its fields may hold: a file with None in another is not read at all."""
    return typing.get_type_hints(kind)


def _mutate_series(value: tuple[Any, ...], place: str) -> Iterator[tuple[str, str, Any]]:
    if not value:
        return
    yield place, "emptied", ()
    chosen = sorted({round(share * (len(value) - 1)) for share in _PLACES})
    if len(value) > 3:
        half = len(value) // 2
        yield place, "cut in half", value[:half]
        yield place, "without its first half", value[half:]
    for at in chosen:
        before, after = value[:at], value[at + 1 :]
        yield f"{place}[]", "dropped", (*before, *after)
        yield f"{place}[]", "repeated", (*before, value[at], value[at], *after)
        if at + 1 < len(value) and value[at] != value[at + 1]:
            yield f"{place}[]", "swapped", (*before, value[at + 1], value[at], *value[at + 2 :])
        for path, done, other in _mutate(value[at], f"{place}[]"):
            if other is not None:
                yield path, done, (*before, other, *after)


def _others(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case bool():
            yield "inverted", not value
        case int():
            yield "zero", 0
            yield "far", value + _FAR
            yield "far back", value - _FAR
        case float():
            yield "zero", 0.0
            yield "far", value + 1e9
        case str():
            yield "altered", f"{value}x"
            yield "emptied", ""
        case bytes() if value:
            middle = len(value) // 2
            yield "altered", value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :]
            yield "emptied", b""
            yield "cut in half", value[: middle // 8 * 8]


#: places whose alteration leaves a PASS, with the reason; a star stands for the rest of a name
MAY_DIFFER: Mapping[str, str] = {
    "provenance.tool_version": "says who made the run; nothing else knows it",
    "provenance.run_id": "compared with the run directory when that is read",
    "provenance.started_utc": "says when; nothing else has the time of day",
    "provenance.accel_reason": "text for people",
    "provenance.start": "says whether a saved host was loaded; shown only",
    "provenance.qemu_version": "says what was used; nothing else knows it",
    "provenance.qemu_argv*": "says what was used; only its accelerator is in the plan",
    "provenance.guest_qemu_version": "says what was used; None for a guest that has no QEMU",
    "provenance.argv*": "the command line; the plan has what came of it",
    "provenance.control_host*": "describes this machine; shown only",
    "provenance.source*": "describes the checkout; shown only",
    "hops[].before.boot_id": "of the first hop: no other observer has it; it must not be empty",
    "hops[].sessions[]": "swapped: they have no order",
    "hops[].sessions[].retrieve_ns": "measured; bounded by the blackout, and may be zero",
    "hops[].memory[].*.artifact.path": "emptied: stands for bytes that are not from a file; the"
    " reader compares file and digest",
    "hops[].guests[].ticks[]": "one dropped: samples are taken when there is time; silence counts",
    "hops[].guests[].echoes[]": "first or last dropped: when asking began is not said elsewhere",
    "hops[].guests[].echoes[].received_ns": "dropped: one lost frame is allowed; silence counts",
    "hops[].guests[].journal[]": "one dropped: samples are taken when there is time",
    "hops[].guests[].watched.longest_hole_ns": "smaller: only the watch knows it",
    "hops[].guests[].artifacts*": "made by the reader from the index, for reports",
    "hops[].devices[].artifacts*": "made by the reader from the index, for reports",
    "hops[].iommu.devices[].kind": "shown only",
    "hops[].iommu.watch.longest_hole_ns": "smaller by less than a look takes",
    "hops[].iommu.watch.cpu_ns": "measured, shown; bounded by the time of the watch",
    "hops[].iommu.watch.trace_lines": "more: lines of all devices, the others are not kept",
    "hops[].iommu.bindings[]": "dropped, repeated: stored when it differs; the registers are"
    " sampled with it and counted",
    "hops[].iommu.bindings[].domain_id": "shown only: a kernel may number its domains anew",
    "hops[].iommu.events*": "an event in a PASS is one that does not count; nothing counts them",
    "hops[].iommu.mappings[]": "swapped: they have no order",
    "hops[].iommu.mappings[].took_ns": "measured; bounded by the time of the watch",
    "hops[].iommu.mappings[].access": "more bits: those that a unit does not have are not compared",
    "hops[].iommu.mappings[].artifact.path": "emptied: as for memory",
    "hops[].iommu.configs[]": "swapped: they have no order",
    "hops[].iommu.kept*": "measured, shown, not judged",
    "hops[].phases*": "measured, shown, not judged",
    "hops[].costs*": "measured, shown, not judged",
}


def to_glob(place: str) -> str:
    """Make a pattern for :mod:`fnmatch` of a place of the list."""
    return place.replace("[]", "[[]]")


def find_survivors(
    plan: Plan, evidence: Evidence, allowed: Iterable[str] = tuple(MAY_DIFFER)
) -> dict[str, set[str]]:
    """Return the places at which something can be altered in a PASS, and what, beside those
    ``allowed``.
    """
    globs = [to_glob(each) for each in allowed]
    found: dict[str, set[str]] = {}
    for place, done, mutant in mutants(evidence):
        if mutant == evidence or any(fnmatchcase(place, each) for each in globs):
            continue
        if judge(plan, mutant).outcome is Outcome.PASS:
            found.setdefault(place, set()).add(done)
    return found
