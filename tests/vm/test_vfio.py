# SPDX-License-Identifier: Apache-2.0
"""Real devices, their DMA and a real kexec under it: every frame that was sent is there afterwards.

What breaks it is in test_faults.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.vm import cli, nightly

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


def _assert_continuous(said: cli.Said, results: Path, hops: int) -> None:
    assert said.returncode == 0, said.explain()
    for check_id in (CHECK, "guest.liveness", *OUTSIDE):
        assert said.check(check_id)["status"] == "PASS", f"{check_id}: {said.explain()}"
    sent, received = _metric(said, "frames.sent"), _metric(said, "frames.received")
    landed = _metric(said, "frames.landed")
    assert len(sent) == len(landed) == hops
    assert sent == received
    # 200 frames/s at least, in a blackout of more than 2.5 s, and the ring is not to be full: the
    # rate follows the blackouts that this machine has shown
    assert all(200 * 2.5 <= count < 4095 for count in landed)
    assert cli.machines_left(results) == []


@pytest.mark.parametrize(
    ("access", "scalable", "hops"), [("container", "false", 1), ("cdev", "true", 2)]
)
def test_frames_go_on_through_the_kexec(
    tmp_path: Path, access: str, scalable: str, hops: int
) -> None:
    said = cli.run(
        tmp_path,
        "vfio-continuous",
        *("--set", f"device.*.access={access}"),
        *("--set", f"iommu.scalable={scalable}"),
        *("--hops", str(hops)),
    )
    _assert_continuous(said, tmp_path, hops)
    translation, mappings = (
        said.check(check_id)["reason"] for check_id in ("iommu.translation", "iommu.mappings")
    )
    assert mappings.count("inside = outside") == hops
    # the new root table, and then the tables of the incoming kernel, while translation was on
    assert translation.count("root pointer replaced 1 times") == hops
    assert mappings.count("tables replaced 1 times") == hops
    run = (tmp_path / "latest").resolve()
    notes = (run / "events.jsonl").read_text()
    given_back = [line for line in notes.splitlines() if "device-given-back" in line]
    assert len(given_back) == 1
    assert '"driver":"igb"' in given_back[0].replace(" ", "")
    _assert_altered_evidence_is_seen(run, tmp_path)


def _assert_altered_evidence_is_seen(run: Path, scratch: Path) -> None:
    copy = shutil.copytree(run, scratch / "altered-account" / run.name, symlinks=True)
    account = copy / "evidence" / "hop-1" / "device-nic0.json"
    account.write_text(account.read_text().replace('"damaged": 0', '"damaged": 1', 1))
    again = cli.call("judge", str(copy), "--json")
    assert again.returncode == 3, again.explain()
    assert again.check(CHECK)["status"] == "ERROR", again.explain()
    copy = shutil.copytree(run, scratch / "altered-mappings" / run.name, symlinks=True)
    (stored,) = copy.glob("evidence/iommu/hop-1/outside-after-*.runs")
    raw = bytearray(stored.read_bytes())
    raw[9] ^= 0x10
    stored.write_bytes(raw)
    again = cli.call("judge", str(copy), "--json")
    assert again.returncode == 3, again.explain()
    assert "cannot be used: altered" in again.document["reason"]
    assert again.check("iommu.mappings")["status"] == "FAIL"


@nightly.part("devices")
def test_frames_go_on_hop_after_hop(tmp_path: Path) -> None:
    said = cli.run(tmp_path, "vfio-continuous", "--hops", "2")
    _assert_continuous(said, tmp_path, hops=2)


def test_every_kind_goes_on(tmp_path: Path) -> None:
    said = cli.run(tmp_path, "vfio-kinds")
    assert said.returncode == 0, said.explain()
    assert said.document["outcome"] == "PASS"
    for check_id in (CHECK, *OUTSIDE):
        reason = said.check(check_id)["reason"]
        assert said.check(check_id)["status"] == "PASS", f"{check_id}: {said.explain()}"
        if check_id in (CHECK, "device.no-reset"):  # the other's reason is cut after four
            assert all(name in reason for name in ("nic0", "nic1", "disk0")), reason
    mapped = {
        (each["labels"]["of"], each["labels"]["view"], each["labels"]["moment"]): each["value"]
        for each in said.document["metrics"]
        if each["name"] == "iommu.mapped"
    }
    walks = {(view, moment) for _, view, moment in mapped}
    assert len(walks) == 4
    for walk in walks:
        assert mapped[("0000:04:00.0", *walk)] > 65_000, mapped
    (preserve,) = _metric(said, "iommu.preserve")
    assert preserve > 0
    assert cli.machines_left(tmp_path) == []


@pytest.mark.side_by_side
def test_device_that_shares_its_group_is_refused(tmp_path: Path) -> None:
    said = cli.run(tmp_path, "vfio-continuous", "--set", "device.nic0.bdf=0000:00:1f.2")
    assert said.returncode == 3, said.explain()
    assert "0000:00:1f.2 shares its IOMMU group with 0000:00:1f.0" in said.stdout + said.stderr
    assert cli.machines_left(tmp_path) == []


# with an Intel IOMMU, the fault guest-link-cut goes the same way by day
@pytest.mark.parametrize("iommu", [pytest.param("intel", marks=nightly.part("devices")), "amd"])
def test_guests_own_devices_are_used_again(iommu: str, tmp_path: Path) -> None:
    said = cli.run(tmp_path, "vfio-quiesce", "--set", f"iommu.kind={iommu}")
    assert said.returncode == 0, said.explain()
    assert said.document["outcome"] == "PASS"
    for check_id in (
        *("iommu.translation", "iommu.mappings", "iommu.faults", "device.config-space"),
        *("memory.content", "guest.liveness", "guest.clock", "guest.storage"),
    ):
        assert said.check(check_id)["status"] == "PASS", f"{check_id}: {said.explain()}"
    mappings = said.check("iommu.mappings")["reason"]
    assert mappings.count("256 MiB in") == 2
    assert "the VMM's firmware and registers" in mappings
    assert "disk0: nothing durable was lost" in said.check("guest.storage")["reason"]
    rested = said.check(CHECK)
    assert rested["status"] == "SKIP"
    assert rested["reason"].count("DMA stopped, as vm0 slept") == 2
    assert len(_metric(said, "gap.device")) == 2
    notes = (tmp_path / "latest" / "events.jsonl").read_text().replace(" ", "")
    given_back = [line for line in notes.splitlines() if "device-given-back" in line]
    assert any('"driver":"igb"' in line for line in given_back)
    assert any('"driver":"nvme"' in line for line in given_back)
    assert cli.machines_left(tmp_path) == []


@pytest.mark.parametrize("iommu", ["intel", pytest.param("amd", marks=nightly.part("devices"))])
def test_device_that_its_driver_lets_go_gets_its_mappings_back(iommu: str, tmp_path: Path) -> None:
    ways = ("--set", "device.*.tier=quiesce", "--set", f"iommu.kind={iommu}")
    said = cli.run(tmp_path, "vfio-continuous", *ways)
    assert said.returncode == 0, said.explain()
    for check_id in ("iommu.translation", "iommu.mappings", "iommu.faults"):
        assert said.check(check_id)["status"] == "PASS", f"{check_id}: {said.explain()}"
    assert "inside = outside" in said.check("iommu.mappings")["reason"]
    rested = said.check(CHECK)
    assert rested["status"] == "SKIP"
    assert "stopped DMA on purpose" in rested["reason"]
    assert cli.machines_left(tmp_path) == []
