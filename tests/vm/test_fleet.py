# SPDX-License-Identifier: Apache-2.0
"""A fleet: hosts that Ansible provisions, and rolls that end at a host that was not updated."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.images import catalogue
from liveupdate.transport.ssh import Ssh
from tests.support.vm import cli, debianmachine, labmachine, nightly
from tests.support.vm.playbook import BIN, Desk, Played, Playing

pytest.importorskip("ansible", reason="pip install -e '.[dev]'")

NAMES = ("node-1", "node-2", "node-3")
#: on one CPU: guests of an emulated host do not move between two (docs/adr/0006)
GUEST = 'name = "vm0"\nmemory = "96M"\ndisk = "scratch"\npattern = "4M"\ncpu = 1\n'
#: until the host before is being updated: all have been asked then
ASKED_S = 120.0
#: for how long the tool tries to reach a host that is down
PATIENCE_S = 15
COMMAND_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Three hosts with a guest each, and the desk that they are rolled from."""

    desk: Desk
    machines: Mapping[str, labmachine.Lab]

    def roll(self) -> Playing:
        images = catalogue.resolve(None, None)
        return self.desk.start(
            "rolling_update",
            "-e", f"next_kernel={images.incoming.path}",
            "-e", f"liveupdate_tool={BIN / 'liveupdate'}",
            "-e", f"roll_results={self.desk.directory / 'roll'}",
        )  # fmt: skip

    def wait_for(self, roll: Playing, name: str) -> None:
        """Wait until the update of a host has begun."""
        runs = self.desk.directory / "roll" / name

        def has_begun() -> bool:
            assert not roll.has_ended, roll.output[-6000:]
            return any(runs.glob("*/journal.jsonl"))

        wait_until(has_begun, Deadline.after(ASKED_S, f"the update of '{name}' to begin"))

    def tell(self, name: str, command: str) -> str:
        """Run a shell command on a host and return what it prints."""
        machine = self.machines[name]
        deadline = Deadline.after(COMMAND_S, f"'{command}' on '{name}'")
        with Ssh.connect(
            host="127.0.0.1", port=machine.port, user="root", key=machine.key,
            host_key=machine.host_key, deadline=deadline,
        ) as ssh:  # fmt: skip
            done = ssh.run(("sh", "-c", command), deadline, check=True)
        return done.stdout.decode().strip()

    def guest(self, name: str) -> Mapping[str, object]:
        """Return what the agent of a host says of its guest."""
        said = cli.call("guests", "list", name, "--json", env=self.desk.env)
        assert said.returncode == 0, said.explain()
        found: Mapping[str, object] = said.document["vm0"]
        return found

    def release(self, name: str) -> str:
        return self.tell(name, "uname -r")


def inventory_of(
    machine: labmachine.Lab | debianmachine.DebianMachine, append: str
) -> dict[str, object]:
    """Return what an inventory says of a machine, for Ansible and for the tool."""
    return {
        "ansible_host": "127.0.0.1",
        "ansible_port": machine.port,
        "ansible_ssh_private_key_file": str(machine.key),
        "liveupdate_host_key": machine.host_key.read_text().strip(),
        "liveupdate_append": append,
        "liveupdate_disks": ["scratch"],
        "liveupdate_console": {"socket": f"{machine.directory}/con"},
        "liveupdate_power": [
            sys.executable, str(labmachine.power_script(machine.directory)),
            f"{machine.directory}/qmp",
        ],
    }  # fmt: skip


def start_guest(desk: Desk, name: str) -> None:
    said = cli.call("guests", "start", name, str(desk.directory / "guests.toml"), env=desk.env)
    assert said.returncode == 0, said.explain()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    desk = Desk(directory=tmp_path_factory.mktemp("fleet"))
    with ExitStack() as stack:
        machines = {name: stack.enter_context(labmachine.serve(memory="1G")) for name in NAMES}
        hosts = {name: inventory_of(machines[name], labmachine.APPEND) for name in NAMES}
        for found in hosts.values():
            found["roll_options"] = ["--observe", "2"]
        # it is switched off, and there is no use in waiting for it
        hosts["node-3"]["roll_options"] = ["--patience", str(PATIENCE_S)]
        desk.write_inventory(hosts)
        # while they boot
        done = desk.play("provision", "--limit", "liveupdate_control")
        assert done.returncode == 0, done.explain()
        (desk.directory / "guests.toml").write_text(f"[[guest]]\n{GUEST}")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: start_guest(desk, name), NAMES))
        yield Fleet(desk=desk, machines=machines)


def assert_stopped_at(done: Played, name: str) -> None:
    assert done.returncode == 2, done.explain()
    for each in NAMES:
        assert done.recap(each)["failed"] == (each == name), done.explain()


@nightly.part("fleet")
def test_a_roll_ends_at_a_host_whose_guest_hangs_and_the_next_is_not_touched(fleet: Fleet) -> None:
    images = catalogue.resolve(None, None)
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = {name: (fleet.tell(name, boot_id), fleet.guest(name)["pid"]) for name in NAMES}
    roll = fleet.roll()
    fleet.wait_for(roll, "node-1")
    fleet.tell("node-2", f"kill -STOP {before['node-2'][1]}")

    done = roll.wait()
    assert_stopped_at(done, "node-2")
    assert "node-1: updated" in done.output, done.explain()
    assert "node-2: refused" in done.output, done.explain()
    assert "node-3: not touched" in done.output, done.explain()
    assert fleet.release("node-1") == images.incoming.release
    assert fleet.guest("node-1")["status"] == "running"
    fleet.tell("node-2", f"kill -CONT {before['node-2'][1]}")
    for name in ("node-2", "node-3"):
        guest = fleet.guest(name)
        assert (fleet.tell(name, boot_id), guest["pid"]) == before[name]
        assert guest["status"] == "running"
    assert not (fleet.desk.directory / "roll" / "node-3").exists()


@nightly.part("fleet")
def test_the_next_roll_goes_on_from_there_and_ends_at_a_host_that_was_switched_off(
    fleet: Fleet,
) -> None:
    images = catalogue.resolve(None, None)
    roll = fleet.roll()
    fleet.wait_for(roll, "node-2")
    fleet.machines["node-3"].child.kill()

    done = roll.wait()
    assert_stopped_at(done, "node-3")
    assert done.recap("node-1")["changed"] == 0, done.explain()
    assert "node-1: runs it already" in done.output, done.explain()
    assert "node-2: updated" in done.output, done.explain()
    assert "node-3: unreachable" in done.output, done.explain()
    assert "host 'node-3' to be asked" in done.output, done.explain()
    for name in ("node-1", "node-2"):
        assert fleet.release(name) == images.incoming.release
        assert fleet.guest(name)["status"] == "running"


@nightly.part("fleet")
def test_provisioning_changes_nothing_in_check_mode_nor_the_second_time(tmp_path: Path) -> None:
    images = catalogue.resolve(None, None)
    desk = Desk(directory=tmp_path)
    with ExitStack() as stack:
        machine = debianmachine.start(stack, tmp_path, "node")
        known = tmp_path / "known_hosts"
        kind, blob = machine.host_key.read_text().split()[:2]
        known.write_text(f"[127.0.0.1]:{machine.port} {kind} {blob}\n")
        node = inventory_of(machine, debianmachine.APPEND) | {
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={known}",
            "host_bootloader": "none",
            "host_kernel_image": images.outgoing.path,
            "host_kernel_release": images.outgoing.release,
            "host_guest_kernel": images.guest_kernel,
            "host_guest_initrd": images.guest_initrd,
        }
        desk.write_inventory({"node": node})
        machine.wait_booted()
        dry = desk.play("provision", "--check")
        assert dry.returncode == 0, dry.explain()
        deadline = Deadline.after(COMMAND_S, "the bare host")
        with machine.ssh(deadline) as ssh:
            ssh.run(("test", "!", "-e", "/usr/local/lib/liveupdate"), deadline, check=True)
            ssh.run(("test", "!", "-e", "/usr/sbin/kexec"), deadline, check=True)
        assert not (tmp_path / "config").exists()

        first = desk.play("provision")
        assert first.returncode == 0, first.explain()
        assert first.recap("node")["changed"] > 0, first.explain()
        said = cli.call("guests", "list", "node", env=desk.env)
        assert said.returncode == 0, said.explain()

        second = desk.play("provision")
        assert second.returncode == 0, second.explain()
        for host in ("node", "localhost"):
            assert second.recap(host)["changed"] == 0, second.explain()
