# SPDX-License-Identifier: Apache-2.0
"""A sealed run directory: whatever is taken from it, added, swapped, cut or emptied is ERROR."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from liveupdate.core.errors import EvidenceError
from liveupdate.evidence import RunDir, StoreError
from liveupdate.evidence.chain import link, read_seal
from liveupdate.judging.judge import judge
from liveupdate.model import slots
from liveupdate.model.evidence import Incident
from liveupdate.model.verdict import ExitCode, Outcome, Verdict
from liveupdate.report.json_result import render_json
from tests.support import evidence_builder as make
from tests.support.stored_evidence import put

PLAN = make.make_plan(hops=2)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def begin(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", plan=PLAN, scenario="", run_id="abc")


def finish(record: RunDir) -> Path:
    """Close a run, judge it, and store its result."""
    record.close()
    evidence = record.load_evidence()
    text = render_json(PLAN, evidence, judge(PLAN, evidence))
    record.write_report(slots.RESULT, text)
    assert json.loads(text)["seal"] == evidence.seal == read_seal(record.path)
    return record.path


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two hops, with logs."""
    record = begin(tmp_path_factory.mktemp("sealed"))
    (record.path / "boot-0").mkdir()
    (record.path / slots.console(0)).write_text("Linux version\n")
    put(record, make.make_evidence(hops=2))
    return finish(record)


@pytest.fixture
def run(sealed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sealed, tmp_path / sealed.name)


def verdict_of(run: Path) -> Verdict:
    """Judge as the command does: a plan that cannot be used ends it with exit status 3."""
    record = RunDir.open(run)
    return judge(record.load_plan(), record.load_evidence())


def is_error(run: Path) -> bool:
    """Whether the command ends with exit status 3; a file that cannot be used makes it."""
    record = RunDir.open(run)
    try:
        record.load_plan()
    except EvidenceError:
        return True
    evidence = record.load_evidence()
    return bool(evidence.unreadable)


def test_any_file_that_cannot_be_used_makes_the_verdict_an_error(run: Path) -> None:
    (run / slots.console(0)).write_text("")
    assert verdict_of(run).exit_code is ExitCode.ERROR


def files(run: Path) -> list[Path]:
    made_again = {slots.RESULT}
    found = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return [path for path in found if path.relative_to(run).as_posix() not in made_again]


def rewrite(run: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = run / slots.INDEX
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_a_whole_run_passes_and_names_its_seal(run: Path) -> None:
    assert verdict_of(run).outcome is Outcome.PASS
    assert RunDir.open(run).load_evidence().seal == read_seal(run)


WAYS = ("removed", "cut", "emptied", "longer", "link", "fifo")


@pytest.mark.parametrize("first", [0, 3])
def test_any_file_that_is_changed_is_error(run: Path, tmp_path: Path, first: int) -> None:
    for path, how in zip(files(run), itertools.cycle((*WAYS[first:], *WAYS[:first])), strict=False):
        raw = path.read_bytes()
        path.unlink()
        if how == "link":
            (tmp_path / "same").write_bytes(raw)
            path.symlink_to(tmp_path / "same")
        elif how == "fifo":
            os.mkfifo(path)
        elif how != "removed":
            path.write_bytes({"cut": raw[:-1], "emptied": b"", "longer": raw + b"\n"}[how])
        whole = not raw and how in ("cut", "emptied")
        assert is_error(run) != whole, path
        path.unlink(missing_ok=True)
        path.write_bytes(raw)
    assert verdict_of(run).outcome is Outcome.PASS


@pytest.mark.parametrize("name", ["evidence/x", "evidence/hop-1/vm0/costs.json", "boot-9/x", "x"])
def test_any_file_that_is_added_is_error(run: Path, name: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("")
    assert "was added" in RunDir.open(run).load_evidence().unreadable[name]
    assert is_error(run)


def test_files_that_are_swapped_between_hops_are_error(run: Path) -> None:
    first, second = run / slots.hop_dir(1), run / slots.hop_dir(2)
    for name in ("before.json", "vm0/ticks.jsonl", "vm0/watched.json"):
        one, other = (first / name).read_bytes(), (second / name).read_bytes()
        (first / name).write_bytes(other)
        (second / name).write_bytes(one)
        assert is_error(run), name
        (first / name).write_bytes(one)
        (second / name).write_bytes(other)


def test_any_line_of_the_index_that_is_changed_is_error(run: Path) -> None:
    path = run / slots.INDEX
    good = path.read_bytes()
    for at in range(good.count(b"\n")):
        ways = (
            lambda lines, at=at: lines[:at] + lines[at + 1 :],
            lambda lines, at=at: [*lines[:at], lines[at], *lines[at:]],
            lambda lines, at=at: [*lines[:at], lines[at].replace(b"0", b"1"), *lines[at + 1 :]],
            lambda lines, at=at: lines[:at],
        )
        rewrite(run, ways[at % len(ways)])
        assert path.read_bytes() == good or is_error(run), at
        path.write_bytes(good)
    assert verdict_of(run).outcome is Outcome.PASS


def test_a_run_under_the_name_of_another_is_error(run: Path) -> None:
    other = run.rename(run.with_name("20260101T000000Z-other"))
    assert is_error(other)
    assert "is named" in RunDir.open(other).load_evidence().unreadable[slots.INDEX]


def test_provenance_of_another_run_is_error(tmp_path: Path) -> None:
    record = RunDir.create(tmp_path / "runs", plan=PLAN, scenario="", run_id="other")
    put(record, make.make_evidence(hops=2))
    record.close()
    assert record.load_evidence().unreadable == {slots.PROVENANCE.place: "it is of run 'abc'"}


def test_a_chain_that_was_made_anew_does_not_fit_the_result(run: Path) -> None:
    """The owner of the directory can make a new chain; the seal that was noted down differs."""

    def forge(lines: list[bytes]) -> list[bytes]:
        made, prev = [], ""
        for line in lines:
            row = json.loads(line)
            row["prev"] = prev
            gone = slots.INCIDENTS.place
            if row.get("path") != gone:
                if "closed" in row:
                    row["closed"] = [each for each in row["closed"] if each["path"] != gone]
                text, prev = link(**row)
                made.append(text.encode() + b"\n")
        return made

    before = read_seal(run)
    rewrite(run, forge)
    (run / slots.INCIDENTS.place).unlink()
    assert slots.RESULT in RunDir.open(run).load_evidence().unreadable
    (run / slots.RESULT).unlink()
    assert read_seal(run) != before


def test_a_chain_that_was_taken_off_does_not_fit_the_result(run: Path) -> None:
    def strip(lines: list[bytes]) -> list[bytes]:
        rows = [json.loads(line) for line in lines]
        kept = [{k: v for k, v in row.items() if k != "prev"} for row in rows if "path" in row]
        return [json.dumps(row).encode() + b"\n" for row in kept]

    rewrite(run, strip)
    evidence = RunDir.open(run).load_evidence()
    assert evidence.seal is None and slots.RESULT in evidence.unreadable
    assert is_error(run)


# --- writes that fail


def test_a_write_that_failed_once_is_error_for_ever(tmp_path: Path) -> None:
    record = begin(tmp_path)
    put(record, make.make_evidence(hops=2))
    record._files.broken = FULL
    record.add_incident(Incident(kind="panic", hop=1, text="gone"))
    record._files.broken = None
    run = finish(record)
    assert is_error(run)
    assert "No space left" in RunDir.open(run).load_evidence().unreadable[slots.INCIDENTS.place]


@pytest.mark.parametrize("follows", [True, False])
def test_rows_that_were_entered_and_not_stored_are_error_though_others_follow(
    tmp_path: Path, follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed between the two; another one continues."""
    first = begin(tmp_path)
    put(first, make.make_evidence(hops=2))
    lost = Incident(kind="panic", hop=1, text="gone")
    with monkeypatch.context() as patch:
        patch.setattr("liveupdate.evidence.files.write_atomic", lambda *_a, **_k: None)
        patch.setattr(
            "liveupdate.evidence.files.append_line",
            lambda path, line, **_k: _append(path, line) if path.name == "index.jsonl" else None,
        )
        first.add_incident(lost)
    second = RunDir.reopen(first.path)
    if follows:
        second.add_incident(Incident(kind="fault", hop=1, text="x"))
    assert is_error(finish(second))


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def test_what_another_process_continues_is_one_chain(tmp_path: Path) -> None:
    first = begin(tmp_path)
    put(first, make.make_evidence(hops=2))
    first.add_incident(Incident(kind="fault", hop=1, text="one"))
    second = RunDir.reopen(first.path)
    second.add_incident(Incident(kind="fault", hop=1, text="two"))
    run = finish(second)
    evidence = RunDir.open(run).load_evidence()
    assert evidence.unreadable == {} and len(evidence.incidents) == 2
    assert verdict_of(run).outcome is Outcome.PASS


def test_what_was_altered_before_another_process_continues_is_error(tmp_path: Path) -> None:
    first = begin(tmp_path)
    put(first, make.make_evidence(hops=2))
    first.add_incident(Incident(kind="panic", hop=1, text="one"))
    (first.path / slots.INCIDENTS.place).write_bytes(b"")
    second = RunDir.reopen(first.path)
    second.add_incident(Incident(kind="fault", hop=1, text="two"))
    assert is_error(finish(second))


def test_a_run_is_not_over_before_its_closing_record(run: Path) -> None:
    rewrite(run, lambda lines: lines[:-1])
    assert "no closing record" in RunDir.open(run).load_evidence().unreadable[slots.INDEX]
    assert is_error(run)


def test_what_could_not_be_stored_is_checked_at_the_end_of_a_step(tmp_path: Path) -> None:
    record = begin(tmp_path)
    record.check_stored()
    record._files.broken = FULL
    record.set_rolled_back()
    with pytest.raises(StoreError, match="No space left"):
        record.check_stored()


def test_journal_and_console_of_an_update_may_grow_after_it_was_judged(tmp_path: Path) -> None:
    record = begin(tmp_path)
    (record.path / slots.JOURNAL).write_text("{}\n")
    put(record, make.make_evidence(hops=2))
    run = finish(record)
    with (run / slots.JOURNAL).open("a") as journal:
        journal.write("{}\n")
    (run / "resumed-1").mkdir()
    (run / "resumed-1" / "console.log").write_text("x")
    assert verdict_of(run).outcome is Outcome.PASS
    (run / slots.JOURNAL).write_text("[]\n{}\n")
    assert is_error(run)


# --- who may read what


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "evidence/../../secret"])
def test_a_name_that_leads_out_of_the_directory_is_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    record = begin(tmp_path)
    artifact = {"path": name, "sha256": "0" * 64, "size_bytes": 6}
    record._files._enter(sync=False, **artifact)
    assert name not in {each.path for each in record.artifacts()}
    assert record.load_evidence().unreadable[name] == "the file is missing"


def test_a_sparse_file_of_any_size_is_not_read(run: Path) -> None:
    path = run / slots.KERNEL_AFTER.path(1)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert is_error(run)


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/environ"])
def test_a_link_to_something_else_is_not_followed(run: Path, path: str) -> None:
    console = run / slots.console(0)
    console.unlink()
    console.symlink_to(path)
    assert is_error(run)
    assert slots.console(0) not in {each.path for each in RunDir.open(run).artifacts()}
