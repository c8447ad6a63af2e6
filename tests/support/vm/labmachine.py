# SPDX-License-Identifier: Apache-2.0
"""A machine of a lab that somebody else runs: the tool gets SSH, a serial socket, a power script.

It is a QEMU that the tool knows nothing of: no monitor of ours, no port for the agent, memory that
nobody maps. It has the root file system and kernels of the images, as if provisioned with them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.images import catalogue
from liveupdate.planning.devices import IOMMU_APPEND
from liveupdate.planning.planner import BASE_APPEND, TCG_APPEND
from liveupdate.target.qemu.argv import SSH_MAC, WIRE_MAC, parse_ssh_port
from liveupdate.transport.qmp import Qmp

APPEND = f"{BASE_APPEND} {TCG_APPEND} {IOMMU_APPEND['intel', False]}"
#: what the machine's own boot loader adds, and the tool does for the incoming kernel
PRESERVE = "kho=on liveupdate=on"
_POWER = """
import sys
from pathlib import Path
from liveupdate.core.deadline import Deadline
from liveupdate.transport.qmp import Qmp
assert sys.argv[2] == "reset", sys.argv
deadline = Deadline.after(20, "the reset")
with Qmp(Path(sys.argv[1])) as qmp:
    qmp.connect(deadline)
    qmp.execute("system_reset", {}, deadline)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """The machine as the lab describes it, and its process, which is the lab's."""

    description: Path
    directory: Path
    child: proc.Child
    port: int
    key: Path
    host_key: Path


@contextmanager
def serve(disks: tuple[str, ...] = ("scratch",), memory: str = "2G") -> Iterator[Lab]:
    """Run the machine for the length of a block.

    :param disks: serials of disks for guests.
    """
    images = catalogue.resolve(None, None)
    directory = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    for name in disks:
        with (directory / f"disk-{name}").open("wb") as disk:
            disk.truncate(16 << 20)
    kit = catalogue.make_kit(images)
    argv = (
        "qemu-system-x86_64", "-name", "somebody-elses", "-nodefaults", "-display", "none",
        "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt,+x2apic", "-smp", "2", "-m", memory,
        "-M", "q35", "-device", "intel-iommu,intremap=on,eim=on",
        "-kernel", images.outgoing.path, "-append", f"{APPEND} {PRESERVE}",
        "-chardev", f"socket,id=con,path={directory}/con,server=on,wait=off",
        "-serial", "chardev:con",
        "-chardev", f"socket,id=qmp,path={directory}/qmp,server=on,wait=off",
        "-mon", "chardev=qmp,mode=control", "-device", "virtio-rng-pci",
        *_disk("root", images.rootfs, "on"), *_disk("kit", str(kit), "on"),
        *(each for name in disks for each in _disk(name, f"{directory}/disk-{name}", "off")),
        "-netdev", "user,id=ssh,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", f"virtio-net-pci,netdev=ssh,mac={SSH_MAC},romfile=",
        "-netdev", "hubport,id=guests,hubid=0",
        "-device", f"virtio-net-pci,netdev=guests,mac={WIRE_MAC},romfile=",
    )  # fmt: skip
    try:
        log = directory / "log"
        with log.open("wb") as output, proc.spawn(argv, stdout=output, stderr=output) as child:
            deadline = Deadline.after(30.0, "the machine of the lab")
            wait_until(
                lambda: (directory / "qmp").exists() or child.returncode is not None,
                deadline,
                describe=lambda: log.read_text(errors="replace"),
            )
            with Qmp(directory / "qmp") as qmp:
                qmp.connect(deadline)
                port = parse_ssh_port(qmp.hmp("info usernet", deadline))
            yield Lab(
                description=describe(
                    directory, port, images.ssh_client_key, images.ssh_host_key_pub, disks=disks
                ),
                directory=directory,
                child=child,
                port=port,
                key=Path(images.ssh_client_key),
                host_key=Path(images.ssh_host_key_pub),
            )
    finally:
        shutil.rmtree(directory)


def power_script(directory: Path) -> Path:
    """Write a power script, to be called with the QMP socket and "reset"."""
    path = directory / "power.py"
    path.write_text(_POWER)
    return path


def describe(
    directory: Path,
    port: int,
    key: str,
    host_key: str,
    name: str = "box",
    disks: tuple[str, ...] = ("scratch",),
) -> Path:
    """Write a description and its power script."""
    power = power_script(directory)
    path = directory / f"{name}.toml"
    path.write_text(
        f"""
address = "127.0.0.1"
port = {port}
key = "{key}"
host_key = "{host_key}"
append = "{APPEND}"
disks = {json.dumps(disks)}

[console]
socket = "{directory}/con"

[power]
command = ["{sys.executable}", "{power}", "{directory}/qmp"]
"""
    )
    return path


def _disk(serial: str, path: str, read_only: str) -> tuple[str, ...]:
    return (
        "-drive", f"if=none,id={serial},file={path},format=raw,readonly={read_only},cache=unsafe",
        "-device", f"virtio-blk-pci,drive={serial},serial={serial}",
    )  # fmt: skip
