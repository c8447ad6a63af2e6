# SPDX-License-Identifier: Apache-2.0
"""Each shipped scenario's PASS, with one thing altered: no PASS, or on the list."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.evidence import RunDir
from liveupdate.judging.judge import judge
from liveupdate.model.verdict import Outcome
from tests.support.mutants import find_survivors
from tests.support.vm import cli, nightly

SCENARIOS = sorted(path.stem for path in (Path(__file__).parents[2] / "scenarios").glob("*.toml"))


@nightly.part("mutants")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_altered_in_a_pass_shows_or_is_on_the_list(scenario: str, tmp_path: Path) -> None:
    said = cli.call("run", scenario, "--results", str(tmp_path), "--json")
    assert said.returncode == 0, said.explain()
    record = RunDir.open(tmp_path / "latest")
    plan, evidence = record.load_plan(), record.load_evidence()
    assert judge(plan, evidence).outcome is Outcome.PASS
    assert find_survivors(plan, evidence) == {}
