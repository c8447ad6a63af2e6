# SPDX-License-Identifier: Apache-2.0
"""What `apply`, `resume` and `abort` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from liveupdate.cli.app import App
from liveupdate.cli.apply_session import Place, Session
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir
from liveupdate.model.verdict import Outcome
from liveupdate.operate.preflight import Local
from liveupdate.operate.wal import Wal
from liveupdate.planning.mechanisms import MECHANISMS
from tests.support import evidence_builder as make
from tests.support.stored_evidence import put


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
