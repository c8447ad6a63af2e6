# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from xml.etree import ElementTree

import pytest
from msgspec import structs

from liveupdate.core.errors import LostMachine, PlanError
from liveupdate.model.plan import MachineSpec
from liveupdate.target.libvirt.domain_xml import build_xml
from liveupdate.target.libvirt.host import is_privileged
from liveupdate.target.libvirt.link import Link, PassedMonitor
from liveupdate.target.qemu.argv import DiskFile
from liveupdate.transport.monitor import QmpRefused, take_answer
from tests.support.qemu_machine import PATHS, SPEC, argv

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def domain(
    spec: MachineSpec = SPEC, append: str = "console=ttyS0", owner: tuple[int, int] | None = None
) -> ElementTree.Element:
    return ElementTree.fromstring(build_xml(spec, PATHS, run_id="ab12", append=append, owner=owner))


def words(xml: ElementTree.Element) -> list[str]:
    return [arg.attrib["value"] for arg in xml.findall(f"{QEMU}commandline/{QEMU}arg")]


def test_ram_is_a_shared_memfd_of_the_planned_size() -> None:
    xml = domain()
    memory = xml.find("memory")
    assert memory is not None and memory.text is not None
    assert (memory.attrib["unit"], int(memory.text)) == ("KiB", SPEC.memory_bytes // 1024)
    assert xml.find("memoryBacking/source[@type='memfd']") is not None
    assert xml.find("memoryBacking/access[@mode='shared']") is not None


def test_a_reset_ends_the_machine_in_qemu_and_not_in_libvirt() -> None:
    xml = domain()
    assert "-no-reboot" in words(xml)
    assert xml.findtext("on_reboot") == "restart"
    assert xml.findtext("on_poweroff") == "destroy"


def test_devices_are_those_of_the_plain_target() -> None:
    xml = domain()
    serials = [disk.findtext("serial") for disk in xml.findall("devices/disk")]
    assert serials == ["root", "kit", "vm0", "vm1"]
    read_only = [disk.find("readonly") is not None for disk in xml.findall("devices/disk")]
    assert read_only == [True, True, False, False]
    formats = [driver.attrib["type"] for driver in xml.findall("devices/disk/driver")]
    assert formats == ["raw", "raw", "raw", "qcow2"]
    plain = argv()
    for word in words(xml):
        if word.startswith(("user,", "dgram,")):
            assert word in plain
    macs = sorted(word.partition("mac=")[2][:17] for word in words(xml) if "mac=" in word)
    assert macs == sorted(word.partition("mac=")[2][:17] for word in plain if "mac=" in word)
    target = xml.find("devices/channel/target")
    assert target is not None and target.attrib["name"] == "org.liveupdate.agent"


def test_every_device_has_a_slot_of_its_own() -> None:
    xml = domain()
    slots = [int(address.attrib["slot"], 16) for address in xml.iter("address")]
    slots += [int(word.partition("addr=")[2], 16) for word in words(xml) if "addr=" in word]
    # the q35 board's own: 0 host bridge, 1 graphics, 0x1f LPC, AHCI and SMBus
    assert len(set(slots)) == len(slots)
    assert not {0, 1, 0x1F} & set(slots)
    assert len(slots) == 2 + len(xml.findall("devices/disk")) + 2


def test_tcg_emulates_nested_paging() -> None:
    cpu = domain().find("cpu")
    assert cpu is not None and cpu.attrib["check"] == "none"
    required = {item.attrib["name"] for item in cpu.findall("feature[@policy='require']")}
    assert required == {"svm", "npt", "x2apic"}
    kvm = domain(structs.replace(SPEC, accel="kvm"))
    assert kvm.attrib["type"] == "kvm"
    assert kvm.find("cpu[@mode='host-passthrough']") is not None


def test_interrupt_remapping_needs_the_io_apic_in_user_space() -> None:
    assert domain().find("features/ioapic[@driver='qemu']") is not None
    bare = domain(structs.replace(SPEC, iommu="none"))
    assert bare.find("features/ioapic") is None
    assert bare.find("devices/iommu") is None


def test_text_of_the_plan_is_data_and_never_markup() -> None:
    append = "x=<&>\"' y"
    assert domain(append=append).findtext("os/cmdline") == append


def test_only_a_privileged_daemon_is_told_whom_to_run_as() -> None:
    assert domain().find("seclabel") is None
    label = domain(owner=(12, 34)).find("seclabel")
    assert label is not None and label.attrib["relabel"] == "no"
    assert label.findtext("label") == "+12:+34"
    assert is_privileged("qemu:///system")
    assert is_privileged("qemu+unix:///system?socket=/x")
    assert not is_privileged("qemu:///session")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accel": "moon"}, "accelerator 'moon'"),
        ({"iommu": "amd"}, "IOMMU 'amd'"),
        ({"scalable": True}, "no IOMMU with scalable mode"),
    ],
)
def test_what_libvirt_does_not_have_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        domain(structs.replace(SPEC, **change))


def test_more_disks_than_slots_are_refused() -> None:
    disks = tuple(DiskFile(serial=f"vm{n}", path=Path(f"/d{n}")) for n in range(17))
    paths = dataclasses.replace(PATHS, disks=disks)
    with pytest.raises(PlanError, match="room for 16"):
        build_xml(SPEC, paths, run_id="ab12", append="x")


def test_answers_of_the_monitor() -> None:
    assert take_answer("x", {"return": {"a": 1}, "id": "libvirt-3"}) == {"a": 1}
    with pytest.raises(QmpRefused, match="no such"):
        take_answer("x", {"error": {"class": "CommandNotFound", "desc": "no such"}})
    answers: tuple[object, ...] = ("", [], {"error": 1}, None)
    for answer in answers:
        with pytest.raises(LostMachine) as caught:
            take_answer("x", answer)
        assert caught.value.how == "garbled"


def test_an_answer_that_is_no_json_is_garbled() -> None:
    link = SimpleNamespace(ask_monitor=lambda *_args: "nonsense")
    with pytest.raises(LostMachine, match="nonsense in answer to 'x'") as caught:
        PassedMonitor(cast(Link, link)).execute("x")
    assert caught.value.how == "garbled"
