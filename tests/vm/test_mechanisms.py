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
from tests.support.vm import cli

#: the reference has tests of its own
OTHERS = [name for name in MECHANISMS if name != "luo-memfd"]
MUST_PASS = (
    "handover.kho",
    "handover.session",
    "memory.content",
    "memory.placement",
    "guest.liveness",
    "guest.clock",
    "guest.network",
    "guest.storage",
)
#: those that read the region's description, or fill it
REGION_FAULTS = [name for name in FAULTS if name.startswith("region-")]


@pytest.mark.parametrize("mechanism", OTHERS)
def test_guest_survives(mechanism: str, tmp_path: Path) -> None:
    said = cli.run(tmp_path, "--mechanism", mechanism, "--hops", "3")
    assert said.returncode == 0, said.explain()
    for check in MUST_PASS:
        assert said.check(check)["status"] == "PASS", said.explain()
    generation = said.check("handover.generation")["status"]
    assert generation == ("PASS" if KHO in MECHANISMS[mechanism].witnesses else "SKIP")


@pytest.mark.parametrize("fault", REGION_FAULTS)
@pytest.mark.parametrize("mechanism", OTHERS)
def test_region_that_cannot_be_believed_is_refused(
    mechanism: str, fault: str, tmp_path: Path
) -> None:
    reason = not_of_mechanism(FAULTS[fault], MECHANISMS[mechanism])
    if reason is not None:
        pytest.skip(reason)
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
    said = cli.run(tmp_path, "--mechanism", "reserved-dax", "--next-kernel", kernel.path, "--cold")
    assert said.returncode == 0, said.explain()
