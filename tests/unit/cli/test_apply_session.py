# SPDX-License-Identifier: Apache-2.0
"""What `apply`, `resume` and `abort` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from liveupdate.cli import main
from liveupdate.cli.app import App
from liveupdate.cli.apply_session import Place, Session, find_place_of
from liveupdate.core.errors import ScenarioError
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir
from liveupdate.model.verdict import ExitCode, Outcome
from liveupdate.operate.preflight import Local
from liveupdate.operate.wal import Wal
from liveupdate.planning.mechanisms import MECHANISMS
from tests.support import evidence_builder as make
from tests.support.stored_evidence import put


def describe(tmp_path: Path, name: str = "box", *, port: int = 22) -> Path:
    """Write the description of a machine, and allow it."""
    machines = tmp_path / "liveupdate" / "machines"
    machines.mkdir(parents=True, exist_ok=True)
    (machines / "key").write_text("")
    path = machines / f"{name}.toml"
    path.write_text(
        f'address = "192.0.2.1"\nport = {port}\nhost_key = "key"\nkey = "key"\nappend = ""\n'
        '[power]\ncommand = ["true"]\n[console]\nsocket = "/console"\n'
    )
    return path


def test_the_run_directory_does_not_choose_the_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    good = describe(tmp_path)
    other = tmp_path / "box.toml"
    other.write_text(good.read_text().replace('"true"', '"false"'))
    (tmp_path / "key").write_text("")
    begin = {"address": "192.0.2.1:22", "host": "box"}
    run = tmp_path / "run"
    assert find_place_of(run, {**begin, "place": str(good)}, None).machine.power == ("true",)
    for place in (other, "box.toml", "", good.parent / ".." / "x" / "box.toml"):
        with pytest.raises(ScenarioError, match="name the host with --host"):
            find_place_of(run, {**begin, "place": str(place)}, None)
    assert find_place_of(run, {**begin, "place": str(other)}, "box").machine.power == ("true",)
    assert find_place_of(run, {**begin, "place": "x"}, str(other)).machine.power == ("false",)
    with pytest.raises(ScenarioError, match=r"it is an update of 192\.0\.2\.9:22"):
        find_place_of(run, {**begin, "address": "192.0.2.9:22", "place": str(good)}, None)


@pytest.mark.parametrize("verb", ["resume", "abort"])
def test_a_host_that_is_not_in_the_allow_list_is_not_touched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    place = describe(tmp_path)
    record = RunDir.create(tmp_path / "runs", plan=make.make_plan(), scenario="")
    with Wal(record.path, create=True) as journal:
        journal.append("begin", update="u", host="box", place=str(place), address="192.0.2.1:22")
    assert main([verb, str(record.path)]) == ExitCode.USAGE
    assert "there is no allow-list" in capsys.readouterr().err
    (tmp_path / "liveupdate" / "apply.toml").write_text('allow = ["192.0.2.2"]')
    assert main([verb, str(record.path)]) == ExitCode.USAGE
    assert "not in 'allow'" in capsys.readouterr().err


def test_a_required_check_that_was_skipped_makes_an_update_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    plan = make.make_plan()
    record = RunDir.create(tmp_path, plan=plan, scenario="", run_id="abc")
    put(record, make.make_evidence())
    local = Local(
        incoming=plan.images.incoming, incoming_bytes=1, run_free_bytes=1,
        mechanism=MECHANISMS["luo-memfd"],
    )  # fmt: skip
    place = Place(name="box", path=tmp_path / "box.toml", machine=cast(Any, None))
    with Wal(record.path, create=True) as journal:
        journal.append("begin", update="u1", host="box")
        record.close()
        session = Session(
            app=App(), verb="apply", place=place, plan=plan, record=record, journal=journal,
            local=local, by_step=False, patience_s=1.0, as_json=False,
        )  # fmt: skip
        for required, outcome in (("", Outcome.PASS), ("iommu.faults", Outcome.ERROR)):
            monkeypatch.setenv("LIVEUPDATE_REQUIRE", required)
            assert session._driver(Steps()).conclude().outcome is outcome
            record.close()
