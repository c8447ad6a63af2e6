# SPDX-License-Identifier: Apache-2.0
"""Tests of the comparison of mapping sets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveupdate.formats.iommu import (
    READ,
    WRITE,
    Binding,
    FaultKind,
    MappingSet,
    Run,
    TableFault,
    Translation,
    parse_bdf,
)
from liveupdate.judging.compare_iommu import (
    ChangeKind,
    diff_mappings,
    diff_requesters,
)
from tests.support.iommu_tables import Page, merge_pages, page_lists

IGB = parse_bdf("01:00.0")
BINDING = Binding(
    requester=IGB, translation=Translation.SECOND_STAGE, domain_id=7, top=0x1000, levels=4
)
RUNS = (
    Run(0x1000, 0x10_1000, 0x4000, READ | WRITE, 4096),
    Run(0x20_0000, 0x40_0000, 1 << 21, READ, 1 << 21),
)


def mapped(*runs: Run) -> MappingSet:
    return MappingSet(binding=BINDING, runs=runs)


def kinds(before: MappingSet, after: MappingSet) -> list[tuple[ChangeKind, int, int]]:
    diff = diff_mappings(before, after)
    return [(change.kind, change.iova, change.size) for change in diff.changes]


def test_equal_sets_are_identical() -> None:
    diff = diff_mappings(mapped(*RUNS), mapped(*RUNS))
    assert diff.is_identical and diff.is_same_translation


def test_one_page_in_the_middle_that_moved_is_named() -> None:
    after = mapped(
        Run(0x1000, 0x10_1000, 0x1000, 3, 4096),
        Run(0x2000, 0x66_6000, 0x1000, 3, 4096),
        Run(0x3000, 0x10_3000, 0x2000, 3, 4096),
        RUNS[1],
    )
    diff = diff_mappings(mapped(*RUNS), after)
    assert not diff.is_same_translation
    (change,) = diff.changes
    assert (change.kind, change.iova, change.size) == (ChangeKind.MOVED, 0x2000, 0x1000)
    assert str(change) == (
        "moved 0x0000000000002000+0x1000: "
        "0x0000000000102000 rw 0x1000 -> 0x0000000000666000 rw 0x1000"
    )
    assert diff.bytes_of(ChangeKind.MOVED) == 0x1000


def test_lost_and_added_pages_are_named() -> None:
    after = mapped(Run(0, 0x10_0000, 0x3000, 3, 4096), RUNS[1])
    assert kinds(mapped(*RUNS), after) == [
        (ChangeKind.ADDED, 0, 0x1000),
        (ChangeKind.LOST, 0x3000, 0x2000),
    ]
    assert kinds(mapped(), mapped(*RUNS)) == [
        (ChangeKind.ADDED, 0x1000, 0x4000),
        (ChangeKind.ADDED, 0x20_0000, 1 << 21),
    ]
    assert "unmapped" in str(diff_mappings(mapped(*RUNS), mapped()).changes[0])


def test_access_that_changed_is_named() -> None:
    after = mapped(RUNS[0]._replace(access=READ), RUNS[1])
    assert kinds(mapped(*RUNS), after) == [(ChangeKind.ACCESS, 0x1000, 0x4000)]


def test_same_translation_in_other_page_sizes_is_still_the_same() -> None:
    diff = diff_mappings(mapped(*RUNS), mapped(RUNS[0], RUNS[1]._replace(page=4096)))
    assert diff.is_same_translation and not diff.is_identical
    assert [change.kind for change in diff.changes] == [ChangeKind.PAGE_SIZE]


def test_swapped_pages_are_two_moves() -> None:
    before = mapped(Run(0, 0x1000, 0x1000, 3, 4096), Run(0x1000, 0x9000, 0x1000, 3, 4096))
    after = mapped(Run(0, 0x9000, 0x1000, 3, 4096), Run(0x1000, 0x1000, 0x1000, 3, 4096))
    assert kinds(before, after) == [
        (ChangeKind.MOVED, 0, 0x1000),
        (ChangeKind.MOVED, 0x1000, 0x1000),
    ]


def test_fault_on_either_side_means_sameness_is_not_known() -> None:
    fault = TableFault(kind=FaultKind.UNREADABLE, address=0x1000, level=1, detail="x")
    broken = replace(mapped(*RUNS), faults=(fault,))
    for before, after in ((broken, mapped(*RUNS)), (mapped(*RUNS), broken)):
        diff = diff_mappings(before, after)
        assert not diff.is_same_translation and not diff.is_identical
        assert diff.faults == (fault,)


@pytest.mark.parametrize(
    ("binding", "is_same"),
    [
        (replace(BINDING, domain_id=8), True),
        (replace(BINDING, top=0x2000), True),
        (replace(BINDING, levels=5), True),
        (replace(BINDING, translation=Translation.FIRST_STAGE), False),
        (replace(BINDING, access=READ), False),
        (replace(BINDING, first_top=0x5000), False),
    ],
)
def test_where_tables_lie_does_not_change_what_they_say(binding: Binding, is_same: bool) -> None:
    diff = diff_mappings(mapped(*RUNS), MappingSet(binding=binding, runs=RUNS))
    assert len(diff.bindings) == 1
    assert not diff.is_identical
    assert diff.is_same_translation is is_same


def test_pass_through_is_not_the_same_as_blocked_without_any_runs() -> None:
    through = MappingSet(binding=replace(BINDING, translation=Translation.PASS_THROUGH))
    blocked = MappingSet(binding=replace(BINDING, translation=Translation.BLOCKED, access=0))
    assert not diff_mappings(through, blocked).is_same_translation


def test_requesters_are_paired() -> None:
    other = parse_bdf("02:00.0")
    pasid = parse_bdf("01:00.0", pasid=1)
    here = mapped(*RUNS)
    there = MappingSet(binding=replace(BINDING, requester=other))
    tagged = MappingSet(binding=replace(BINDING, requester=pasid))
    diff = diff_requesters([there, here], [tagged, here])
    assert (diff.lost, diff.added) == ((other,), (pasid,))
    assert [item.is_identical for item in diff.both] == [True]
    swapped = diff_requesters([there, here], [here, there])
    assert not (swapped.lost or swapped.added) and len(swapped.both) == 2


def pages_of(runs: tuple[Run, ...]) -> dict[int, tuple[int, int]]:
    return {
        run.iova + at: (run.phys + at, run.access)
        for run in runs
        for at in range(0, run.size, 4096)
    }


@settings(max_examples=60, deadline=None)
@given(
    page_lists(sizes=(1 << 12, 1 << 14), max_pages=12),
    page_lists(sizes=(1 << 12, 1 << 14), max_pages=12),
    st.data(),
)
def test_changes_agree_with_a_comparison_page_by_page(
    first: list[Page], second: list[Page], data: st.DataObject
) -> None:
    if data.draw(st.booleans()):
        # mostly alike: some of the first list, so that there are few changes
        second = [page for page in first if data.draw(st.integers(0, 3))]
    before, after = merge_pages(first), merge_pages(second)
    old, new = pages_of(before), pages_of(after)
    expected = {
        iova: ChangeKind.LOST
        if iova not in new
        else ChangeKind.ADDED
        if iova not in old
        else ChangeKind.MOVED
        if old[iova][0] != new[iova][0]
        else ChangeKind.ACCESS
        for iova in old.keys() | new.keys()
        if old.get(iova) != new.get(iova)
    }
    changes = [
        change
        for change in diff_mappings(mapped(*before), mapped(*after)).changes
        if change.kind is not ChangeKind.PAGE_SIZE
    ]
    found = {
        change.iova + at: change.kind for change in changes for at in range(0, change.size, 4096)
    }
    assert found == expected
    for one, two in itertools.pairwise(changes):
        assert one.iova + one.size <= two.iova
