# SPDX-License-Identifier: Apache-2.0
"""Every fault comes to exactly the check, status and exit code that the table states.

These are the negative controls of the checks: each row is a run in which something really breaks.
Those of :data:`tests.vm.nightly.FAULTS` run by night only.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.faults.base import Fault, Part
from liveupdate.faults.table import FAULTS
from tests.support.vm import cli, nightly

pytestmark = pytest.mark.side_by_side

#: a hang is only known by its deadline: shorter ones here than a user would want
_HANGS = ("--set", "timeouts.jump=15s", "--set", "timeouts.incoming=10s")
_SLOW = ("--set", "device.*.rate=200")
#: less than any blackout takes
_BOUND = ("--set", "budget.blackout=1ms")

#: what the reason must say, where it is to name the very thing
_WORDS = {
    "drop-frames": (" 5 missing (number ",),
    "stock-kernel": ("bus mastering went off",),
    "map-unpreserved": ("kexec refused",),
    "dma-after-free": ("kexec refused",),
    "corrupt-record": ("record refused", "checksum"),
    "record-version": ("record refused", "version"),
    "flip-state": ("its digest is", "saved was"),
    "cut-state": ("its length is", "saved was"),
}
#: what is struck is a device; the guests are to go on as if nothing had happened
_GUESTS_FINE = ("map-unpreserved", "dma-after-free", "corrupt-record", "record-version")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=name, marks=nightly.part("faults") if name in nightly.FAULTS else ())
        for name, fault in FAULTS.items()
    ],
)
def test_fault_comes_to_its_stated_verdict(fault: Fault, tmp_path: Path) -> None:
    extra: tuple[str, ...] = _HANGS if fault.name.startswith("hang-") else ()
    # what a fault comes to must not hang on a busy machine, where a ring gets full
    extra += _SLOW if Part.DEVICE in fault.needs else ()
    also = nightly.ALSO_RED.get(fault.name, ())
    extra += _BOUND if "budget.blackout" in also else ()
    said = cli.run(tmp_path, "--fault", fault.name, *extra)
    expected = fault.expected
    (struck,) = said.document["struck"]
    assert struck["fault"] == fault.name, said.explain()
    assert struck["before"] != struck["after"], struck
    assert said.returncode == expected.exit_code, said.explain()
    check = said.check(expected.check)
    assert check["status"] == expected.status, said.explain()
    assert check["reason"], said.explain()
    for check_id in also:
        assert said.check(check_id)["status"] == "FAIL", f"{check_id}: {said.explain()}"
    for words in _WORDS.get(fault.name, ()):
        assert words in check["reason"], said.explain()
    if fault.name in _GUESTS_FINE:
        assert said.check("guest.liveness")["status"] == "PASS", said.explain()
    assert cli.machines_left(tmp_path) == []
