# SPDX-License-Identifier: Apache-2.0
"""The matrix of mechanisms: what is run, what is not run again, what its table may say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from liveupdate.cli import gather
from liveupdate.cli import matrix as verb
from liveupdate.cli import run as run_verb
from liveupdate.cli.app import main
from liveupdate.errors import LaunchError, PlanError
from liveupdate.matrix import Cell, Figure, make_cells, summarise
from liveupdate.model import layout
from liveupdate.model.verdict import ExitCode
from liveupdate.preserve.registry import MECHANISMS
from liveupdate.report.matrix import render_json, render_table

CELL = Cell(mechanism="luo-memfd", guest_memory="256M", guests=1)


def document(outcome: str = "PASS", blackout_ms: int = 1000, **checks: str) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "reason": "" if outcome == "PASS" else f"the {outcome} reason",
        "checks": [
            {"id": check, "status": checks.get(check.partition(".")[2], "PASS")}
            for check in ("memory.content", "memory.placement", "guest.liveness")
        ],
        "metrics": [
            {
                "name": "blackout",
                "value": blackout_ms * 10**6,
                "unit": "ns",
                "labels": {"hop": "1"},
            },
            {"name": "phase", "value": 7, "unit": "ns", "labels": {"phase": "prepare"}},
            {"name": "phase", "value": 9, "unit": "ns", "labels": {"phase": "unknown"}},
        ],
    }


def test_cells_are_all_combinations_with_mechanisms_close() -> None:
    cells = make_cells(("a", "b"), ("256M", "1G"), (1, 2))
    assert len(cells) == len({cell.name for cell in cells}) == 8
    assert [cell.mechanism for cell in cells[:2]] == ["a", "b"]


def test_figures_are_median_and_spread_of_runs_that_passed() -> None:
    docs = [("r1", document(blackout_ms=100)), ("r2", document(blackout_ms=300))]
    docs += [("r3", document(blackout_ms=120)), ("r4", document("FAIL", blackout_ms=1))]
    row = summarise(CELL, docs)
    assert row.figures["blackout"] == Figure(count=3, median=120e6, low=100e6, high=300e6)
    assert row.figures["prepare"].count == 3
    assert "kernel" not in row.figures
    assert row.works == "3/4"
    assert row.reason == "the FAIL reason"


def test_worst_check_of_all_runs_is_shown() -> None:
    docs = [("r1", document()), ("r2", document("FAIL", content="FAIL", placement="SKIP"))]
    checks = summarise(CELL, docs).checks
    assert checks == {
        "memory.content": "FAIL",
        "memory.placement": "SKIP",
        "guest.liveness": "PASS",
    }


def test_table_explains_every_cell_that_did_not_pass() -> None:
    rows = [
        summarise(CELL, [("r1", document())]),
        summarise(Cell(mechanism="x", guest_memory="1G", guests=2), [], "no such kernel"),
    ]
    text = render_table(rows)
    assert "1.00 s" in text
    assert "x-1G-2: no such kernel" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    cells = json.loads(render_json(rows))["cells"]
    assert cells[0]["figures"]["blackout"] == {
        "unit": "ns", "count": 1, "median": 1e9, "low": 1e9, "high": 1e9,
    }  # fmt: skip
    assert cells[1]["runs"] == []


Runs = list[tuple[str, str]]


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], Runs]:
    """Runs that leave a result of the given outcome for each mechanism, or raise."""

    def install(outcomes: Mapping[str, str]) -> Runs:
        made: Runs = []

        def prepare(wish: Any, results: Path) -> tuple[str, Path]:
            values = {key: value for key, value, _ in wish.overrides}
            if outcomes[values["mechanism"]] == "refused":
                raise PlanError("no kernel for it")
            return values["mechanism"], results

        def carry_out(_app: object, prepared: tuple[str, Path], _required: object) -> None:
            mechanism, results = prepared
            made.append((mechanism, results.name))
            if outcomes[mechanism] == "crash":
                raise LaunchError("QEMU did not start")
            path = results / f"run-{len(made):03}" / layout.RESULT
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(document(outcomes[mechanism])))

        monkeypatch.setattr(gather, "prepare", prepare)
        monkeypatch.setattr(run_verb, "carry_out", carry_out)
        return made

    return install


@pytest.fixture
def matrix(tmp_path: Path) -> Callable[..., int]:
    def call(*args: str) -> int:
        return main(["matrix", "--results", str(tmp_path / "m"), *args])

    return call


def test_broken_off_matrix_goes_on_where_it_stopped(
    matrix: Callable[..., int], fake_runs: Callable[..., Runs], tmp_path: Path
) -> None:
    made = fake_runs({"luo-memfd": "PASS", "reserved-dax": "ERROR"})
    both = ("--mechanisms", "luo-memfd,reserved-dax", "--runs", "2")
    assert matrix(*both) == ExitCode.ERROR
    assert len(made) == 4
    made.clear()
    again = fake_runs({"luo-memfd": "PASS", "reserved-dax": "FAIL"})
    assert matrix(*both) == ExitCode.FAIL  # the errors have been made good
    assert [mechanism for mechanism, _ in again] == ["reserved-dax"] * 2
    rows = json.loads((tmp_path / "m" / "matrix.json").read_text())["cells"]
    assert [len(row["runs"]) for row in rows] == [2, 2]
    assert "reserved-dax" in (tmp_path / "m" / "matrix.md").read_text()


def test_combination_that_cannot_be_does_not_stop_the_others(
    matrix: Callable[..., int],
    fake_runs: Callable[..., Runs],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = fake_runs({"luo-memfd": "refused", "reserved-dax": "PASS"})
    assert matrix("--mechanisms", "luo-memfd,reserved-dax") == ExitCode.ERROR
    assert made == [("reserved-dax", "reserved-dax-256M-1")]
    assert "luo-memfd-256M-1: no kernel for it" in capsys.readouterr().out


def test_run_that_crashes_is_not_taken_for_one_that_was_made(
    matrix: Callable[..., int], fake_runs: Callable[..., Runs]
) -> None:
    made = fake_runs({"luo-memfd": "crash"})
    assert matrix("--mechanisms", "luo-memfd") == ExitCode.ERROR
    assert matrix("--mechanisms", "luo-memfd") == ExitCode.ERROR
    assert len(made) == 2


def test_all_is_every_mechanism_and_a_lost_guest_is_exit_1(
    matrix: Callable[..., int], fake_runs: Callable[..., Runs]
) -> None:
    made = fake_runs(dict.fromkeys(MECHANISMS, "FAIL"))
    assert matrix("--guest-memory", "256M,1G") == ExitCode.FAIL
    assert len(made) == 2 * len(MECHANISMS)


@pytest.mark.parametrize(
    "args",
    [("--mechanisms", "nonesuch"), ("--guest-memory", "big"), ("--guests", "0"), ("--guests", ",")],
)
def test_wrong_lists_are_usage_errors(matrix: Callable[..., int], args: tuple[str, str]) -> None:
    assert matrix(*args) == ExitCode.USAGE


def test_result_that_cannot_be_read_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    for name, text in (("a", "{"), ("b", json.dumps(document()))):
        (tmp_path / name).mkdir()
        (tmp_path / name / layout.RESULT).write_text(text)
    (tmp_path / "latest").symlink_to("b")
    assert [path for path, _ in verb.read_results(tmp_path)] == [str(tmp_path / "b")]
