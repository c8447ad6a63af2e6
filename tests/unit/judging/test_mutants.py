# SPDX-License-Identifier: Apache-2.0
"""A stored PASS with one thing altered is no PASS, or the thing is on a list with its reason."""

from __future__ import annotations

import lzma
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from liveupdate.evidence import RunDir
from liveupdate.judging.judge import judge
from liveupdate.model.evidence import Evidence
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Outcome
from tests.support import evidence_builder as make
from tests.support.mutants import MAY_DIFFER, find_survivors, mutants, to_glob

STORED = Path(__file__).parents[2] / "data" / "runs" / "pass"
MAX_ENTRIES = 40
#: devices, and a command line, are not in the stored run
NOT_THERE = {each for each in MAY_DIFFER if "devices[]" in each or "iommu" in each}
NOT_THERE |= {"provenance.argv*"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Evidence]:
    """A PASS of the default scenario, as a machine gave it."""
    run = shutil.copytree(STORED, tmp_path_factory.mktemp("stored") / "pass")
    for packed in run.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    record = RunDir.open(run)
    return record.load_plan(), record.load_evidence()


def test_what_is_altered_in_a_pass_shows_or_is_on_the_list(stored: tuple[Plan, Evidence]) -> None:
    plan, evidence = stored
    assert judge(plan, evidence).outcome is Outcome.PASS
    found = find_survivors(plan, evidence, allowed=())
    unknown = {
        place: done
        for place, done in found.items()
        if not any(fnmatchcase(place, to_glob(each)) for each in MAY_DIFFER)
    }
    assert unknown == {}
    unused = {
        each for each in MAY_DIFFER if not any(fnmatchcase(place, to_glob(each)) for place in found)
    }
    assert unused <= NOT_THERE
    assert len(MAY_DIFFER) <= MAX_ENTRIES and all(MAY_DIFFER.values())


def test_evidence_of_the_other_hop_shows() -> None:
    plan, evidence = make.make_plan(hops=2), make.make_evidence(hops=2)
    assert judge(plan, evidence).outcome is Outcome.PASS
    hidden: set[str] = set()
    shown: set[str] = set()
    for place, done, mutant in mutants(evidence, with_fields=False):
        assert done == "of the other hop"
        (hidden if judge(plan, mutant).outcome is Outcome.PASS else shown).add(place)
    assert len(shown) > 5
    # sessions have the same names, no other observer has seen them
    assert hidden <= {"hops.sessions", "hops.costs"}
