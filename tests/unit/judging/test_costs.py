# SPDX-License-Identifier: Apache-2.0
"""Costs as metrics: from synthetic evidence, with what is not known left out."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from liveupdate.core.units import GIB, MIB, PAGE_BYTES
from liveupdate.judging.costs import huge_share
from liveupdate.judging.judge import judge
from liveupdate.model.costs import CostFacts, HandedOver, HopCosts, HugetlbFacts, RamFacts
from liveupdate.model.evidence import Evidence, Phase
from liveupdate.model.plan import Plan, Region
from liveupdate.model.verdict import Metric
from tests.support import evidence_builder as make

PLAN = make.make_plan()
RAM = make.RAM
COSTS = replace(make.COSTS, fragment=None)
WALKED = make.HANDED_OVER


def metrics(evidence: Evidence, plan: Plan = PLAN) -> dict[tuple[str, str], Metric]:
    return {
        (metric.name, metric.labels.get("when", "")): metric
        for metric in judge(plan, evidence).metrics
    }


def with_costs(costs: CostFacts = COSTS, handed_over: HandedOver | None = None) -> Evidence:
    after = replace(RAM, allocate_ns=None, pages_4k=0)
    return make.with_hop(
        make.make_evidence(),
        costs=HopCosts(
            before=costs,
            after=replace(costs, rams=(after,), fragment=None),
            handed_over=handed_over,
        ),
    )


def test_ram_of_a_guest_is_told_before_and_after() -> None:
    found = metrics(with_costs())
    assert found["allocate", ""].value == 50 * make.MS
    assert found["memory.huge", "before"].value == pytest.approx(75)
    assert found["memory.huge", "after"].value == 100
    assert found["memory.struct-pages", "after"].value == 1


def test_device_memory_has_struct_pages_that_kpageflags_does_not_show() -> None:
    hidden = replace(RAM, online_page=False)
    found = metrics(with_costs(replace(COSTS, rams=(hidden,))))
    assert found["memory.struct-pages", "before"].value == 1
    none = replace(hidden, pinnable=False)
    found = metrics(with_costs(replace(COSTS, rams=(none,))))
    assert found["memory.struct-pages", "before"].value == 0
    assert found["memory.pinnable", "before"].value == 0


def test_what_could_not_be_told_is_left_out() -> None:
    unknown = RamFacts(
        guest="vm0", allocate_ns=None, pages_4k=None, pages_2m=None, pages_1g=None,
        online_page=None, pinnable=None,
    )  # fmt: skip
    evidence = with_costs(replace(COSTS, rams=(unknown,)))
    found = metrics(make.with_after(evidence, mem_available_bytes=None))
    assert ("allocate", "") not in found
    assert ("memory.huge", "before") not in found
    assert ("memory.struct-pages", "before") not in found
    assert ("memory.metadata", "") not in found
    assert ("memory.overhead", "") not in found
    assert huge_share(replace(RAM, pages_4k=0, pages_2m=0)) is None


def test_metadata_is_what_kho_holds_beyond_what_was_asked_for() -> None:
    found = metrics(with_costs(handed_over=WALKED))
    assert found["memory.metadata", ""].value == 110 * PAGE_BYTES


def test_metadata_of_a_region_is_its_own_account_and_the_map() -> None:
    plan = replace(PLAN, region=Region(start=GIB, size_bytes=128 * MIB))
    told = replace(COSTS, metadata_bytes=3 * MIB)
    found = metrics(with_costs(told, handed_over=WALKED), plan)
    assert found["memory.metadata", ""].value == 3 * MIB + 10 * PAGE_BYTES
    assert ("memory.metadata", "") not in metrics(with_costs(handed_over=WALKED), plan)


def test_metadata_without_kho_is_the_mechanisms_own_account() -> None:
    told = replace(COSTS, metadata_bytes=3 * MIB)
    found = metrics(with_costs(told), replace(PLAN, witnesses=()))
    assert found["memory.metadata", ""].value == 3 * MIB
    # with KHO half of the account is missing
    assert ("memory.metadata", "") not in metrics(with_costs(told))


def test_memory_that_kho_does_not_preserve_is_not_subtracted() -> None:
    told = replace(COSTS, metadata_bytes=MIB)
    few = HandedOver(nodes=6, folios=((0, 3),), ours_bytes=4 * MIB)
    found = metrics(with_costs(told, handed_over=few))
    assert found["memory.metadata", ""].value == MIB + 6 * PAGE_BYTES


def test_restore_is_the_sum_of_all_bundles_and_needs_all_of_them() -> None:
    good = make.make_evidence()
    assert metrics(good)["restore", ""].value == 17 * make.MS
    lost = replace(good.hops[0].sessions[0], error="gone")
    assert ("restore", "") not in metrics(make.with_hop(good, sessions=(lost,)))


def test_share_of_the_blackout_needs_both_phases() -> None:
    base = 100 * make.SECOND
    own = [
        Phase(hop=1, name=name, began_ns=base, ended_ns=base + 200 * make.MS, guest="vm0")
        for name in ("preserve-state", "retrieve")
    ]
    found = metrics(make.with_hop(make.make_evidence(), phases=tuple(own)))
    assert found["blackout.share", ""].value == pytest.approx(10)
    found = metrics(make.with_hop(make.make_evidence(), phases=(own[0],)))
    assert ("blackout.share", "") not in found


def test_overhead_is_what_neither_guests_nor_the_host_can_have() -> None:
    evidence = make.with_after(make.make_evidence(), mem_available_bytes=700 * MIB)
    found = metrics(evidence)
    assert found["memory.overhead", ""].value == GIB - make.GUEST_BYTES - 700 * MIB
    assert ("memory.overhead", "") not in metrics(evidence, replace(PLAN, target="ssh"))


def test_hugetlbfs_is_compared_when_it_had_enough() -> None:
    enough = HugetlbFacts(wanted_pages=128, got_pages=128, allocate_ns=7)
    found = metrics(with_costs(replace(COSTS, hugetlb=enough)))
    assert found["allocate.hugetlb", ""].value == 7
    few = replace(enough, got_pages=25, allocate_ns=None)
    assert ("allocate.hugetlb", "") not in metrics(with_costs(replace(COSTS, hugetlb=few)))


def test_fragmentation_is_shown_before_and_after() -> None:
    found = metrics(with_costs(make.COSTS))
    assert found["fragment.whole", "before"].value == 1000 * MIB
    assert found["fragment.whole", "after"].value == 40 * MIB
