# SPDX-License-Identifier: Apache-2.0
"""Taking a device: only one that is alone in its group, and its driver gets it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.agent.base.names import SpecError
from liveupdate.agent.device.devices import DeviceSpec
from liveupdate.agent.device.driver_binding import Pin, PinError, find

BDF = "0000:01:00.0"


def make_device(root: Path, bdf: str, *, device: str = "0x10c9", group: str = "7") -> Path:
    path = root / "bus/pci/devices" / bdf
    path.mkdir(parents=True)
    (path / "vendor").write_text("0x8086\n")
    (path / "device").write_text(f"{device}\n")
    (path / "driver_override").write_text("(null)\n")
    members = root / "kernel/iommu_groups" / group / "devices"
    members.mkdir(parents=True, exist_ok=True)
    (members / bdf).symlink_to(path)
    (path / "iommu_group").symlink_to(members.parent)
    (root / "bus/pci/drivers_probe").write_text("")
    return path


def test_first_free_device_of_a_kind_is_found(tmp_path: Path) -> None:
    make_device(tmp_path, "0000:00:01.0", device="0x1234")
    make_device(tmp_path, "0000:02:00.0", group="8")
    make_device(tmp_path, BDF)
    sysfs = str(tmp_path)
    assert find("igb", set(), sysfs) == BDF
    assert find("igb", {BDF}, sysfs) == "0000:02:00.0"
    with pytest.raises(PinError, match="no igb"):
        find("igb", {BDF, "0000:02:00.0"}, sysfs)


def test_device_that_shares_its_group_is_refused_by_name(tmp_path: Path) -> None:
    make_device(tmp_path, BDF)
    make_device(tmp_path, "0000:01:00.1")
    with pytest.raises(PinError, match=r"shares its IOMMU group with 0000:01:00\.1"):
        Pin(BDF, str(tmp_path)).take()
    override = tmp_path / "bus/pci/devices" / BDF / "driver_override"
    assert override.read_text() == "(null)\n"  # nothing was touched


def test_device_without_iommu_or_without_device(tmp_path: Path) -> None:
    path = make_device(tmp_path, BDF)
    (path / "iommu_group").unlink()
    with pytest.raises(PinError, match="behind no IOMMU"):
        Pin(BDF, str(tmp_path)).take()
    with pytest.raises(PinError, match="is not there"):
        Pin("0000:09:00.0", str(tmp_path)).take()


def test_driver_that_does_not_bind_is_told_and_the_override_taken_back(tmp_path: Path) -> None:
    path = make_device(tmp_path, BDF)  # nobody here acts upon drivers_probe
    with pytest.raises(PinError, match="bound to nothing, not to vfio-pci"):
        Pin(BDF, str(tmp_path)).take()
    assert (path / "driver_override").read_bytes()[:1] == b"\n"


def test_bound_device_is_taken_without_another_probe(tmp_path: Path) -> None:
    path = make_device(tmp_path, BDF)
    (tmp_path / "drivers/vfio-pci").mkdir(parents=True)
    (path / "driver").symlink_to(tmp_path / "drivers/vfio-pci")
    assert Pin(BDF, str(tmp_path)).take() == "7"
    assert (tmp_path / "bus/pci/drivers_probe").read_text() == ""


def test_kernel_that_cannot_keep_dma(tmp_path: Path) -> None:
    make_device(tmp_path, BDF)
    pin = Pin(BDF, str(tmp_path))
    assert pin.keep_state() is None
    with pytest.raises(PinError, match="cannot keep DMA"):
        pin.set_keep("keep")


def test_state_of_kept_dma_is_read(tmp_path: Path) -> None:
    path = make_device(tmp_path, BDF)
    (path / "liveupdate_keep_dma").write_text("incoming\n")
    assert Pin(BDF, str(tmp_path)).keep_state() == "incoming"


def test_refusal_of_the_kernel_is_told(tmp_path: Path) -> None:
    path = make_device(tmp_path, BDF)
    (path / "liveupdate_keep_dma").mkdir()
    with pytest.raises(PinError, match="'keep' refused"):
        Pin(BDF, str(tmp_path)).set_keep("keep")


SPEC = {"name": "nic0", "kind": "igb", "entries": 64, "stream": "18446744073709551615"}


def test_device_spec_survives_the_manifest() -> None:
    spec = DeviceSpec(SPEC)
    assert DeviceSpec(spec.to_json()).to_json() == spec.to_json()
    assert spec.session == "lu.device.nic0"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"kind": "floppy"},
        {"access": "mmap"},
        {"bdf": "../../x"},
        {"entries": 63},
        {"entries": 1 << 20},
        {"stream": 1},
        {"stream": str(1 << 64)},
    ],
    ids=str,
)
def test_device_spec_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        DeviceSpec({**SPEC, **change})
