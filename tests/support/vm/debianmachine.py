# SPDX-License-Identifier: Apache-2.0
"""A production-like host that somebody else runs: Debian with systemd, reached by SSH.

A QEMU that the tool knows nothing of, with the image ``debian-host``. Its disk can be written to,
and forgets what was written when the machine ends. What QEMU is told to boot stands for a boot
loader.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LiveUpdateError
from liveupdate.images import catalogue, debianhost
from liveupdate.images.cache import digest_of
from liveupdate.planning.devices import IOMMU_APPEND
from liveupdate.planning.planner import TCG_APPEND
from liveupdate.target.qemu.argv import SSH_MAC, WIRE_MAC, parse_ssh_port
from liveupdate.transport.qmp import Qmp
from liveupdate.transport.ssh import Ssh
from tests.support.vm.labmachine import power_script

APPEND = (
    "console=ttyS0 root=/dev/vda rw panic=-1 systemd.getty_auto=no "
    f"{TCG_APPEND} {IOMMU_APPEND['intel', False]}"
)
START_S = 30.0
BOOT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianMachine:
    """One machine that runs."""

    name: str
    directory: Path
    child: proc.Child
    port: int
    key: Path
    host_key: Path
    outgoing: Path

    @property
    def power(self) -> tuple[str, ...]:
        return (sys.executable, f"{self.directory}/power.py", f"{self.directory}/qmp")

    def ssh(self, deadline: Deadline) -> Ssh:
        return Ssh.connect(
            host="127.0.0.1",
            port=self.port,
            user="root",
            key=self.key,
            host_key=self.host_key,
            deadline=deadline,
        )

    def wait_booted(self) -> None:
        """Wait until it can be logged in to."""

        def answers() -> bool:
            if self.child.returncode is not None:
                raise AssertionError(f"QEMU of '{self.name}' ended")
            try:
                self.ssh(Deadline.after(10.0, "sshd")).close()
            except LiveUpdateError:
                return False
            return True

        wait_until(answers, Deadline.after(BOOT_S, f"'{self.name}' to boot"), interval_s=0.5)


def start(
    stack: ExitStack,
    directory: Path,
    name: str,
    *,
    memory: str = "1536M",
    append: str = "kho=on liveupdate=on",
    disks: Sequence[str] = ("scratch",),
) -> DebianMachine:
    """Start a machine that ends with ``stack``; returns before it has booted.

    :param directory: gets ``NAME/`` with its console log and sockets; keep its path short.
    :param append: what is added to the outgoing kernel's command line.
    """
    images = catalogue.resolve(None, None)
    entry = catalogue.open_cache().find("debian-host", digest_of(debianhost.inputs()))
    assert entry is not None, "liveupdate images build --tests"
    home = directory / name
    home.mkdir()
    for disk in disks:
        with (home / disk).open("wb") as file:
            file.truncate(16 << 20)
    argv = [
        "qemu-system-x86_64", "-name", f"somebody-elses-{name}", "-nodefaults", "-display", "none",
        "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt,+x2apic", "-smp", "2", "-m", memory,
        "-M", "q35", "-device", "intel-iommu,intremap=on,eim=on",
        "-kernel", images.outgoing.path, "-append", f"{APPEND} {append}",
        "-chardev", f"socket,id=con,path={home}/con,server=on,wait=off,logfile={home}/console",
        "-serial", "chardev:con",
        "-chardev", f"socket,id=qmp,path={home}/qmp,server=on,wait=off",
        "-mon", "chardev=qmp,mode=control", "-device", "virtio-rng-pci",
        "-drive", f"if=none,id=root,file={entry}/rootfs.ext4,format=raw,snapshot=on,cache=unsafe",
        "-device", "virtio-blk-pci,drive=root,serial=root",
        "-netdev", "user,id=ssh,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", f"virtio-net-pci,netdev=ssh,mac={SSH_MAC},romfile=",
        "-netdev", "hubport,id=guests,hubid=0",
        "-device", f"virtio-net-pci,netdev=guests,mac={WIRE_MAC},romfile=",
    ]  # fmt: skip
    for disk in disks:
        argv += [
            "-drive", f"if=none,id={disk},file={home}/{disk},format=raw,cache=unsafe",
            "-device", f"virtio-blk-pci,drive={disk},serial={disk}",
        ]  # fmt: skip
    log = home / "log"
    with log.open("wb") as output:
        child = stack.enter_context(proc.spawn(argv, stdout=output, stderr=output))
    deadline = Deadline.after(START_S, f"QEMU of '{name}'")
    wait_until(
        lambda: (home / "qmp").exists() or child.returncode is not None,
        deadline,
        describe=lambda: log.read_text(errors="replace"),
    )
    with Qmp(home / "qmp") as qmp:
        qmp.connect(deadline)
        port = parse_ssh_port(qmp.hmp("info usernet", deadline))
    power_script(home)
    return DebianMachine(
        name=name,
        directory=home,
        child=child,
        port=port,
        key=entry / "client_key",
        host_key=entry / "ssh_host_key.pub",
        outgoing=Path(images.outgoing.path),
    )
