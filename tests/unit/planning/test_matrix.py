# SPDX-License-Identifier: Apache-2.0
"""The matrix of mechanisms: what is run, what is not run again, what its table may say."""

from __future__ import annotations

import itertools
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from liveupdate.cli import matrix_jobs, prepare_run
from liveupdate.cli import run as run_verb
from liveupdate.cli.app import main
from liveupdate.core.errors import BuildError, LaunchError, PlanError
from liveupdate.images.codelines import count_lines
from liveupdate.model import slots
from liveupdate.model.mechanism import Trait, Traits
from liveupdate.model.verdict import ExitCode
from liveupdate.planning.matrix import COLUMNS, Cell, Figure, Row, fit_slope, make_cells, summarise
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.report.matrix import Mechanism, render_json, render_table
from liveupdate.report.matrix_svg import render_lines, render_plots
from liveupdate.scenario.load import set_override

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


def rows_of(*cells: tuple[str, str, float], mechanisms: tuple[str, ...] = ("a", "b")) -> list[Row]:
    """Rows of two mechanisms, all passed except what is named (mechanism, size, fragment)."""
    made = make_cells(mechanisms, ("256M", "1G"), (1,), fragments=(0.0, 1.0))
    rows = []
    for cell in made:
        size = 100 if cell.guest_memory == "256M" else 160
        if (cell.mechanism, cell.guest_memory, cell.fragment) in cells:
            rows.append(summarise(cell, [("r", document("FAIL"))]))
        else:
            rows.append(summarise(cell, [("r", document(blackout_ms=size))]))
    return rows


TRAITS = Traits(
    grows=Trait("yes", "it grows"),
    kernel_users=Trait("no", "nobody | can"),
    userspace_users=Trait("yes", "everybody"),
)
KNOWN = {name: Mechanism(traits=TRAITS, code_lines=42) for name in "ab"}


def table_of(rows: list[Row]) -> tuple[list[list[str]], str]:
    """Cells and notes of a rendered table."""
    text = render_table(rows, KNOWN)
    lines = text.partition("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[item.strip() for item in line.strip("|").split(" | ")] for line in lines]
    return cells, text.partition("\n\n")[2]


def test_no_cell_of_the_table_is_empty_or_unexplained() -> None:
    rows = rows_of(("a", "1G", 0.0), ("b", "256M", 1.0))
    rows[0] = summarise(rows[0].cell, [], "no such kernel")
    cells, notes = table_of(rows)
    assert {len(line) for line in cells} == {4}
    for line in cells:
        for item in line[1:] if line is cells[0] else line:
            assert item, line
            if item.startswith("- ") or item == "-":
                assert re.fullmatch(r"- \[\d+\]", item), item
            for number in re.findall(r"\[(\d+)\]", item):
                assert f"\n[{number}] " in notes
    assert "no such kernel" in notes
    assert "the FAIL reason" in notes


def test_table_has_both_sizes_and_how_they_differ() -> None:
    cells, _ = table_of(rows_of())
    lines = {(line[0], line[1]): line[2:] for line in cells}
    assert lines["blackout", "256M"] == ["100 ms", "100 ms"]
    assert lines["blackout", "1G"] == ["160 ms", "160 ms"]
    assert lines["blackout, for each GiB more", "all"] == ["+80 ms (×1.60)"] * 2
    assert lines["fragmented: works", "1G"] == ["1/1", "1/1"]
    assert lines["lines of own kernel code", "any"] == ["42", "42"]


def test_spread_and_number_of_values_are_shown() -> None:
    docs = [("r1", document(blackout_ms=100)), ("r2", document(blackout_ms=300))]
    cells, _ = table_of([summarise(Cell(mechanism="a", guest_memory="1G", guests=1), docs)])
    lines = {line[0]: line[2] for line in cells}
    assert lines["blackout"] == "200 ms (100 ms…300 ms, n=2)"
    assert "fragmented: works" not in lines
    assert "blackout, for each GiB more" not in lines


def test_document_has_figures_reasons_and_slopes() -> None:
    rows = rows_of(("b", "1G", 0.0))
    found = json.loads(render_json(rows, KNOWN))
    assert found["cells"][0]["figures"]["blackout"] == {
        "unit": "ns", "count": 1, "median": 1e8, "low": 1e8, "high": 1e8,
    }  # fmt: skip
    assert all(
        set(cell["figures"]) | set(cell["missing"]) >= {column.key for column in COLUMNS}
        and all(cell["missing"].values())
        for cell in found["cells"]
    )
    slopes = {(each["mechanism"], each["fragment"], each["figure"]) for each in found["slopes"]}
    assert ("a", 0.0, "blackout") in slopes
    assert ("b", 0.0, "blackout") not in slopes  # one size failed
    assert found["mechanisms"]["a"]["kernel_users"]["reason"] == "nobody | can"


def test_slope_needs_two_sizes_and_is_a_fit() -> None:
    rows = [
        summarise(
            Cell(mechanism="a", guest_memory=size, guests=1), [("r", document(blackout_ms=ms))]
        )
        for size, ms in (("512M", 100), ("1G", 150), ("2G", 250))
    ]
    slope = fit_slope(rows, "blackout")
    assert slope is not None
    assert slope.per_gib == pytest.approx(100e6)
    assert slope.ratio == pytest.approx(2.5)
    assert fit_slope(rows[:1], "blackout") is None
    assert fit_slope(rows, "metadata") is None


def test_cells_have_directories_and_scenarios_of_their_own() -> None:
    cells = make_cells(
        ("a",), ("1G",), (1, 2), ("", "/x/new/bzImage", "/x/old/bzImage"), (0.0, 0.8)
    )
    assert len({cell.name for cell in cells}) == len(cells) == 12
    assert all("/" not in cell.name for cell in cells)
    spoilt = next(cell for cell in cells if cell.fragment and cell.next_kernel)
    values = {key: value for key, value, _ in spoilt.overrides()}
    assert values["host.fragment"] == "0.8"
    assert values["next_kernel"] == "/x/new/bzImage"
    assert spoilt.whole.fragment == 0
    assert "host.fragment" not in {key for key, _, _ in spoilt.whole.overrides()}


def test_plots_are_well_formed_and_say_what_they_show() -> None:
    rows = rows_of(("b", "1G", 0.0))
    plots = render_plots(rows)
    for text in plots.values():
        assert ET.fromstring(text).tag.endswith("svg")
    bars = plots["matrix-blackout.svg"]
    assert bars.count("<title>") == 3
    assert "a-1G-1: 160 ms, n=1" in bars
    lines = render_lines([row for row in rows if not row.cell.fragment], "blackout")
    assert "a: +80.0 ms/GiB" in lines
    assert "b: one size only" in lines


def test_plot_of_nothing_says_so() -> None:
    assert "no run gave it" in render_plots([])["matrix-restore.svg"]
    ET.fromstring(render_plots([])["matrix-allocate.svg"])


@pytest.mark.parametrize("name", MECHANISMS)
def test_what_cannot_be_measured_of_a_mechanism_is_said_with_a_reason(name: str) -> None:
    traits = MECHANISMS[name].traits
    for trait in (traits.grows, traits.kernel_users, traits.userspace_users):
        assert trait.answer in ("yes", "no", "partly")
        assert len(trait.reason) > 10
    assert matrix_jobs.describe([name])[name].code_lines >= 0


def test_kernel_code_is_counted_without_comments_and_tests(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a.c").write_text("/* no\n * code */\nint a; // one\n\nint b; /* two */\n")
    (tmp_path / "m/a_kunit.c").write_text("int c;\n" * 50)
    (tmp_path / "m/Makefile").write_text("obj-m := a.o\n")
    (tmp_path / "p.patch").write_text(
        "--- a/mm/x.c\n+++ b/mm/x.c\n@@\n int old;\n+int new;\n+/* said */\n-int gone;\n"
        "--- a/Documentation/x.rst\n+++ b/Documentation/x.rst\n+Text.\n"
    )
    assert count_lines(tmp_path, ("m/*.[ch]",)) == 2
    assert count_lines(tmp_path, ("m/*", "m/a.c", "*.patch")) == 3
    with pytest.raises(BuildError, match="no kernel code"):
        count_lines(tmp_path, ("gone/*.c",))


Runs = list[tuple[str, str]]


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], Runs]:
    """Runs that leave a result of the given outcome for each mechanism, or raise."""
    numbers = itertools.count()

    def install(outcomes: Mapping[str, str]) -> Runs:
        made: Runs = []

        def prepare(_app: object, scenario_args: Any, results: Path) -> tuple[str, Path]:
            values = {key: value for key, value, _ in scenario_args.overrides}
            if outcomes[values["mechanism"]] == "refused":
                raise PlanError("no kernel for it")
            return values["mechanism"], results

        def carry_out(_app: object, prepared: tuple[str, Path], _required: object) -> None:
            mechanism, results = prepared
            made.append((mechanism, results.name))
            if outcomes[mechanism] == "crash":
                raise LaunchError("QEMU did not start")
            path = results / f"run-{next(numbers):03}" / slots.RESULT
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(document(outcomes[mechanism])))

        monkeypatch.setattr(prepare_run, "prepare", prepare)
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
    both = ("--mechanisms", "luo-memfd,reserved-dax", "--runs", "2", "--fragment", "0")
    assert matrix(*both) == ExitCode.ERROR
    assert len(made) == 4
    made.clear()
    again = fake_runs({"luo-memfd": "PASS", "reserved-dax": "FAIL"})
    assert matrix(*both) == ExitCode.FAIL  # the errors have been made good
    assert [mechanism for mechanism, _ in again] == ["reserved-dax"] * 2
    rows = json.loads((tmp_path / "m" / "matrix.json").read_text())["cells"]
    assert [len(row["runs"]) for row in rows] == [2, 2]
    assert "reserved-dax" in (tmp_path / "m" / "matrix.md").read_text()
    ET.parse(tmp_path / "m" / "matrix-blackout.svg")
    again.clear()
    assert matrix(*both, "--dry-run") == ExitCode.FAIL
    assert again == []


def test_combination_that_cannot_be_does_not_stop_the_others(
    matrix: Callable[..., int],
    fake_runs: Callable[..., Runs],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = fake_runs({"luo-memfd": "refused", "reserved-dax": "PASS"})
    args = ("--mechanisms", "luo-memfd,reserved-dax", "--runs", "2", "--fragment-runs", "1")
    assert matrix(*args) == ExitCode.ERROR
    cell = "reserved-dax-256M-1"
    assert [name for _, name in made] == [cell, f"{cell}-fragmented1", cell]
    assert "luo-memfd-256M-1: no run: no kernel for it" in capsys.readouterr().out


def test_run_that_crashes_is_not_taken_for_one_that_was_made(
    matrix: Callable[..., int], fake_runs: Callable[..., Runs]
) -> None:
    made = fake_runs({"luo-memfd": "crash"})
    assert matrix("--mechanisms", "luo-memfd", "--fragment", "0") == ExitCode.ERROR
    assert matrix("--mechanisms", "luo-memfd", "--fragment", "0") == ExitCode.ERROR
    assert len(made) == 2


def test_all_is_every_mechanism_and_a_lost_guest_is_exit_1(
    matrix: Callable[..., int], fake_runs: Callable[..., Runs]
) -> None:
    made = fake_runs(dict.fromkeys(MECHANISMS, "FAIL"))
    assert matrix("--guest-memory", "256M,1G") == ExitCode.FAIL
    assert len(made) == 4 * len(MECHANISMS)
    # what is compared is run close together, and the fragmented runs come in the same round
    assert [mechanism for mechanism, _ in made[: len(MECHANISMS)]] == list(MECHANISMS)


@pytest.mark.parametrize(
    "args",
    [
        ("--mechanisms", "nonesuch"),
        ("--guest-memory", "big"),
        ("--guests", "0"),
        ("--guests", ","),
        ("--fragment", "2"),
        ("--set", "mechanism=x"),
        ("--set", "x"),
        ("--next-kernels", ","),
    ],
)
def test_wrong_lists_are_usage_errors(matrix: Callable[..., int], args: tuple[str, str]) -> None:
    assert matrix(*args) == ExitCode.USAGE


def test_result_that_cannot_be_read_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    for name, text in (("a", "{"), ("b", json.dumps(document()))):
        (tmp_path / name).mkdir()
        (tmp_path / name / slots.RESULT).write_text(text)
    (tmp_path / "latest").symlink_to("b")
    assert [path for path, _ in matrix_jobs.read_results(tmp_path)] == [str(tmp_path / "b")]


def test_jobs_are_children_that_run_at_the_same_time(
    matrix: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each child waits until it sees another: one after the other they would never end."""
    text = json.dumps(document())
    script = f"""
import sys, time, pathlib
here = pathlib.Path(sys.argv[-1])
(here / "began").touch()
until = time.monotonic() + 30
while len(list(here.parent.glob("*/began"))) < 2:
    if time.monotonic() > until:
        sys.exit(3)
    time.sleep(0.05)
(here / "run").mkdir()
(here / "run" / "{slots.RESULT}").write_text({text!r})
"""

    def argv(cell: Cell, _scenario: object, _more: object, directory: Path) -> tuple[str, ...]:
        return (sys.executable, "-c", script, str(directory))

    monkeypatch.setattr(matrix_jobs, "child_argv", argv)
    both = ("--mechanisms", "luo-memfd,reserved-dax", "--fragment", "0")
    assert matrix(*both, "--jobs", "2") == ExitCode.PASS


def test_child_that_fails_says_why(
    matrix: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import sys; print('liveupdate: error: no such kernel', file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(matrix_jobs, "child_argv", lambda *_args: (sys.executable, "-c", script))
    assert matrix("--mechanisms", "luo-memfd", "--jobs", "2", "--runs", "3") == ExitCode.ERROR
    assert "no run: no such kernel" in capsys.readouterr().out


def test_child_is_told_the_whole_cell() -> None:
    cell = make_cells(("luo-memfd",), ("1G",), (2,), ("/k/bzImage",), (0.5,))[0]
    more = [set_override("observe.after=2s")]
    argv = matrix_jobs.child_argv(cell, "two-guests", more, Path("/r"))
    assert argv[1:5] == ("-m", "liveupdate", "run", "two-guests")
    for wanted in ("mechanism=luo-memfd", "guests=2", "guest.*.memory=1G", "host.fragment=0.5",
                   "next_kernel=/k/bzImage", "observe.after=2s"):  # fmt: skip
        assert f"--set={wanted}" in argv
    assert argv[-2:] == ("--results", "/r")
