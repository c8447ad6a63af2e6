# SPDX-License-Identifier: Apache-2.0
"""The command line of the host under update, as a value. No I/O.

Both ends of a warm start must build the same devices in the same order: QEMU identifies them by
their place, and ``/dev/vda`` is the first disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from liveupdate.core.errors import PlanError
from liveupdate.model.device_models import DEVICE_KINDS, FED_KINDS
from liveupdate.model.plan import MachineSpec
from liveupdate.target.machines import machine_name

RAM_ID = "hostram"
"""Id of the memory backend, by which ``info mtree`` names its region."""
SSH_NIC = "nic-ssh"
WIRE_NIC = "nic-wire"
SSH_MAC = "52:54:00:10:00:01"
WIRE_MAC = "52:54:00:10:00:02"
AGENT_PORT = "org.liveupdate.agent"
#: VIRTIO_BLK_ID_BYTES of the virtio specification 1.2, section 5.2.6
MAX_SERIAL = 20

_ACCELS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        # EPYC is the newest AMD model of which TCG emulates all that Linux needs, and TCG emulates
        # AMD's virtualisation (SVM with nested paging), not Intel's: nested KVM without hardware.
        "tcg": ("tcg,thread=multi", "EPYC,+svm,+npt,+x2apic"),
        "kvm": ("kvm", "host"),
    }
)
_IOMMUS: Mapping[tuple[str, bool], tuple[str, ...]] = MappingProxyType(
    {
        ("none", False): (),
        ("intel", False): ("-device", "intel-iommu,intremap=on,eim=on"),
        ("intel", True): ("-device", "intel-iommu,intremap=on,eim=on,x-scalable-mode=on"),
        # with pt=on, its default, QEMU 10.0's does not translate what devices access at all
        ("amd", False): ("-device", "amd-iommu,intremap=on,pt=off"),
    }
)

#: on the root bus; an igb's virtual functions are numbered from 16 slots behind it, and take two
_LAST_SLOT = 13

#: QEMU's own choice for an edu are 28 bits
_EDU_MASK = 0xFFFF_FFFF

_HOST_FORWARD = re.compile(
    r"^\s*TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b", re.M
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFile:
    """A guest's disk, found in the host under update by its serial."""

    serial: str
    path: Path
    format: str = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePaths:
    """The files and sockets of one machine. ``ram_fd``: number of the memfd in QEMU's process."""

    kernel: Path
    rootfs: Path
    kit: Path
    disks: tuple[DiskFile, ...]
    runtime_dir: Path
    ram_fd: int

    #: files behind NVMe controllers, by name
    namespaces: Mapping[str, Path] = field(default_factory=dict)

    @property
    def qmp(self) -> Path:
        """Socket of the monitor."""
        return self.runtime_dir / "qmp"

    @property
    def watch(self) -> Path:
        """Socket of a second monitor, for commands that are sent many times a second."""
        return self.runtime_dir / "mon"

    @property
    def console(self) -> Path:
        """Socket of the serial console."""
        return self.runtime_dir / "con"

    @property
    def agent(self) -> Path:
        """Socket of the agent's virtio-serial port."""
        return self.runtime_dir / "agt"

    @property
    def wire_ours(self) -> Path:
        """Socket on which this side receives the guests' frames."""
        return self.runtime_dir / "net"

    @property
    def wire_qemu(self) -> Path:
        """Socket on which QEMU receives frames for the guests."""
        return self.runtime_dir / "nic"

    def feed_ours(self, number: int) -> Path:
        """Socket on which this side receives frames of device ``number``, counted from 0."""
        return self.runtime_dir / f"d{number}o"

    def feed_qemu(self, number: int) -> Path:
        """Socket on which QEMU receives frames for device ``number``, counted from 0."""
        return self.runtime_dir / f"d{number}q"


def build_argv(
    spec: MachineSpec, paths: MachinePaths, *, run_id: str, append: str, incoming: bool = False
) -> tuple[str, ...]:
    """Build QEMU's argv. The machine starts paused, so that no output is missed.

    :param incoming: wait for a saved state.
    :raises PlanError: QEMU has no such accelerator, IOMMU or serial.
    """
    if spec.accel not in _ACCELS:
        raise PlanError(f"no accelerator '{spec.accel}'", hint=f"one of {', '.join(_ACCELS)}")
    if (spec.iommu, spec.scalable) not in _IOMMUS:
        mode = " with scalable mode" if spec.scalable else ""
        known = ", ".join(dict.fromkeys(kind for kind, _mode in _IOMMUS))
        raise PlanError(f"no IOMMU '{spec.iommu}'{mode}", hint=f"one of {known}")
    accel, cpu = _ACCELS[spec.accel]
    # Interrupt remapping needs the I/O APIC in user space (QEMU, hw/i386/intel_iommu.c).
    irqchip = ",kernel-irqchip=split" if spec.accel == "kvm" and spec.iommu != "none" else ""
    # fmt: off
    return (
        spec.qemu,
        "-name", machine_name(run_id),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-S",
        "-accel", accel, "-cpu", cpu, "-smp", str(spec.vcpus),
        "-m", f"{spec.memory_bytes // 1024}K",
        "-object", f"memory-backend-file,id={RAM_ID},size={spec.memory_bytes},"
                   f"mem-path=/proc/self/fd/{paths.ram_fd},share=on",
        "-M", f"q35,memory-backend={RAM_ID}{irqchip}",
        *_IOMMUS[spec.iommu, spec.scalable],
        "-kernel", str(paths.kernel), "-append", append,
        "-chardev", _socket("qmp", paths.qmp), "-mon", "chardev=qmp,mode=control",
        *(_monitor("watch", paths.watch) if spec.devices else ()),
        "-chardev", _socket("con", paths.console), "-serial", "chardev:con",
        # before all that takes the slot that is next
        *(
            word
            for number, (name, kind) in enumerate(spec.devices)
            for word in _device(number, name, kind, paths, is_behind_port=spec.iommu != "amd")
        ),
        "-device", "virtio-serial-pci",
        "-chardev", _socket("agt", paths.agent),
        "-device", f"virtserialport,chardev=agt,name={AGENT_PORT}",
        "-device", "virtio-rng-pci",
        *_disk(DiskFile(serial="root", path=paths.rootfs), read_only=True),
        *_disk(DiskFile(serial="kit", path=paths.kit), read_only=True),
        *(word for disk in paths.disks for word in _disk(disk, read_only=False)),
        *ssh_nic(),
        *wire_nic(paths),
        *(("-incoming", "defer") if incoming else ()),
    )
    # fmt: on


def device_id(name: str) -> str:
    """QEMU's id of the passed-through device ``name`` of a scenario."""
    return f"dev-{name}"


def ssh_nic(place: str = "") -> tuple[str, ...]:
    """Return the network card for SSH, with a port on the loopback that QEMU chooses.

    :param place: more properties of the device, such as its address.
    """
    # fmt: off
    return (
        # restrict: the host under update cannot reach any network; forwarding still works
        "-netdev", "user,id=ssh,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", _nic(SSH_NIC, "ssh", SSH_MAC, place),
    )
    # fmt: on


def wire_nic(paths: MachinePaths, place: str = "") -> tuple[str, ...]:
    """Return the network card of the guests' link; ``place`` as of :func:`ssh_nic`."""
    # fmt: off
    return (
        "-netdev", "dgram,id=wire"
                   f",local.type=unix,local.path={_escape(paths.wire_qemu)}"
                   f",remote.type=unix,remote.path={_escape(paths.wire_ours)}",
        "-device", _nic(WIRE_NIC, "wire", WIRE_MAC, place),
    )
    # fmt: on


def _nic(name: str, netdev: str, mac: str, place: str) -> str:
    device = f"virtio-net-pci,id={name},netdev={netdev},mac={mac},romfile="
    return f"{device},{place}" if place else device


def parse_ssh_port(usernet: str) -> int:
    """Find the forwarded port in the output of ``info usernet``.

    :raises ValueError: there is none.
    """
    match = _HOST_FORWARD.search(usernet)
    if not match:
        raise ValueError("no forwarded port for SSH in 'info usernet'")
    return int(match[1])


def device_mac(number: int) -> str:
    """MAC address of device ``number`` (from 0)."""
    return f"52:54:00:40:00:{number:02x}"


def wire_id(name: str) -> str:
    """Return QEMU's id of the netdev of network card ``name`` of a scenario."""
    return f"wire-{name}"


def _device(
    number: int, name: str, kind: str, paths: MachinePaths, *, is_behind_port: bool
) -> tuple[str, ...]:
    """A device alone behind a root port of its own: an IOMMU group must have no other member.

    QEMU's AMD IOMMU takes the number of a device's bus from before the buses have been numbered: it
    knows what is on the root bus only (amdvi_host_dma_iommu() in hw/i386/amd_iommu.c).
    """
    if kind not in DEVICE_KINDS:
        raise PlanError(f"no device '{kind}'", hint=f"one of {', '.join(DEVICE_KINDS)}")
    # fixed slots: the BDF must be the same at both ends of a warm start
    place = f"bus=pcie.0,addr={_LAST_SLOT - 2 * number:#x}"
    port: tuple[str, ...] = ()
    if is_behind_port:
        place, slot = f"bus=port-{name}", f"{16 + number:#x}"
        port = ("-device", f"pcie-root-port,id=port-{name},chassis={number + 1},addr={slot}")
    before: tuple[str, ...] = ()
    own = ""
    # fmt: off
    if kind in FED_KINDS:
        before = (
            "-netdev", f"dgram,id={wire_id(name)}"
                       f",local.type=unix,local.path={_escape(paths.feed_qemu(number))}"
                       f",remote.type=unix,remote.path={_escape(paths.feed_ours(number))}",
        )
        own = f",netdev={wire_id(name)},mac={device_mac(number)},romfile="
    elif kind == "nvme":
        before = _namespace(name, paths.namespaces[name])
        own = f",drive=ns-{name},serial={name}"
    else:
        own = f",dma_mask={_EDU_MASK:#x}"
    return (*port, *before, "-device", f"{kind},id={device_id(name)},{place}{own}")
    # fmt: on


def throttle_id(name: str) -> str:
    """Return QEMU's id of the limit of NVMe controller ``name``; at first it limits nothing."""
    return f"limit-{name}"


def _namespace(name: str, path: Path) -> tuple[str, ...]:
    node = {
        "driver": "throttle",
        "node-name": f"ns-{name}"[:31],
        "throttle-group": throttle_id(name),
        "file": {"driver": "raw", "file": {"driver": "file", "filename": str(path)}},
    }
    # fmt: off
    return (
        "-object", f"throttle-group,id={throttle_id(name)}",
        "-blockdev", json.dumps(node, separators=(",", ":")),
    )
    # fmt: on


def _socket(name: str, path: Path) -> str:
    return f"socket,id={name},path={_escape(path)},server=on,wait=off"


def _monitor(name: str, path: Path) -> tuple[str, ...]:
    return ("-chardev", _socket(name, path), "-mon", f"chardev={name},mode=control")


def _escape(path: Path) -> str:
    """A comma ends an option's value in QEMU unless it is doubled."""
    return str(path).replace(",", ",,")


def check_serial(serial: str) -> None:
    """Check a disk's serial.

    :raises PlanError: no disk can have it.
    """
    if not 0 < len(serial.encode()) <= MAX_SERIAL or "," in serial:
        raise PlanError(f"'{serial}' cannot be a disk's serial", hint=f"1 to {MAX_SERIAL} bytes")


def _disk(disk: DiskFile, *, read_only: bool) -> tuple[str, ...]:
    check_serial(disk.serial)
    node = f"disk-{disk.serial}"[:31]
    blockdev = {
        "driver": disk.format,
        "node-name": node,
        "read-only": read_only,
        # The control host reads these files through the page cache, which outlives QEMU. The
        # host under update flushes its own caches; a slow disk here must not be measured.
        "cache": {"direct": False, "no-flush": True},
        "file": {"driver": "file", "filename": str(disk.path)},
    }
    return (
        "-blockdev",
        json.dumps(blockdev, separators=(",", ":")),
        "-device",
        f"virtio-blk-pci,drive={node},serial={disk.serial}",
    )
