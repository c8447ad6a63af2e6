# SPDX-License-Identifier: Apache-2.0
"""The bench's table: ratios, bounds, what another commit cannot do, and who is measured when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench import rows
from tests.bench.rows import Row, header, per_subject
from tests.bench.subject import Failed, Measured, Subject, alternate, find_line, read_run

NEW, OLD = (
    Subject(name=name, root=Path("/"), python=Path("/python"), results=Path("/runs"), env={})
    for name in ("new", "old")
)


def test_a_row_has_the_bound_of_the_first_and_a_ratio_for_the_other() -> None:
    assert header(["new"]) == ("budget", "measured", "bound", "")
    assert header(["new", "old"])[4:] == ("old", "new / old")
    row = Row(what="warm run", values=(9.0, 6.0), unit="s", bound=25)
    assert tuple(row.cells()) == ("warm run", "9.00 s", "25 s", "holds", "6.00 s", "1.50")
    row = Row(what="warm run", values=(26.0, None), unit="s", bound=25)
    assert tuple(row.cells()) == ("warm run", "26.00 s", "25 s", "EXCEEDED", "absent", "absent")
    row = Row(what="PRESERVE_FD", values=(2e-6, 1e-6), unit="s")
    assert tuple(row.cells()) == ("PRESERVE_FD", "0.00 s", "", "", "0.00 s", "–")


def test_subjects_take_turns_for_each_work() -> None:
    done: list[str] = []

    def note(work: str) -> Any:
        return lambda subject: done.append(f"{subject.name} {work}")

    found = alternate([NEW, OLD], 2, [note("a"), note("b")], done.append)
    assert done == ["new a", "old a", "new b", "old b"] * 2
    assert [[len(works) for works in subject] for subject in found] == [[2, 2], [2, 2]]


def test_what_another_commit_cannot_do_is_left_out_and_said() -> None:
    said: list[str] = []
    tries: list[str] = []

    def work(subject: Subject) -> float:
        tries.append(subject.name)
        if subject is OLD and len(tries) > 2:
            raise Failed("old: exit 2")
        return 1.0

    found = alternate([NEW, OLD], 3, [work], said.append)
    assert tries == ["new", "old", "new", "old", "new"]
    assert said == ["bench: old: exit 2"]
    assert per_subject(found, rows.median) == (1.0, None)
    with pytest.raises(Failed):
        alternate([OLD, NEW], 1, [work], said.append)


def measured(**phases_s: float) -> Measured:
    return Measured(
        wall_s=10.0, phases_s=phases_s, steps_s={}, blackout_s=3.0, metrics=[], agent_start_s=None
    )


def test_a_figure_that_another_commits_runs_lack_is_absent_and_of_ours_an_error() -> None:
    with_it, without = measured(kernel=2.0), measured()

    def kernel(runs: list[Measured]) -> float:
        return rows.median([run.phases_s["kernel"] for run in runs])

    assert per_subject([[[with_it]], [[without]]], kernel) == (2.0, None)
    assert per_subject([[[with_it]], [[]]], kernel) == (2.0, None)
    with pytest.raises(KeyError):
        per_subject([[[without]], [[with_it]]], kernel)
    with pytest.raises(ValueError, match="max"):
        per_subject([[[without]]], lambda runs: rows.largest(runs[0], "iommu.walk"))


def test_agent_start_is_from_the_kernels_line_about_init_to_the_hello(tmp_path: Path) -> None:
    boot = tmp_path / "boot-1"
    boot.mkdir()
    (boot / "console.log").write_bytes(b"first\n[ 1.0] Run /init as init process\nlast\n")
    (boot / "console.times").write_text("0 100\n6 1500000000\n39 1700000000\n")
    (tmp_path / "events.jsonl").write_text(
        '{"kind":"start","name":"bring-up"}\n{"kind":"stop","name":"bring-up","elapsed_s":2.5}\n'
    )
    document = {
        "phases": [{"name": "kernel", "began_ns": 100, "ended_ns": 2_000_000_000}],
        "metrics": [{"name": "blackout", "value": 3e9, "labels": {}}],
    }
    run = read_run(document, tmp_path, 9.0)
    assert run.agent_start_s == 0.5
    assert (run.blackout_s, run.steps_s) == (3.0, {"bring-up": 2.5})
    assert find_line(boot, b"no such line") is None
    (boot / "console.log").write_bytes(b"first\nsecond\n")
    assert read_run(document, tmp_path, 9.0).agent_start_s is None


def test_every_row_of_runs_is_measured_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows come from `Subject.run`, and the older commit's failure costs its figures only."""
    phases = dict.fromkeys(
        ("outgoing", "kernel", "vmm-start", "load-state", "resume", "blackout-host"), 1.0
    )
    steps = dict.fromkeys(("boot-host", "boot-guests", "observe-before", "observe-after"), 1.0)
    metrics = [
        {"name": "iommu.walk", "value": 2e8, "labels": {"view": "outside"}},
        {"name": "iommu.sampling.cpu", "value": 2.0, "labels": {}},
        {"name": "iommu.preserve", "value": 8e6, "labels": {}},
    ]

    def run(subject: Subject, *args: str) -> Measured:
        if subject is OLD and "vfio-kinds" in args:
            raise Failed("old: no such scenario")
        return Measured(
            wall_s=10.0 if subject is NEW else 8.0,
            phases_s={**phases, "preserve-state": 0.0},
            steps_s=steps,
            blackout_s=3.0,
            metrics=metrics,
            agent_start_s=0.4,
        )

    monkeypatch.setattr(Subject, "run", run)
    said: list[str] = []
    table = {row.what: row.values for row in rows.measure_runs([NEW, OLD], 2, said.append)}
    assert table["cold run"] == table["warm run"] == (10.0, 8.0)
    assert table["blackout"] == (3.0, 3.0)
    assert table["agent start: incoming kernel's init to the agent's hello"] == (0.4, 0.4)
    assert table["blackout of 1 GiB / of 256 MiB"] == (1.0, 1.0)
    devices = {row.what: row.values for row in rows.measure_devices([NEW, OLD], said.append)}
    assert devices["sampling of the IOMMU, of one core"] == (2.0, None)
    assert said == ["bench: old: no such scenario"]
