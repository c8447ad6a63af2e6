# SPDX-License-Identifier: Apache-2.0
"""A real igb, its DMA and a real kexec under it: every frame that was sent is there afterwards.

What breaks it is in test_faults.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.vm import cli

CHECK = "device.dma-continuity"
#: what is seen of the device from outside
OUTSIDE = (
    "iommu.translation",
    "iommu.mappings",
    "iommu.faults",
    "device.no-reset",
    "device.config-space",
)


def _metric(said: cli.Said, name: str) -> list[float]:
    return [each["value"] for each in said.document["metrics"] if each["name"] == name]


def _assert_continuous(said: cli.Said, hops: int) -> None:
    assert said.returncode == 0, said.explain()
    for check_id in (CHECK, "guest.liveness", *OUTSIDE):
        assert said.check(check_id)["status"] == "PASS", f"{check_id}: {said.explain()}"
    sent, received = _metric(said, "frames.sent"), _metric(said, "frames.received")
    landed = _metric(said, "frames.landed")
    assert len(sent) == len(landed) == hops
    assert sent == received
    assert all(count > 0 for count in landed)
    assert cli.machines_left() == []


@pytest.mark.parametrize(("access", "scalable"), [("container", "false"), ("cdev", "true")])
def test_frames_go_on_through_the_kexec(tmp_path: Path, access: str, scalable: str) -> None:
    said = cli.run(
        tmp_path,
        "vfio-continuous",
        *("--set", f"device.*.access={access}"),
        *("--set", f"iommu.scalable={scalable}"),
    )
    _assert_continuous(said, hops=1)
    assert "inside = outside" in said.check("iommu.mappings")["reason"]
    # the new root table, and then the tables of the incoming kernel, while translation was on
    assert "root pointer replaced 1 times" in said.check("iommu.translation")["reason"]
    assert "tables replaced 1 times" in said.check("iommu.mappings")["reason"]
    run = (tmp_path / "latest").resolve()
    notes = (run / "events.jsonl").read_text()
    given_back = [line for line in notes.splitlines() if "device-given-back" in line]
    assert len(given_back) == 1
    assert '"driver":"igb"' in given_back[0].replace(" ", "")
    _assert_altered_evidence_is_seen(run, tmp_path)


def _assert_altered_evidence_is_seen(run: Path, scratch: Path) -> None:
    copy = shutil.copytree(run, scratch / "altered-account", symlinks=True)
    account = copy / "evidence" / "hop-1" / "device-nic0.json"
    account.write_text(account.read_text().replace('"damaged": 0', '"damaged": 1', 1))
    again = cli.call("judge", str(copy), "--json")
    assert again.returncode == 3, again.explain()
    assert again.check(CHECK)["status"] == "ERROR", again.explain()
    copy = shutil.copytree(run, scratch / "altered-mappings", symlinks=True)
    (stored,) = copy.glob("evidence/iommu/hop-1/outside-after-*.runs")
    raw = bytearray(stored.read_bytes())
    raw[9] ^= 0x10
    stored.write_bytes(raw)
    again = cli.call("judge", str(copy), "--json")
    assert again.returncode == 1, again.explain()
    assert again.check("iommu.mappings")["status"] == "FAIL"


def test_frames_go_on_hop_after_hop(tmp_path: Path) -> None:
    _assert_continuous(cli.run(tmp_path, "vfio-continuous", "--hops", "2"), hops=2)
