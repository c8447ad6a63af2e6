# SPDX-License-Identifier: Apache-2.0
"""What changed between two views of the IOMMU: before and after, or inside and outside.

Pure facts: whether a change matters is the judge's to say. Sets are compared address by address, so
two ways of writing the same translation (512 small pages, one large) differ in page size only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from liveupdate.core.units import format_addr
from liveupdate.formats.iommu import (
    Binding,
    MappingSet,
    Requester,
    Run,
    TableFault,
    format_access,
)


class ChangeKind(StrEnum):
    """What happened to a range of IOVAs; the first that applies, in this order."""

    LOST = "lost"
    ADDED = "added"
    #: reaches other memory; access may differ too
    MOVED = "moved"
    #: same memory, other access
    ACCESS = "access"
    #: same memory and access, made of pages of another size
    PAGE_SIZE = "page-size"


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingChange:
    """A range of IOVAs that is not treated as before.

    :ivar before: run it was cut from, None if it was not mapped; ``after`` likewise.
    """

    kind: ChangeKind
    iova: int
    size: int
    before: Run | None
    after: Run | None

    def __str__(self) -> str:
        return (
            f"{self.kind} {format_addr(self.iova)}+{self.size:#x}: "
            f"{_side(self.before, self.iova)} -> {_side(self.after, self.iova)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingChange:
    """A field of the binding that differs, as text for people."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingDiff:
    """Everything that differs between two mapping sets of one requester.

    ``faults`` are those of either side: with any, "no change" is not known to be true.
    """

    bindings: tuple[BindingChange, ...]
    changes: tuple[MappingChange, ...]
    faults: tuple[TableFault, ...]

    @property
    def is_same_translation(self) -> bool:
        """Whether every IOVA certainly reaches the same memory with the same access."""
        is_same = all(change.kind is ChangeKind.PAGE_SIZE for change in self.changes)
        is_bound = not any(change.field in _TRANSLATION_FIELDS for change in self.bindings)
        return is_same and is_bound and not self.faults

    @property
    def is_identical(self) -> bool:
        """Whether nothing at all differs: tables, domain id and page sizes included."""
        return not (self.bindings or self.changes or self.faults)

    def bytes_of(self, kind: ChangeKind) -> int:
        """Bytes of IOVA with this kind of change."""
        return sum(change.size for change in self.changes if change.kind is kind)


#: binding fields that change what a device reaches; the others are where that is written down
_TRANSLATION_FIELDS = ("translation", "access", "first_top")


def diff_mappings(before: MappingSet, after: MappingSet) -> MappingDiff:
    """Compare two sets of the same requester (its PASID may differ: the caller paired them)."""
    if before.runs == after.runs:
        changes: tuple[MappingChange, ...] = ()
    else:
        changes = tuple(_merge(_sweep(before.runs, after.runs)))
    return MappingDiff(
        bindings=tuple(_diff_bindings(before.binding, after.binding)),
        changes=changes,
        faults=(*before.faults, *after.faults),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestersDiff:
    """Comparison of all requesters of a unit; ``lost`` and ``added`` are on one side only."""

    lost: tuple[Requester, ...]
    added: tuple[Requester, ...]
    both: tuple[MappingDiff, ...]


def diff_requesters(before: Iterable[MappingSet], after: Iterable[MappingSet]) -> RequestersDiff:
    """Pair sets by requester and compare each pair."""
    old = {item.requester: item for item in before}
    new = {item.requester: item for item in after}
    return RequestersDiff(
        lost=tuple(sorted(old.keys() - new.keys(), key=Requester.sort_key)),
        added=tuple(sorted(new.keys() - old.keys(), key=Requester.sort_key)),
        both=tuple(
            diff_mappings(old[requester], new[requester])
            for requester in sorted(old.keys() & new.keys(), key=Requester.sort_key)
        ),
    )


def _sweep(before: tuple[Run, ...], after: tuple[Run, ...]) -> Iterator[MappingChange]:
    """Cut both sides at each other's bounds and give the pieces that differ, ascending."""
    old_index = new_index = 0
    at = 0
    while True:
        while old_index < len(before) and before[old_index].iova + before[old_index].size <= at:
            old_index += 1
        while new_index < len(after) and after[new_index].iova + after[new_index].size <= at:
            new_index += 1
        old = before[old_index] if old_index < len(before) else None
        new = after[new_index] if new_index < len(after) else None
        if old is None and new is None:
            return
        starts = [run.iova for run in (old, new) if run is not None]
        at = max(at, min(starts))
        if old is not None and old.iova > at:
            bound, old = old.iova, None
        else:
            bound = old.iova + old.size if old else 1 << 65
        if new is not None and new.iova > at:
            end, new = min(bound, new.iova), None
        else:
            end = min(bound, new.iova + new.size) if new else bound
        kind = _classify(old, new, at)
        if kind is not None:
            yield MappingChange(kind=kind, iova=at, size=end - at, before=old, after=new)
        at = end


def _classify(old: Run | None, new: Run | None, iova: int) -> ChangeKind | None:
    if new is None:
        return ChangeKind.LOST
    if old is None:
        return ChangeKind.ADDED
    if old.phys - old.iova != new.phys - new.iova:
        return ChangeKind.MOVED
    if old.access != new.access:
        return ChangeKind.ACCESS
    if old.page != new.page:
        return ChangeKind.PAGE_SIZE
    return None


def _merge(pieces: Iterable[MappingChange]) -> Iterator[MappingChange]:
    """Join neighbours cut from the same runs or saying the same."""
    held: MappingChange | None = None
    for piece in pieces:
        if (
            held is not None
            and held.kind is piece.kind
            and held.iova + held.size == piece.iova
            and _is_like(held.before, piece.before)
            and _is_like(held.after, piece.after)
        ):
            held = replace(held, size=held.size + piece.size)
            continue
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held


def _is_like(first: Run | None, second: Run | None) -> bool:
    """Whether two runs are parts of one straight line with the same attributes."""
    if first is None or second is None:
        return first is second
    return (
        first.phys - first.iova == second.phys - second.iova
        and first.access == second.access
        and first.page == second.page
    )


def _side(run: Run | None, iova: int) -> str:
    if run is None:
        return "unmapped"
    phys = run.phys + iova - run.iova
    return f"{format_addr(phys)} {format_access(run.access)} {run.page:#x}"


def _diff_bindings(before: Binding, after: Binding) -> Iterator[BindingChange]:
    sides = (
        ("translation", before.translation, after.translation),
        ("access", format_access(before.access), format_access(after.access)),
        ("domain_id", before.domain_id, after.domain_id),
        ("top", format_addr(before.top), format_addr(after.top)),
        ("levels", before.levels, after.levels),
        ("first_top", format_addr(before.first_top), format_addr(after.first_top)),
        ("pasid", before.requester.pasid, after.requester.pasid),
    )
    for field, old, new in sides:
        if old != new:
            yield BindingChange(field=field, before=str(old), after=str(new))
