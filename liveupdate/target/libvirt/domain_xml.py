# SPDX-License-Identifier: Apache-2.0
"""The host under update as a libvirt domain, as a value. No I/O.

The same machine as :mod:`liveupdate.target.qemu.argv` builds, device by device: every address is
given, so that libvirt adds no bridges of its own. Source: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from liveupdate.core.errors import PlanError
from liveupdate.model.plan import MachineSpec
from liveupdate.target.machines import machine_name
from liveupdate.target.qemu.argv import (
    AGENT_PORT,
    DiskFile,
    MachinePaths,
    check_serial,
    ssh_nic,
    wire_nic,
)

RAM_ID = "pc.ram"
"""How libvirt names the memory backend of a machine without NUMA cells."""
MAX_DISKS = 16

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_SERIAL_SLOT, _RNG_SLOT, _DISK_SLOT = 0x02, 0x03, 0x08
#: features without an element in libvirt come last on QEMU's command line, after its own devices
_SSH_SLOT, _WIRE_SLOT = 0x1A, 0x1B

#: as :data:`liveupdate.target.qemu.argv._ACCELS` says, with the reasons
_FEATURES = ("svm", "npt", "x2apic")
_TYPES: Mapping[str, str] = MappingProxyType({"tcg": "qemu", "kvm": "kvm"})


def build_xml(
    spec: MachineSpec,
    paths: MachinePaths,
    *,
    run_id: str,
    append: str,
    owner: tuple[int, int] | None = None,
) -> str:
    """Build the domain's XML. Its RAM is a shared memfd among QEMU's descriptors.

    :param owner: uid and gid for QEMU under a privileged libvirtd, which would otherwise run it
        (and own the files) as a user of its own.
    :raises PlanError: libvirt, or this builder, does not support something of the plan.
    """
    if spec.accel not in _TYPES:
        raise PlanError(f"no accelerator '{spec.accel}'", hint=f"one of {', '.join(_TYPES)}")
    if spec.iommu not in ("none", "intel"):
        raise PlanError(f"target 'libvirt' has no IOMMU '{spec.iommu}'", hint="intel or none")
    if spec.scalable:
        raise PlanError("target 'libvirt' has no IOMMU with scalable mode")
    if len(paths.disks) > MAX_DISKS:
        raise PlanError(f"target 'libvirt' has room for {MAX_DISKS} guests' disks")
    ElementTree.register_namespace("qemu", _QEMU)
    domain = Element("domain", type=_TYPES[spec.accel])
    _leaf(domain, "name", machine_name(run_id))
    _leaf(domain, "memory", str(spec.memory_bytes // 1024), unit="KiB")
    backing = SubElement(domain, "memoryBacking")
    SubElement(backing, "source", type="memfd")
    SubElement(backing, "access", mode="shared")
    _leaf(domain, "vcpu", str(spec.vcpus))
    system = SubElement(domain, "os")
    _leaf(system, "type", "hvm", arch="x86_64", machine="q35")
    _leaf(system, "kernel", str(paths.kernel))
    _leaf(system, "cmdline", append)
    _add_processor(domain, spec)
    # A reset ends the machine by -no-reboot, see below; "destroy" would have libvirt do it a moment
    # after the machine has begun to boot again.
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _leaf(domain, f"on_{event}", action)
    _add_devices(domain, spec, paths)
    if owner is not None:
        label = SubElement(domain, "seclabel", type="static", model="dac", relabel="no")
        _leaf(label, "label", f"+{owner[0]}:+{owner[1]}")
    extra = (
        "-no-reboot",
        *ssh_nic(f"bus=pcie.0,addr={_SSH_SLOT:#x}"),
        *wire_nic(paths, f"bus=pcie.0,addr={_WIRE_SLOT:#x}"),
    )
    commandline = SubElement(domain, f"{{{_QEMU}}}commandline")
    for word in extra:
        SubElement(commandline, f"{{{_QEMU}}}arg", value=word)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding="unicode") + "\n"


def _add_processor(domain: Element, spec: MachineSpec) -> None:
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    if spec.iommu != "none":
        # interrupt remapping needs the I/O APIC in user space
        SubElement(features, "ioapic", driver="qemu")
    if spec.accel == "kvm":
        SubElement(domain, "cpu", mode="host-passthrough")
        return
    # libvirt would check the model against a KVM that is not used
    cpu = SubElement(domain, "cpu", mode="custom", match="exact", check="none")
    _leaf(cpu, "model", "EPYC", fallback="forbid")
    for name in _FEATURES:
        SubElement(cpu, "feature", policy="require", name=name)


def _add_devices(domain: Element, spec: MachineSpec, paths: MachinePaths) -> None:
    devices = SubElement(domain, "devices")
    _leaf(devices, "emulator", spec.qemu)
    if spec.iommu == "intel":
        iommu = SubElement(devices, "iommu", model="intel")
        SubElement(iommu, "driver", intremap="on", eim="on")
    SubElement(devices, "controller", type="usb", model="none")
    controller = SubElement(devices, "controller", type="virtio-serial", index="0")
    _put(controller, _SERIAL_SLOT)
    disks = (
        (DiskFile(serial="root", path=paths.rootfs), True),
        (DiskFile(serial="kit", path=paths.kit), True),
        *((disk, False) for disk in paths.disks),
    )
    for index, (disk, read_only) in enumerate(disks):
        _add_disk(devices, disk, index, read_only=read_only)
    console = SubElement(devices, "serial", type="unix")
    SubElement(console, "source", mode="bind", path=str(paths.console))
    SubElement(console, "target", port="0")
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "source", mode="bind", path=str(paths.agent))
    SubElement(channel, "target", type="virtio", name=AGENT_PORT)
    rng = SubElement(devices, "rng", model="virtio")
    SubElement(rng, "backend", model="builtin")
    _put(rng, _RNG_SLOT)
    SubElement(devices, "memballoon", model="none")


def _add_disk(devices: Element, disk: DiskFile, index: int, *, read_only: bool) -> None:
    check_serial(disk.serial)
    element = SubElement(devices, "disk", type="file", device="disk")
    # "unsafe" is what the plain QEMU target has: the page cache, and no flush of our own disk
    SubElement(element, "driver", name="qemu", type=disk.format, cache="unsafe")
    SubElement(element, "source", file=str(disk.path))
    SubElement(element, "target", dev=f"vd{chr(ord('a') + index)}", bus="virtio")
    if read_only:
        SubElement(element, "readonly")
    _leaf(element, "serial", disk.serial)
    _put(element, _DISK_SLOT + index)


def _put(element: Element, slot: int) -> None:
    SubElement(element, "address", type="pci", bus="0x00", slot=f"{slot:#04x}")


def _leaf(parent: Element, tag: str, text: str, **attributes: str) -> None:
    SubElement(parent, tag, attributes).text = text
