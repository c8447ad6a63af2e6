# SPDX-License-Identifier: Apache-2.0
"""Every mechanism carries a real guest through real kexecs, judged by the same checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.core.errors import PlanError
from liveupdate.faults.table import FAULTS
from liveupdate.images import catalogue
from liveupdate.model.mechanism import KHO
from liveupdate.planning.faults import not_of_mechanism
from liveupdate.planning.mechanisms import MECHANISMS
from tests.support.vm import cli, nightly

#: the reference has tests of its own
OTHERS = [name for name in MECHANISMS if name != "luo-memfd"]
MUST_PASS = (
    "handover.kho",
    "handover.session",
    "handover.state",
    "memory.content",
    "memory.placement",
    "guest.liveness",
    "guest.clock",
    "guest.network",
    "guest.storage",
)
#: those that read the region's description, or fill it
REGION_FAULTS = [name for name in FAULTS if name.startswith("region-")]
#: the one that every mechanism answers with code of its own: what describes the region is checked
OF_THE_DAY = "region-corrupt"
#: whose region faults tests/vm/test_faults.py shows
SHOWN_THERE = "breadcrumb"
#: whose single hop test_reserved_memory_needs_no_kernel_with_kho shows
NEEDS_NO_KHO = "reserved-dax"


def _assert_survived(said: cli.Said, mechanism: str) -> None:
    assert said.returncode == 0, said.explain()
    for check in MUST_PASS:
        assert said.check(check)["status"] == "PASS", said.explain()
    generation = said.check("handover.generation")["status"]
    assert generation == ("PASS" if KHO in MECHANISMS[mechanism].witnesses else "SKIP")


@pytest.mark.parametrize("mechanism", [name for name in OTHERS if name != NEEDS_NO_KHO])
def test_guest_survives(mechanism: str, tmp_path: Path) -> None:
    _assert_survived(cli.run(tmp_path, "--mechanism", mechanism), mechanism)


@nightly.part("mechanisms")
@pytest.mark.parametrize("mechanism", OTHERS)
def test_guest_survives_three_hops(mechanism: str, tmp_path: Path) -> None:
    _assert_survived(cli.run(tmp_path, "--mechanism", mechanism, "--hops", "3"), mechanism)


@pytest.mark.side_by_side
@pytest.mark.parametrize(
    ("mechanism", "fault"),
    [
        pytest.param(
            mechanism, fault, marks=() if fault == OF_THE_DAY else nightly.part("mechanisms")
        )
        for mechanism in OTHERS
        for fault in REGION_FAULTS
        if mechanism != SHOWN_THERE
        and not_of_mechanism(FAULTS[fault], MECHANISMS[mechanism]) is None
    ],
)
def test_region_that_cannot_be_believed_is_refused(
    mechanism: str, fault: str, tmp_path: Path
) -> None:
    said = cli.run(tmp_path, "--mechanism", mechanism, "--fault", fault)
    expected = FAULTS[fault].expected
    assert said.returncode == expected.exit_code, said.explain()
    check = said.check(expected.check)
    assert check["status"] == expected.status, said.explain()
    assert check["reason"], said.explain()


def test_reserved_memory_needs_no_kernel_with_kho(tmp_path: Path) -> None:
    """The incoming kernel of the fault "kernel-without-kho" loses everything with any other."""
    try:
        kernel = catalogue.find_kernel("kernel-nokho")
    except PlanError as error:
        pytest.skip(str(error))
    said = cli.run(tmp_path, "--mechanism", NEEDS_NO_KHO, "--next-kernel", kernel.path)
    _assert_survived(said, NEEDS_NO_KHO)
