# SPDX-License-Identifier: Apache-2.0
"""The same scenario on a machine that somebody else started and that is reached by SSH only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.core import paths
from liveupdate.judging.table import CHECK_IDS
from tests.support import labgrid
from tests.support.vm import cli, labmachine

INSIDE = (
    "handover.kho",
    "handover.generation",
    "handover.session",
    "handover.state",
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
    of_devices = {check for check in CHECK_IDS if check.startswith(("iommu.", "device."))}
    assert set(skipped) == of_devices | unseen | {"budget.blackout"}
    assert all(skipped[check].startswith("target 'ssh': ") for check in unseen)
    # it was taken, not started: it runs on
    assert lab.child.returncode is None
    judged = cli.call("judge", str(tmp_path / "latest"), "--json")
    assert judged.returncode == 0, judged.explain()


def test_a_lab_job_finds_a_lost_session_publishes_it_and_gives_its_place_back(
    lab: labmachine.Lab, tmp_path: Path
) -> None:
    def switch() -> None:
        argv = [sys.executable, f"{lab.directory}/power.py", f"{lab.directory}/qmp", "reset"]
        subprocess.run(argv, check=True)

    with (
        labgrid.serve_socket(lab.directory / "con") as port,
        labgrid.serve("box", port, switch) as served,
    ):
        # power and console are the place's, so the description has none
        path = tmp_path / "box.toml"
        own = lab.description.read_text().partition("[console]")[0]
        path.write_text(
            f'{own}[labgrid]\nplace = "box"\ncoordinator = "{served.address}"\n', encoding="utf-8"
        )
        out = tmp_path / "out"
        done = subprocess.run(
            [paths.checkout_root() / "ci" / "lab-job.sh", "run", "box", out],
            env={**os.environ, **labgrid.ME, **job_variables(tmp_path, path, served.address)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=cli.TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        said = cli.Said(
            returncode=1,
            stdout=(out / "default.json").read_text(),
            stderr=(out / "default.log").read_text(),
        )
        assert said.check("handover.session")["status"] == "FAIL", said.explain()
        assert "<failure" in (out / "default.junit.xml").read_text()
        assert "not ok" in (out / "default.ktap").read_text()
        with tarfile.open(out / "bundle.tar.gz") as bundle:
            assert any(name.endswith("/result.json") for name in bundle.getnames())
        assert served.holder("box") is None
        # and one that somebody else holds is refused, by name
        served.acquire("box", who=labgrid.OTHER)
        said = cli.run(tmp_path, "--target", f"ssh:{path}")
        assert said.returncode == 3, said.explain()
        assert "'box' is held by far/somebody" in said.stdout + said.stderr


def job_variables(tmp_path: Path, description: Path, coordinator: str) -> dict[str, str]:
    """What ci/lab-job.sh is told: a lab of one machine, provisioned, and the fault."""
    tool = Path(sys.executable).parent / "liveupdate"
    box = {
        "liveupdate_place": "box",
        "liveupdate_coordinator": coordinator,
        "liveupdate_description": str(description),
        "liveupdate_tool": str(tool),
    }
    inventory, more = tmp_path / "inventory.json", tmp_path / "more.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"box": box}}}))
    more.write_text(json.dumps({"job_options": ["--fault", "close-session"]}))
    return {
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
        "VENV": sys.prefix,
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "INVENTORY": str(inventory),
        "JOB_VARS": str(more),
        "PROVISION": "0",
    }


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
