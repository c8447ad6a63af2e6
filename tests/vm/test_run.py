# SPDX-License-Identifier: Apache-2.0
"""The main job on the real thing: guests live through real kexecs, and the verdict holds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline, wait_until
from tests.support.vm import cli, nightly
from tests.support.vm.must_pass import MUST_PASS


def _assert_pass(said: cli.Said) -> None:
    assert said.returncode == 0, said.explain()
    assert said.document["outcome"] == "PASS", said.explain()
    for check in MUST_PASS:
        assert said.check(check)["status"] == "PASS", said.explain()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a cold run that passed."""
    results = tmp_path_factory.mktemp("cold")
    said = cli.run(results, "--cold")
    _assert_pass(said)
    origin = said.document["provenance"]
    assert origin["start"] == "cold"
    assert origin["argv"] == [
        "liveupdate", "run", "--json", "--results", str(results), "--cold",
    ]  # fmt: skip
    assert origin["accel_reason"]
    return (results / "latest").resolve()


def test_guest_survives_a_real_kexec(finished: Path) -> None:
    text = cli.call("report", str(finished), "--format", "text")
    assert text.returncode == 0, text.explain()
    assert "-lu-a" in text.stdout
    assert "-lu-b" in text.stdout
    # no device to be watched
    assert not (finished / "evidence" / "iommu").exists()


def test_judge_says_the_same_with_no_machine(finished: Path) -> None:
    said = cli.call("judge", str(finished), "--json")
    assert said.returncode == 0, said.explain()
    assert said.document["outcome"] == "PASS"


@nightly.part("faults")
@pytest.mark.parametrize("fault", ["flip-state", "cut-state"])
def test_a_vm_state_that_changed_costs_its_own_guest_alone(fault: str, tmp_path: Path) -> None:
    # two guests on a busy machine are silent for longer than one
    stall = ("--set", "budget.stall=5s")
    said = cli.run(tmp_path, "--guests", "2", "--fault", fault, *stall)
    assert said.returncode == 1, said.explain()
    for check in ("handover.state", "guest.liveness"):
        reason = said.check(check)["reason"]
        assert said.check(check)["status"] == "FAIL", said.explain()
        assert "vm0" in reason and "vm1" not in reason, said.explain()


def test_one_altered_digest_byte_is_an_error_that_names_the_page(
    finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy" / finished.name
    shutil.copytree(finished, copy)
    digests = copy / "evidence" / "hop-1" / "vm0" / "boot.xxh3"
    raw = bytearray(digests.read_bytes())
    raw[len(raw) // 2] ^= 1
    digests.write_bytes(raw)
    said = cli.call("judge", str(copy), "--json")
    # the file is not the one that was sealed, so what it shows is no loss of the system's
    assert said.returncode == 3, said.explain()
    assert "boot.xxh3 cannot be used: altered" in said.document["reason"]
    assert "1 of 65536 pages" in said.check("memory.content")["reason"]


def test_deleted_evidence_is_error(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / finished.name
    shutil.copytree(finished, copy)
    (copy / "evidence" / "hop-1" / "vm0" / "boot.xxh3").unlink()
    said = cli.call("judge", str(copy), "--json")
    assert said.returncode == 3, said.explain()
    assert said.check("memory.content")["status"] == "ERROR"


def test_a_run_that_follows_another_starts_warm(tmp_path: Path) -> None:
    said = cli.run(tmp_path)
    _assert_pass(said)
    if said.document["provenance"]["start"] == "cold":  # the first of its kind: it saved its host
        said = cli.run(tmp_path)
        _assert_pass(said)
    assert said.document["provenance"]["start"] == "warm", said.explain()


def test_two_guests_and_hops_that_advance_the_generation_one_by_one(tmp_path: Path) -> None:
    said = cli.run(tmp_path, "--guests", "2", "--guest-memory", "128M", "--hops", "3")
    _assert_pass(said)
    assert "3" in said.check("handover.generation")["reason"]


# in one process: each sweeps up what dead runs left, and two must not sweep the same
@pytest.mark.xdist_group("killed")
@pytest.mark.side_by_side
@pytest.mark.parametrize("phase", ["bring-up", "brownout", "blackout", "observe-after"])
def test_killed_tool_leaves_nothing(phase: str, tmp_path: Path) -> None:
    tool = subprocess.Popen(
        [*cli.TOOL, "run", "--results", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: _has_started(tmp_path / "latest" / "events.jsonl", phase) or None,
            Deadline.after(120.0, f"the phase '{phase}'"),
        )
        if phase != "bring-up":
            assert len(cli.machines_left(tmp_path)) == 1
    finally:
        tool.send_signal(signal.SIGKILL)
        tool.wait(10)
    wait_until(
        lambda: not cli.machines_left(tmp_path) or None,
        Deadline.after(10.0, "the machine to be gone"),
    )
    swept = cli.call("gc")
    assert swept.returncode == 0, swept.explain()
    listed = cli.call("ps", "--json")
    assert listed.returncode == 0, listed.explain()
    assert _run_id(tmp_path) not in listed.stdout


def _has_started(events: Path, phase: str) -> bool:
    try:
        text = events.read_text(encoding="utf-8")
    except OSError:
        return False
    return f'"kind":"start","name":"{phase}"' in text


def _run_id(results: Path) -> str:
    return os.readlink(results / "latest").partition("-")[2]


@pytest.mark.side_by_side
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_takes_everything_down(number: signal.Signals, tmp_path: Path) -> None:
    tool = subprocess.Popen(
        [*cli.TOOL, "run", "--results", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    wait_until(
        lambda: _has_started(tmp_path / "latest" / "events.jsonl", "brownout") or None,
        Deadline.after(120.0, "the brownout"),
    )
    began = time.monotonic()
    tool.send_signal(number)
    assert tool.wait(60) == 128 + number
    assert time.monotonic() - began < 60
    assert cli.machines_left(tmp_path) == []
