# SPDX-License-Identifier: Apache-2.0
"""The same scenarios on a libvirt domain, with a libvirtd of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.faults.table import FAULTS
from liveupdate.judging.table import CHECK_IDS
from tests.support import libvirtd
from tests.support.vm import cli, nightly
from tests.support.vm.must_pass import MUST_PASS

pytestmark = pytest.mark.skipif(bool(libvirtd.missing()), reason=libvirtd.missing())


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with libvirtd.serve() as daemon:
        yield f"libvirt:{daemon.uri}"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert cli.machines_left(tmp_path) == []


def test_the_same_scenario_passes_and_skips_nothing_more(tmp_path: Path) -> None:
    # no URI, as users who have just set up call it
    said = cli.run(tmp_path, "--target", "libvirt")
    assert said.returncode == 0, said.explain()
    for check in MUST_PASS:
        assert said.check(check)["status"] == "PASS", said.explain()
    skipped = {check["id"] for check in said.document["checks"] if check["status"] == "SKIP"}
    of_devices = {check for check in CHECK_IDS if check.startswith(("iommu.", "device."))}
    assert skipped == of_devices | {"budget.blackout"}
    assert "guest=lu-" in " ".join(said.document["provenance"]["qemu_argv"])
    judged = cli.call("judge", str(tmp_path / "latest"), "--json")
    assert judged.returncode == 0, judged.explain()


@pytest.mark.side_by_side
@pytest.mark.parametrize(
    "fault",
    [
        "flip-bit",
        pytest.param("cold-reset", marks=nightly.part("libvirt")),
        pytest.param("ssh-drop", marks=nightly.part("libvirt")),
        pytest.param("qemu-killed", marks=nightly.part("libvirt")),
    ],
)
def test_a_fault_comes_to_what_it_comes_to_elsewhere(
    target: str, tmp_path: Path, fault: str
) -> None:
    """One of each way in: mapped RAM, monitor, a line of the machine, its process."""
    expected = FAULTS[fault].expected
    said = cli.run(tmp_path, "--target", target, "--fault", fault)
    assert said.returncode == expected.exit_code, said.explain()
    assert said.check(expected.check)["status"] == expected.status, said.explain()
