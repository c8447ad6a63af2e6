# SPDX-License-Identifier: Apache-2.0
"""What one run may do by chance: the same again and again, and a host that is updated ten times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.vm import cli, nightly

pytestmark = nightly.part("soak")


@pytest.mark.parametrize("number", range(1, 11))
def test_ten_runs_in_a_row_pass(number: int, tmp_path: Path) -> None:
    scalable = "false" if number % 2 else "true"
    said = cli.run(tmp_path, "vfio-continuous", "--set", f"iommu.scalable={scalable}")
    assert said.returncode == 0, said.explain()
    assert said.document["outcome"] == "PASS", said.explain()
    assert cli.machines_left(tmp_path) == []


@pytest.mark.parametrize("scenario", ["default", "vfio-continuous"])
def test_ten_hops_pass(scenario: str, tmp_path: Path) -> None:
    said = cli.run(tmp_path, scenario, "--hops", "10")
    assert said.returncode == 0, said.explain()
    assert said.document["outcome"] == "PASS", said.explain()
    blackouts = [each for each in said.document["metrics"] if each["name"] == "blackout"]
    assert len(blackouts) == 10, said.explain()
