# SPDX-License-Identifier: Apache-2.0
"""A guest on our kernels survives stores to MMIO that follow right after exceptions.

Under QEMU's TCG, an exception that a guest takes without an exit leaves bits in the VMCB. Linux
without our fix takes them for an event under delivery when the guest next stores to a page of MMIO
for the first time, and ends the guest with "KVM internal error. Suberror: 3"
(guest-images/kernel/fixes/0001, docs/adr/0006). The guest runs guest-images/selftests/kvm_mmio.c as
PID 1; its VMM has the machine and the CPU that the agent gives to guests.
"""

from __future__ import annotations

import re
import secrets

import pytest

from liveupdate.cli.app import App
from liveupdate.cli.options import ScenarioArgs
from liveupdate.cli.prepare_run import prepare
from liveupdate.core.deadline import Deadline
from liveupdate.images import catalogue, cpio
from liveupdate.run.bringup import make_host
from liveupdate.transport.ssh import Ssh
from tests.support.ktap import find_wrong

pytestmark = pytest.mark.side_by_side

BOOT_S = 90.0
CALL_S = 30.0
#: under TCG the guest takes 9 s
GUEST_S = 120
PROGRAM = "kvm_mmio"
#: on CPU 1, the last one of the host: docs/adr/0006 says why
VMM = (
    "timeout", str(GUEST_S), "taskset", "-c", "1", "qemu-system-x86_64",
    "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
    "-accel", "kvm", "-cpu", "host", "-m", "128M",
    "-machine", "q35,kernel-irqchip=split,smm=off,graphics=off,vmport=off,smbus=off,sata=off,"
                "usb=off",
    "-serial", "stdio",
    "-kernel", "/kit/guest-kernel", "-initrd", "/run/mmio-initrd",
    "-append", "console=ttyS0 panic=-1 no_timer_check quiet",
    "-device", "pci-testdev,addr=0x5,membar=4M",
    "-device", "pci-testdev,addr=0x6,membar=1M,membar-backed=on",
)  # fmt: skip


def run_guest(ssh: Ssh, initrd: bytes) -> str:
    """Run the guest to its end; return its console and what the VMM said."""
    deadline = Deadline.after(CALL_S, "the guest's initramfs on the host")
    assert ssh.run(("sh", "-c", "cat >/run/mmio-initrd"), deadline, stdin=initrd).status == 0
    done = ssh.run(VMM, Deadline.after(GUEST_S + CALL_S, "the guest's end"))
    return (done.stdout + done.stderr).decode(errors="replace").replace("\r", "")


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("mmio")
    initrd = cpio.make_initramfs((catalogue.find_image("selftests") / PROGRAM).read_bytes())
    plan = prepare(App(), ScenarioArgs(scenario=None, overrides=()), directory).plan
    kit = catalogue.make_kit(plan.images)
    with (
        make_host(plan, secrets.token_hex(3), directory, kit) as host,
        host.ssh(Deadline.after(BOOT_S, "sshd")) as ssh,
    ):
        return run_guest(ssh, initrd)


def test_guest_outlives_each_first_access_to_mmio(console: str) -> None:
    assert "KVM internal error" not in console
    begin = console.find("KTAP version 1")
    assert begin >= 0, console[-1000:]
    assert console[begin:].splitlines()[1] == "1..3", console
    assert find_wrong(console[begin:]) == [], console
    # of each kind the guest counts the first access and the last one
    assert re.findall(r"^# (\d+) of (\d+) (\w+)$", console, re.MULTILINE)[1::2] == [
        ("1000", "1000", "pages"),
        ("100", "100", "changes"),
    ]
