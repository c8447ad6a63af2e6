# SPDX-License-Identifier: Apache-2.0
"""The same scenario on a machine that somebody else started and that is reached by SSH only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.planner import DEVICE_CHECKS, IOMMU_CHECKS
from tests.vm import cli, labmachine

INSIDE = (
    "handover.kho",
    "handover.generation",
    "handover.session",
    "memory.content",
    "memory.placement",
    "guest.liveness",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[labmachine.Lab]:
    with labmachine.serve() as machine:
        yield machine


def test_the_same_scenario_passes_and_skips_what_is_not_seen(
    lab: labmachine.Lab, tmp_path: Path
) -> None:
    said = cli.run(tmp_path, "--target", f"ssh:{lab.description}")
    assert said.returncode == 0, said.explain()
    for check in INSIDE:
        assert said.check(check)["status"] == "PASS", said.explain()
    skipped = {c["id"]: c["reason"] for c in said.document["checks"] if c["status"] == "SKIP"}
    unseen = {"guest.clock", "guest.network", "guest.storage"}
    assert set(skipped) == {*IOMMU_CHECKS, *DEVICE_CHECKS} | unseen | {"budget.blackout"}
    assert all(skipped[check].startswith("target 'ssh': ") for check in unseen)
    # it was taken, not started: it runs on
    assert lab.child.returncode is None
    judged = cli.call("judge", str(tmp_path / "latest"), "--json")
    assert judged.returncode == 0, judged.explain()


def test_a_lost_session_is_found_and_the_machine_serves_again(
    lab: labmachine.Lab, tmp_path: Path
) -> None:
    said = cli.run(tmp_path, "--target", f"ssh:{lab.description}", "--fault", "close-session")
    assert said.returncode == 1, said.explain()
    assert said.check("handover.session")["status"] == "FAIL", said.explain()


def test_another_host_key_is_refused(lab: labmachine.Lab, tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True
    )
    text = lab.description.read_text()
    line = next(line for line in text.splitlines() if line.startswith("host_key"))
    other = tmp_path / "other.toml"
    other.write_text(text.replace(line, f'host_key = "{tmp_path}/other.pub"'))
    said = cli.run(tmp_path, "--target", f"ssh:{other}")
    assert said.returncode == 3, said.explain()
    assert "shows host key" in said.stdout + said.stderr


def test_a_power_command_that_fails_is_said(lab: labmachine.Lab, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    text = lab.description.read_text()
    line = next(line for line in text.splitlines() if line.startswith("command"))
    broken.write_text(text.replace(line, 'command = ["false"]'))
    said = cli.run(tmp_path, "--target", f"ssh:{broken}")
    assert said.returncode == 3, said.explain()
    assert "the power command failed" in said.stdout + said.stderr


def test_a_fault_from_outside_is_refused_before_the_machine_is_touched(
    lab: labmachine.Lab, tmp_path: Path
) -> None:
    said = cli.run(tmp_path, "--target", f"ssh:{lab.description}", "--fault", "flip-bit")
    assert said.returncode == 2, said.explain()
    assert "memory is not seen from outside" in said.stderr
