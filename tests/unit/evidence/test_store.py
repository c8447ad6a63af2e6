# SPDX-License-Identifier: Apache-2.0
"""The run directory: what is put is what is read, and whatever befalls a file is noticed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from liveupdate.core.errors import EvidenceError
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir, StoreError, write_atomic
from liveupdate.judging.judge import judge
from liveupdate.model import slots
from liveupdate.model.costs import HopCosts
from liveupdate.model.evidence import AgentPing, Evidence, Incident, SessionFacts, VmmStatus
from liveupdate.model.iommu_samples import TableSample
from liveupdate.model.plan import Plan
from liveupdate.model.slots import Slot
from liveupdate.model.verdict import ExitCode, Outcome
from liveupdate.report.json_result import render_json
from liveupdate.report.text import render_text
from tests.support import evidence_builder as make
from tests.support import iommu_evidence as seen
from tests.support.stored_evidence import files_of, put

PLAN = make.make_plan()
#: that of the built evidence
RUN_ID = "abc"
#: with costs told on the outgoing side and nothing on the incoming one
EVIDENCE = make.with_hop(
    make.make_evidence(), costs=HopCosts(before=make.COSTS, handed_over=make.HANDED_OVER)
)


def without_artifacts(evidence: Evidence) -> Evidence:
    """The store makes the artifacts of traces itself."""
    hops = tuple(
        structs.replace(
            hop, guests=tuple(structs.replace(each, artifacts=()) for each in hop.guests)
        )
        for hop in evidence.hops
    )
    return structs.replace(evidence, hops=hops, seal="")


def make_record(tmp_path: Path, plan: Plan = PLAN) -> RunDir:
    results = tmp_path / "runs"
    return RunDir.create(results, plan=plan, scenario='name = "test"\n', run_id=RUN_ID)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, written once: every file is fsync'ed, which takes its time."""
    made = make_record(tmp_path_factory.mktemp("finished"))
    put(made, EVIDENCE)
    made.close()
    return made.path


@pytest.fixture
def record(finished: Path, tmp_path: Path) -> RunDir:
    return RunDir.open(shutil.copytree(finished, tmp_path / finished.name))


def reload(record: RunDir) -> Evidence:
    return RunDir.open(record.path).load_evidence()


# --- whole runs


def test_what_was_put_is_read_back(record: RunDir) -> None:
    evidence = reload(record)
    assert evidence.unreadable == {}
    assert without_artifacts(evidence) == EVIDENCE
    assert RunDir.open(record.path).load_plan() == PLAN


def test_verdict_is_the_same_without_the_machine(record: RunDir) -> None:
    assert judge(PLAN, reload(record)) == judge(PLAN, EVIDENCE)
    assert judge(PLAN, reload(record)).exit_code is ExitCode.PASS


def test_traces_name_their_files(record: RunDir) -> None:
    paths = [artifact.path for artifact in reload(record).hops[0].guests[0].artifacts]
    assert paths == sorted(path for path, slot in files_of(EVIDENCE) if "guests." in slot.field)


def test_incidents_pings_and_roll_back_are_read_back(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    pings = (AgentPing(host_ns=1, realtime_ns=None), AgentPing(host_ns=2, realtime_ns=3))
    record.add(slots.PINGS, pings, 1, "vm0")
    record.add_incident(Incident(kind="panic", hop=1, text="µ\n\x00"))
    record.set_rolled_back()
    record.close()
    evidence = reload(record)
    assert evidence.hops[0].guests[0].agent_pings == pings
    assert evidence.incidents == (Incident(kind="panic", hop=1, text="µ\n\x00"),)
    assert evidence.rolled_back


def test_run_that_died_in_the_middle_is_readable(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    half = structs.replace(make.make_hop(1), after=None, sessions=())
    put(record, structs.replace(EVIDENCE, hops=(half,)))
    # no close(): the process is gone
    evidence = reload(record)
    assert evidence.unreadable == {slots.INDEX: "no closing record: the run was cut off"}
    assert len(evidence.hops[0].guests[0].ticks) == len(make.make_ticks())
    assert judge(PLAN, evidence).exit_code is ExitCode.ERROR


# --- the directory


def test_directory_is_private_named_by_time_and_latest(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    first = RunDir.create(tmp_path, plan=PLAN, scenario="", run_id="one", now=now)
    second = RunDir.create(tmp_path, plan=PLAN, scenario="", run_id="two", now=now)
    assert first.path.name == "20260102T030405Z-one" and first.run_id == "one"
    assert first.path.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "latest").resolve() == second.path.resolve()
    assert RunDir.open(tmp_path / "latest").path == second.path.resolve()
    assert not [path for path in tmp_path.rglob(".*")], "no temporary file stays"


def test_nothing_that_exists_is_reused_or_overwritten(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    (tmp_path / "latest").mkdir()
    RunDir.create(tmp_path, plan=PLAN, scenario="", run_id="one", now=now)
    with pytest.raises(StoreError, match="exists"):
        RunDir.create(tmp_path, plan=PLAN, scenario="", run_id="one", now=now)
    assert (tmp_path / "latest").is_dir() and not (tmp_path / "latest").is_symlink()


def test_results_directory_that_is_a_file_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write") as caught:
        make_record(tmp_path / "file")
    assert "--results" in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_is_no_run_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EvidenceError, match="neither|not a run"):
        RunDir.open(tmp_path / name)


def test_failed_atomic_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
    try:
        with pytest.raises(StoreError):
            write_atomic(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_threads_do_not_tear_lines(tmp_path: Path) -> None:
    record = make_record(tmp_path)

    def work(number: int) -> None:
        for index in range(50):
            name = f"s{number}-{index}"
            session = SessionFacts(name=name, error=None, tokens=1, retrieve_ns=1)
            record.add(slots.SESSIONS, [session], 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record.close()
    evidence = reload(record)
    assert evidence.unreadable == {}
    assert len({session.name for session in evidence.hops[0].sessions}) == 200


def test_steps_are_logged(record: RunDir) -> None:
    steps = Steps()
    steps.subscribe(record.log_step)
    with steps.step("boot", kernel=Path("x")):
        pass
    events = [json.loads(line) for line in (record.path / slots.EVENTS).read_text().splitlines()]
    assert [(event["kind"], event["name"]) for event in events] == [
        ("start", "boot"),
        ("stop", "boot"),
    ]


# --- what befalls files


FILES = [slots.INDEX, slots.INCIDENTS.place, *(path for path, _slot in files_of(EVIDENCE))]


@pytest.mark.parametrize("name", FILES)
def test_deleted_file_is_error_and_named(record: RunDir, name: str) -> None:
    (record.path / name).unlink()
    verdict = judge(PLAN, reload(record))
    assert verdict.exit_code is ExitCode.ERROR
    assert name in verdict.reason or name in reload(record).unreadable


@pytest.mark.parametrize("name", [name for name in FILES if name != slots.INCIDENTS.place])
@pytest.mark.parametrize("how", ["truncated", "emptied", "garbage", "directory"])
def test_file_that_was_spoilt_is_never_pass(record: RunDir, name: str, how: str) -> None:
    path = record.path / name
    raw = path.read_bytes()
    if how == "directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"truncated": raw[:-1], "emptied": b"", "garbage": b"\xff\x00{"}[how])
    assert judge(PLAN, reload(record)).outcome is Outcome.ERROR


def test_spoilt_incidents_are_error_though_there_were_none(record: RunDir) -> None:
    (record.path / slots.INCIDENTS.place).write_text("{}\n")
    assert judge(PLAN, reload(record)).outcome is Outcome.ERROR


def test_file_that_was_slipped_in_is_not_believed(record: RunDir) -> None:
    (record.path / slots.ROLLED_BACK.place).write_text('{"format":"rolled-back/1","value":true}')
    evidence = reload(record)
    assert not evidence.rolled_back
    assert "index" in evidence.unreadable[slots.ROLLED_BACK.place]


def test_line_taken_out_of_the_index_is_error(record: RunDir) -> None:
    path = record.path / slots.INDEX
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "vmm.json" not in line))
    assert judge(PLAN, reload(record)).outcome is Outcome.ERROR


@pytest.mark.parametrize("name", ["freeze.xxh3", "boot.xxh3"])
def test_one_byte_changed_in_a_digest_file_is_error_and_names_the_page(
    record: RunDir, name: str
) -> None:
    path = record.path / f"{slots.hop_dir(1)}/vm0/{name}"
    path.write_bytes(make.flip(path.read_bytes(), 8 * 321))
    verdict = judge(PLAN, reload(record))
    assert verdict.exit_code is ExitCode.ERROR and "altered" in verdict.reason
    content = next(check for check in verdict.checks if check.id == "memory.content")
    assert "page 321 " in content.reason and "evidence altered" in content.reason


def test_one_byte_changed_in_parsed_evidence_is_error(record: RunDir) -> None:
    path = record.path / slots.KERNEL_AFTER.path(1)
    path.write_bytes(path.read_bytes().replace(b'"generation": 1', b'"generation": 9'))
    verdict = judge(PLAN, reload(record))
    assert verdict.exit_code is ExitCode.ERROR
    assert "altered" in verdict.reason


@pytest.mark.parametrize("text", ["", "{", '{"format":"plan/1","value":{}}'])
def test_spoilt_plan_is_a_typed_error(record: RunDir, text: str) -> None:
    (record.path / slots.PLAN).write_text(text)
    with pytest.raises(EvidenceError, match=r"plan\.json"):
        RunDir.open(record.path).load_plan()


def test_plan_changed_afterwards_is_refused(record: RunDir) -> None:
    path = record.path / slots.PLAN
    path.write_text(path.read_text().replace('"stall_s": 1.0', '"stall_s": 99.0'))
    with pytest.raises(EvidenceError, match="altered"):
        RunDir.open(record.path).load_plan()


# --- a disk that is full


def test_full_disk_costs_evidence_but_not_the_verdict(tmp_path: Path) -> None:
    plan, both = make.make_plan(hops=2), make.make_evidence(hops=2)
    record = make_record(tmp_path, plan)
    first, second = both.hops
    put(record, structs.replace(both, hops=(first,)))
    record.fill_disk()
    put(record, structs.replace(both, provenance=None, hops=(second,)))
    record.add_incident(Incident(kind="harness", hop=2, text="disk full"))
    steps = Steps()
    steps.subscribe(record.log_step)
    with steps.step("goes on"):
        pass
    record.close()
    assert record.failure is not None and "No space left" in record.failure
    with pytest.raises(StoreError, match="No space left"):
        record.write_report(slots.RESULT, "{}")

    evidence = record.load_evidence()
    assert evidence.incidents == (Incident(kind="harness", hop=2, text="disk full"),)
    verdict = judge(plan, evidence)
    assert verdict.exit_code is ExitCode.ERROR
    content = next(check for check in verdict.checks if check.id == "memory.content")
    assert content.status is Outcome.ERROR and "No space left" in content.reason
    assert "ERROR" in render_text(plan, evidence, verdict)
    assert json.loads(render_json(plan, evidence, verdict))["outcome"] == "ERROR"


def test_run_directory_that_vanished_is_error(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    for path in sorted(record.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    record.path.rmdir()
    (tmp_path / "runs" / "latest").unlink()
    (tmp_path / "runs").rmdir()
    (tmp_path / "runs").write_text("in the way")
    put(record, EVIDENCE)
    record.close()
    assert record.failure is not None
    assert judge(PLAN, record.load_evidence()).exit_code is ExitCode.ERROR


def test_reports_and_artifacts(record: RunDir) -> None:
    (record.path / "boot-0").mkdir()
    (record.path / "boot-0" / "console.log").write_bytes(b"Linux version\n")
    record.write_report(slots.RESULT, "{}")
    paths = {artifact.path for artifact in record.artifacts()}
    assert {slots.PLAN, slots.console(0), slots.FREEZE.raw_path(1, "vm0")} <= paths
    assert slots.RESULT not in paths


# --- devices


def device_evidence() -> Evidence:
    table = TableSample(host_ns=1, requester=seen.FUNCTION, top=seen.TOP, pages=0, first="")
    return seen.spoil(seen.make_evidence(), tables=(table,))


@pytest.fixture(scope="module")
def with_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan, evidence = seen.make_plan(), device_evidence()
    made = make_record(tmp_path_factory.mktemp("with-device"), plan)
    put(made, evidence)
    made.close()
    read = RunDir.open(made.path).load_evidence()
    assert (read.unreadable, read.hops[0].iommu) == ({}, evidence.hops[0].iommu)
    assert judge(plan, read).outcome is Outcome.PASS
    return made.path


def test_one_altered_byte_of_stored_mappings_makes_the_judge_say_fail(
    with_device: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(with_device, tmp_path / with_device.name)
    path = run / slots.MAPPINGS.raw_path(1, value=seen.make_mapping(1, "outside", "after"))
    raw = bytearray(path.read_bytes())
    raw[9] ^= 0x40
    path.write_bytes(raw)
    verdict = judge(seen.make_plan(), RunDir.open(run).load_evidence())
    check = next(check for check in verdict.checks if check.id == "iommu.mappings")
    assert (check.status, "evidence altered" in check.reason) == (Outcome.FAIL, True)
    assert verdict.exit_code is ExitCode.ERROR


@pytest.mark.parametrize(
    "name",
    ["devices.json", "watch.json", "samples.jsonl", "mappings.jsonl", "configs.jsonl", "kept.json"],
)
def test_other_evidence_of_devices_that_is_altered_or_gone_is_error(
    with_device: Path, tmp_path: Path, name: str
) -> None:
    cut, gone = (
        shutil.copytree(with_device, tmp_path / how / with_device.name) for how in ("cut", "gone")
    )
    path = cut / f"evidence/iommu/hop-1/{name}"
    path.write_bytes(path.read_bytes()[:-20])
    (gone / f"evidence/iommu/hop-1/{name}").unlink()
    for run in (cut, gone):
        verdict = judge(seen.make_plan(), RunDir.open(run).load_evidence())
        assert verdict.exit_code is ExitCode.ERROR, run


DEVICE_EVIDENCE = device_evidence()
WANTED = [
    pytest.param(plan, evidence, path, slot, id=f"{path}")
    for plan, evidence in ((PLAN, EVIDENCE), (seen.make_plan(), DEVICE_EVIDENCE))
    for path, slot in dict(files_of(evidence)).items()
]


@pytest.mark.parametrize(("plan", "evidence", "path", "slot"), WANTED)
def test_every_check_that_wants_a_file_misses_it(
    plan: Plan,
    evidence: Evidence,
    path: str,
    slot: Slot[Any],
    finished: Path,
    with_device: Path,
    tmp_path: Path,
) -> None:
    whole = finished if evidence is EVIDENCE else with_device
    run = shutil.copytree(whole, tmp_path / whole.name)
    (run / path).unlink()
    verdict = judge(plan, RunDir.open(run).load_evidence())
    status = {check.id: check.status for check in verdict.checks}
    skips = dict(plan.skips)
    # nothing need have happened: that the file was lost is then for handover.kho to say
    wanting = ("handover.kho",) if slot in (slots.TABLES, slots.DEVICE_EVENTS) else slot.checks
    for check in wanting:
        assert check in skips or status[check] is Outcome.ERROR, check
    assert verdict.exit_code is ExitCode.ERROR


def test_every_slot_is_in_one_of_the_runs_above() -> None:
    found = {slot for each in (EVIDENCE, DEVICE_EVIDENCE) for _path, slot in files_of(each)}
    # a guest of another kind, a device of the agent's own, an update that was given up, a fault
    rest = {slots.PINGS, slots.DEVICE, slots.FRAMES, slots.ROLLED_BACK}
    rest |= {slots.INCIDENTS, slots.COSTS_AFTER, slots.STRUCK}
    assert set(slots.SLOTS) - found == rest


@pytest.mark.parametrize("name", ["../../other", ".."])
def test_a_guest_whose_name_leads_out_of_the_directory_is_not_stored(
    tmp_path: Path, name: str
) -> None:
    record = make_record(tmp_path)
    before = {path for path in tmp_path.rglob("*")}
    record.put(slots.VMM, VmmStatus(status="x"), 1, name)
    record.add(slots.PINGS, (AgentPing(host_ns=1, realtime_ns=2),), 1, f"x/../../../{name}")
    assert {path for path in tmp_path.rglob("*")} == before
    assert record.failure is not None and "leads out" in record.failure


def test_text_that_is_no_utf8_is_stored(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.add_incident(Incident(kind="panic", hop=1, text="\ud800 gone"))
    record.put(slots.VMM, VmmStatus(status="\udfff"), 1, "vm0")
    record.close()
    evidence = reload(record)
    assert evidence.unreadable == {} and evidence.incidents[0].text == "? gone"
