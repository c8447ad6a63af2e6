# SPDX-License-Identifier: Apache-2.0
"""Where each fault runs: every check and every way to end has one in ``make test``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from liveupdate.faults.base import Fault
from liveupdate.faults.table import FAULTS
from liveupdate.judging.table import CHECK_IDS
from tests.support.vm import nightly

ROOT = Path(__file__).parents[2]
TESTING = ROOT / "docs" / "testing.md"


def find_gaps(faults: Mapping[str, Fault], by_night: Mapping[str, str]) -> list[str]:
    """Say what ``make test`` would no longer show if the faults ``by_night`` did not run in it."""
    gaps = [f"there is no fault '{name}'" for name in by_night if name not in faults]
    by_day = [fault for fault in faults.values() if fault.name not in by_night]
    red = {fault.expected.check for fault in by_day}
    for fault in faults.values():
        if fault.expected.check not in red:
            gaps.append(f"no fault makes '{fault.expected.check}' red")
        if fault.name not in by_night:
            continue
        if fault.expected.status == "ERROR" or fault.expected.exit_code == 5:
            gaps.append(f"'{fault.name}' ends in {fault.expected.status}, exit"
                        f" {fault.expected.exit_code}: it runs in make test")  # fmt: skip
        instead = by_night[fault.name]
        if instead in by_night or instead not in faults:
            gaps.append(f"'{instead}', which is to stand for '{fault.name}', is not in make test")
        elif faults[instead].expected != fault.expected:
            gaps.append(f"'{instead}' comes to something else than '{fault.name}'")
    return gaps


def test_every_check_is_red_in_make_test() -> None:
    red = {fault.expected.check for fault in FAULTS.values() if fault.name not in nightly.FAULTS}
    for name, checks in nightly.ALSO_RED.items():
        assert name in FAULTS and name not in nightly.FAULTS
        red |= set(checks)
    # what is refused by the IOMMU has no fault; tests of the judge make it red
    assert set(CHECK_IDS) - red == {"iommu.faults"}


def test_make_test_has_a_fault_for_every_check_and_every_way_to_end() -> None:
    assert find_gaps(FAULTS, nightly.FAULTS) == []


@pytest.mark.parametrize(
    ("by_night", "gap"),
    [
        ({"no-such-fault": "flip-bit"}, "there is no fault 'no-such-fault'"),
        ({"flip-bit": "move-page"}, "no fault makes 'memory.content' red"),
        ({"qmp-drop": "ssh-drop"}, "'qmp-drop' ends in ERROR"),
        ({"dma-after-free": "map-unpreserved"}, "exit 5: it runs in make test"),
        ({"kho-off": "liveupdate-off", "liveupdate-off": "kho-off"}, "is not in make test"),
        ({"kho-off": "kexec-load"}, "comes to something else"),
    ],
)
def test_a_gap_is_found(by_night: Mapping[str, str], gap: str) -> None:
    faults = FAULTS
    if gap.endswith("'memory.content' red"):  # disk-full makes it red as well
        faults = {name: fault for name, fault in FAULTS.items() if name != "disk-full"}
    assert any(gap in each for each in find_gaps(faults, by_night)), find_gaps(faults, by_night)


def read_table(heading: str) -> list[list[str]]:
    """Cells of the rows of the table below a heading of docs/testing.md, without its first two."""
    text = TESTING.read_text(encoding="utf-8")
    _, found, section = text.partition(f"\n## {heading}\n")
    assert found, heading
    lines = section.partition("\n## ")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return [[cell.replace("`", "").strip() for cell in row] for row in rows[2:]]


def test_the_documentation_says_where_each_fault_runs() -> None:
    said = [(row[0], row[1], row[2], row[3]) for row in read_table("Where each fault runs")]
    assert said == [
        (
            fault.name,
            f"{fault.expected.check} {fault.expected.status}",
            str(fault.expected.exit_code),
            "make nightly" if fault.name in nightly.FAULTS else "make test",
        )
        for fault in FAULTS.values()
    ]


def test_the_documentation_lists_the_parts_of_the_night() -> None:
    said = {row[0]: row[1] for row in read_table("The parts of make nightly")}
    assert said == {name: what.replace("`", "") for name, what in nightly.PARTS.items()}


def test_every_part_of_the_night_has_tests() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    assert set(re.findall(r'nightly\.part\("([a-z]+)"\)', sources)) == set(nightly.PARTS)
    with pytest.raises(KeyError):
        nightly.part("no-such-part")
