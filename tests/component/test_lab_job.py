# SPDX-License-Identifier: Apache-2.0
"""ci/lab-job.sh with a real labgrid place: it is given back, however the job ends.

A job costs seconds of CPU in Ansible, so each is shown once: that what failed is published, by a
real run in tests/vm/test_ssh_target.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.core import paths
from liveupdate.core.deadline import Deadline, wait_until
from tests.support import labgrid
from tests.support.processes import is_running

pytest.importorskip("labgrid", reason="pip install -e '.[labgrid]'")
pytest.importorskip("ansible", reason="pip install -e '.[dev]'")
# one worker, so that one lab is started
pytestmark = pytest.mark.xdist_group("lab-job")

SCRIPT = paths.checkout_root() / "ci" / "lab-job.sh"
NIGHTLY = SCRIPT.parent / "examples" / "nightly.sh"
PLACE = "box"
JOB_S = 120.0


@pytest.fixture(scope="module")
def lab() -> Iterator[labgrid.Lab]:
    with labgrid.serve(PLACE, 9, lambda: None) as served:
        yield served


def job(lab: labgrid.Lab, tmp_path: Path, tool: str) -> tuple[list[str], dict[str, str]]:
    """Return command line and environment of a job whose tool is the shell script ``tool``."""
    path = tmp_path / "tool"
    path.write_text(f"#!/bin/sh\n{tool}\n")
    path.chmod(0o755)
    inventory = {
        "all": {
            "hosts": {
                "node": {
                    "liveupdate_place": PLACE,
                    "liveupdate_coordinator": lab.address,
                    "liveupdate_tool": str(path),
                }
            }
        }
    }
    (tmp_path / "inventory.json").write_text(json.dumps(inventory))
    env = {
        **os.environ,
        **labgrid.ME,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VENV": "/nonexistent",
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "INVENTORY": str(tmp_path / "inventory.json"),
        "PROVISION": "0",
    }
    return [str(SCRIPT), "run", "node", str(tmp_path / "out")], env


def test_somebody_elses_place_is_left_to_them(lab: labgrid.Lab, tmp_path: Path) -> None:
    lab.acquire(PLACE, who=labgrid.OTHER)
    try:
        argv, env = job(lab, tmp_path, f"touch {tmp_path}/ran")
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=JOB_S, check=False
        )
        assert done.returncode == 3, done.stdout + done.stderr
        assert not (tmp_path / "ran").exists()
        assert lab.holder(PLACE) == "far/somebody"
    finally:
        lab.release(PLACE)


def test_a_job_that_is_asked_to_end_ends_its_tool_first(lab: labgrid.Lab, tmp_path: Path) -> None:
    argv, env = job(lab, tmp_path, f"echo $$ >{tmp_path}/pid; exec sleep 300")
    pid = tmp_path / "pid"
    with subprocess.Popen(
        argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        wait_until(
            lambda: pid.exists() and pid.read_text().strip(), Deadline.after(JOB_S, "the tool")
        )
        tool = int(pid.read_text())
        assert lab.holder(PLACE) == "desk/me"
        child.send_signal(signal.SIGTERM)
        code = child.wait(JOB_S)
    assert code == 143
    assert not is_running(tool), "the tool works on, and the place is free"
    assert lab.holder(PLACE) is None


def give_back(lab: labgrid.Lab, tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Give back what a killed job left: its marker is all that is known of it."""
    _, env = job(lab, tmp_path, "exit 0")
    marker = tmp_path / "out" / ".place-taken"
    marker.parent.mkdir()
    marker.touch()
    argv = [str(SCRIPT), "give-back", "node", str(marker.parent)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=JOB_S, check=False)
    return done, marker


def test_nothing_is_left_to_give_back_of_a_place_that_is_free(
    lab: labgrid.Lab, tmp_path: Path
) -> None:
    assert lab.holder(PLACE) is None
    done, marker = give_back(lab, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not marker.exists()


def test_a_place_that_is_somebody_elses_by_now_is_not_given_back(
    lab: labgrid.Lab, tmp_path: Path
) -> None:
    lab.acquire(PLACE, who=labgrid.OTHER)
    try:
        done, marker = give_back(lab, tmp_path)
        assert done.returncode == 3, done.stdout + done.stderr
        assert marker.exists()
        assert lab.holder(PLACE) == "far/somebody"
    finally:
        lab.release(PLACE)


def test_a_night_gives_back_what_a_killed_one_left_and_does_its_job(
    lab: labgrid.Lab, tmp_path: Path
) -> None:
    _, env = job(lab, tmp_path, "echo '{}'")
    nights = tmp_path / "nights"
    killed = nights / "node" / "20260101T020000Z" / ".place-taken"
    killed.parent.mkdir(parents=True)
    killed.touch()
    lab.acquire(PLACE)
    argv = [str(NIGHTLY), "node", str(nights)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=JOB_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not killed.exists()
    (published,) = nights.glob("node/*/default.json")
    assert json.loads(published.read_text()) == {}
    assert lab.holder(PLACE) is None


def test_a_night_leaves_a_job_that_still_runs_alone(lab: labgrid.Lab, tmp_path: Path) -> None:
    _, env = job(lab, tmp_path, "exit 0")
    running = tmp_path / "nights" / "node" / "20260101T020000Z" / ".place-taken"
    running.parent.mkdir(parents=True)
    running.touch()
    with (running.parent.parent / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = [str(NIGHTLY), "node", str(tmp_path / "nights")]
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=JOB_S, check=False
        )
    assert done.returncode == 3
    assert "still runs" in done.stderr
    assert running.exists()
