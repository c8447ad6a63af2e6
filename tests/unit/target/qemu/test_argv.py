# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec import structs

from liveupdate.core.errors import PlanError
from liveupdate.target.qemu.argv import DiskFile, parse_ssh_port
from tests.support.qemu_machine import PATHS, SPEC, argv


def values(command: tuple[str, ...], option: str) -> list[str]:
    return [value for name, value in pairwise(command) if name == option]


def test_machine_starts_paused_and_ends_on_reset() -> None:
    command = argv()
    assert {"-S", "-no-reboot", "-nodefaults", "-no-user-config"} <= set(command)
    assert values(command, "-name") == ["lu-ab12"]


def test_tcg_emulates_nested_paging() -> None:
    command = argv()
    assert values(command, "-accel") == ["tcg,thread=multi"]
    assert values(command, "-cpu") == ["EPYC,+svm,+npt,+x2apic"]


def test_kvm_splits_the_irqchip_only_for_an_iommu() -> None:
    kvm = structs.replace(SPEC, accel="kvm")
    assert values(argv(kvm), "-M") == ["q35,memory-backend=hostram,kernel-irqchip=split"]
    bare = structs.replace(kvm, iommu="none")
    assert values(argv(bare), "-M") == ["q35,memory-backend=hostram"]
    assert values(argv(kvm), "-cpu") == ["host"]


@pytest.mark.parametrize(
    ("iommu", "device"),
    [("intel", "intel-iommu,intremap=on,eim=on"), ("amd", "amd-iommu,intremap=on,pt=off")],
)
def test_iommu_comes_before_the_devices_behind_it(iommu: str, device: str) -> None:
    devices = values(argv(structs.replace(SPEC, iommu=iommu)), "-device")
    assert devices[0] == device


def test_no_iommu_has_no_iommu_device() -> None:
    devices = values(argv(structs.replace(SPEC, iommu="none")), "-device")
    assert not any("iommu" in device for device in devices)


def test_ram_is_the_memfd_and_shared() -> None:
    (backend,) = values(argv(), "-object")
    assert backend == (
        "memory-backend-file,id=hostram,size=2147483648,mem-path=/proc/self/fd/7,share=on"
    )
    assert values(argv(), "-m") == ["2097152K"]


def test_disks_come_in_order_and_only_guests_disks_are_writable() -> None:
    disks = [json.loads(text) for text in values(argv(), "-blockdev")]
    assert [disk["node-name"] for disk in disks] == [
        "disk-root", "disk-kit", "disk-vm0", "disk-vm1",
    ]  # fmt: skip
    assert [disk["read-only"] for disk in disks] == [True, True, False, False]
    assert [disk["driver"] for disk in disks] == ["raw", "raw", "raw", "qcow2"]
    serials = [item for item in values(argv(), "-device") if item.startswith("virtio-blk")]
    assert [item.rpartition("=")[2] for item in serials] == ["root", "kit", "vm0", "vm1"]


def test_ssh_listens_on_loopback_and_an_ephemeral_port_only() -> None:
    ssh = values(argv(), "-netdev")[0]
    assert "hostfwd=tcp:127.0.0.1:0-:22" in ssh
    assert "restrict=on" in ssh


def test_incoming_differs_by_nothing_else() -> None:
    assert argv(incoming=True) == (*argv(), "-incoming", "defer")


def test_a_comma_in_a_path_does_not_end_the_value() -> None:
    odd = dataclasses.replace(PATHS, runtime_dir=Path("/run/a,b"), rootfs=Path('/k/a,b"c.ext4'))
    command = argv(paths=odd)
    assert "path=/run/a,,b/con," in values(command, "-chardev")[1]
    disk = json.loads(values(command, "-blockdev")[0])
    assert disk["file"]["filename"] == '/k/a,b"c.ext4'


def test_unknown_accelerator_and_iommu_are_refused() -> None:
    with pytest.raises(PlanError, match="'hax'"):
        argv(structs.replace(SPEC, accel="hax"))
    with pytest.raises(PlanError, match="'smmu'"):
        argv(structs.replace(SPEC, iommu="smmu"))


@pytest.mark.parametrize("serial", ["", "a" * 21, "a,b", "ä" * 11])
def test_a_serial_that_virtio_would_cut_is_refused(serial: str) -> None:
    disk = DiskFile(serial=serial, path=Path("/r/x"))
    with pytest.raises(PlanError, match="serial"):
        argv(paths=dataclasses.replace(PATHS, disks=(disk,)))


# `info usernet` of QEMU 10.0.2, captured with one connection open
USERNET = """\
Hub -1 (ssh):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[ESTABLISHED]   31       127.0.0.1 38342       10.0.2.15    22     0     0
  TCP[HOST_FORWARD]  14       127.0.0.1 36435       10.0.2.15    22     0     0
"""


def test_ssh_port_is_the_forward_not_a_connection() -> None:
    assert parse_ssh_port(USERNET) == 36435


@pytest.mark.parametrize("text", ["", "Hub -1 (ssh):\n", USERNET.replace("   22 ", "   23 ")])
def test_no_forward_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no forwarded port"):
        parse_ssh_port(text)


def test_device_is_alone_behind_a_root_port_of_its_own() -> None:
    command = argv(structs.replace(SPEC, devices=(("nic0", "igb"), ("nic1", "igb"))))
    devices = values(command, "-device")
    ports = [each for each in devices if each.startswith("pcie-root-port")]
    nics = [each for each in devices if each.startswith("igb")]
    assert ["id=port-nic0" in ports[0], "id=port-nic1" in ports[1]] == [True, True]
    assert ["bus=port-nic0" in nics[0], "bus=port-nic1" in nics[1]] == [True, True]
    assert len({part for port in ports for part in port.split(",") if "addr=" in part}) == 2
    wires = [each for each in values(command, "-netdev") if "wire-nic" in each]
    assert "local.path=/run/lu/x/d0q" in wires[0]
    assert "remote.path=/run/lu/x/d1o" in wires[1]


def test_devices_of_an_amd_unit_are_on_the_root_bus_before_all_others() -> None:
    nics = (("nic0", "igb"), ("nic1", "igb"))
    devices = values(argv(structs.replace(SPEC, iommu="amd", devices=nics)), "-device")
    assert [each.partition(",")[0] for each in devices[:3]] == ["amd-iommu", "igb", "igb"]
    # 16 and more slots above are their virtual functions'
    assert ["bus=pcie.0,addr=0xd" in devices[1], "bus=pcie.0,addr=0xb" in devices[2]] == [True] * 2


def test_every_kind_of_device_comes_with_what_is_behind_it() -> None:
    kinds = ("igb", "e1000e", "nvme", "edu")
    command = argv(
        structs.replace(SPEC, devices=tuple((f"d{each}", each) for each in kinds)),
        dataclasses.replace(PATHS, namespaces={"dnvme": Path("/run/a,b.raw")}),
    )
    devices = {each.partition(",")[0]: each for each in values(command, "-device")}
    assert [f"bus=port-d{each}" in devices[each] for each in kinds] == [True] * 4
    assert "netdev=wire-de1000e" in devices["e1000e"]
    assert "drive=ns-dnvme" in devices["nvme"]
    assert "dma_mask=0xffffffff" in devices["edu"]
    assert "throttle-group,id=limit-dnvme" in values(command, "-object")
    (node,) = (each for each in values(command, "-blockdev") if "throttle" in each)
    assert json.loads(node)["file"]["file"]["filename"] == "/run/a,b.raw"
    wires = [each for each in values(command, "-netdev") if "id=wire-d" in each]
    assert len(wires) == 2


def test_scalable_mode_is_intels() -> None:
    command = argv(structs.replace(SPEC, scalable=True))
    assert "intel-iommu,intremap=on,eim=on,x-scalable-mode=on" in values(command, "-device")
    with pytest.raises(PlanError, match="scalable"):
        argv(structs.replace(SPEC, iommu="amd", scalable=True))


def test_unknown_device_is_refused() -> None:
    with pytest.raises(PlanError, match="floppy"):
        argv(structs.replace(SPEC, devices=(("x", "floppy"),)))
