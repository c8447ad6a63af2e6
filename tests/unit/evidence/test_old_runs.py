# SPDX-License-Identifier: Apache-2.0
"""Run directories of an earlier version are judged to the verdict that they had then."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest

from liveupdate.evidence import RunDir
from liveupdate.judging.judge import judge
from tests.support.stored_evidence import put_value, values_of

RUNS = Path(__file__).parents[2] / "data" / "runs"
NAMES = ("pass", "fail", "error")


def unpack(name: str, tmp_path: Path) -> Path:
    """Copy a stored run, its tables unpacked."""
    run = shutil.copytree(RUNS / name, tmp_path / name)
    for packed in run.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return run


def judge_run(run: Path) -> dict[str, object]:
    record = RunDir.open(run)
    verdict = judge(record.load_plan(), record.load_evidence())
    return {
        "outcome": verdict.outcome.value,
        "exit_code": verdict.exit_code.value,
        "checks": {check.id: check.status.value for check in verdict.checks},
    }


def later(then: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Return the checks that there were none of then."""
    return {check: now["checks"][check] for check in now["checks"].keys() - then["checks"].keys()}


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_run_comes_to_its_stored_verdict(name: str, tmp_path: Path) -> None:
    run = unpack(name, tmp_path)
    then = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    now = judge_run(run)
    # checks that came later ask for evidence that no run of then has
    assert {**then, "checks": then["checks"] | later(then, now)} == now
    assert set(later(then, now).values()) == {"SKIP"}


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_run_is_readable_to_the_last_file(name: str, tmp_path: Path) -> None:
    assert RunDir.open(unpack(name, tmp_path)).load_evidence().unreadable == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_from_a_stored_run_is_written_as_it_was(name: str, tmp_path: Path) -> None:
    old = unpack(name, tmp_path)
    read = RunDir.open(old)
    new = RunDir.create(tmp_path / "new", plan=read.load_plan(), scenario="")
    for slot, value, hop, of in values_of(read.load_evidence()):
        put_value(new, slot, value, hop, of)
    names = [
        path.relative_to(old).as_posix()
        for path in (old / "evidence").rglob("*")
        if path.is_file() and path.name != "index.jsonl"
    ]
    assert len(names) > 10
    for each in (*names, "plan.json", "provenance.json"):
        assert (new.path / each).read_bytes() == (old / each).read_bytes(), each


def test_the_stored_pass_does_not_survive_a_lost_file(tmp_path: Path) -> None:
    run = unpack("pass", tmp_path)
    (run / "evidence" / "hop-1" / "vm0" / "ticks.jsonl").unlink()
    assert judge_run(run)["outcome"] == "ERROR"
