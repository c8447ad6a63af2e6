# SPDX-License-Identifier: Apache-2.0
"""The libvirt target with a private libvirtd and a QEMU that never runs an instruction."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded, LaunchError, LostMachine, PlanError
from liveupdate.target.libvirt import link
from liveupdate.target.libvirt.host import LibvirtHost
from liveupdate.target.libvirt.link import Link
from liveupdate.target.machines import MachineState, Registry
from liveupdate.transport.monitor import QmpRefused
from tests.support import libvirtd
from tests.support.idle_libvirt import make_host
from tests.support.idle_qemu import is_gone, soon
from tests.support.qmp_events import find_event

pytestmark = pytest.mark.skipif(bool(libvirtd.missing()), reason=libvirtd.missing())


@pytest.fixture(scope="module")
def shared() -> Iterator[libvirtd.Daemon]:
    with libvirtd.serve() as daemon:
        yield daemon


@pytest.fixture
def own() -> Iterator[libvirtd.Daemon]:
    """One to be hurt."""
    with libvirtd.serve() as daemon:
        yield daemon


def has_domain(daemon: libvirtd.Daemon, run_id: str = "t1") -> bool:
    link = Link.open(daemon.uri, soon())
    try:
        return link.is_defined(f"lu-{run_id}", soon())
    finally:
        link.close()


@pytest.fixture
def started(
    shared: libvirtd.Daemon, files: Path, root: Path, tmp_path: Path
) -> Iterator[LibvirtHost]:
    """A machine that is to leave nothing behind, whatever a test does to it."""
    host = make_host(shared, files, root, tmp_path)
    try:
        host.start(soon())
        yield host
    finally:
        left = host.shutdown()
    assert left == ()
    assert not has_domain(shared)


def test_start_and_shutdown_leave_nothing(
    shared: libvirtd.Daemon, files: Path, root: Path, tmp_path: Path
) -> None:
    host = make_host(shared, files, root, tmp_path)
    host.start(soon())
    try:
        pid = host.pid
        assert host.death() is None
        assert has_domain(shared)
        assert host.ssh_port > 0
        assert host.qemu_version.count(".") == 2
        assert host.kvm_enabled is False
        assert "guest=lu-t1,debug-threads=on" in host.argv
        assert "<memoryBacking>" in (tmp_path / "t1" / "domain.xml").read_text()
        (listed,) = Registry(root).list()
        assert (listed.machine.run_id, listed.state) == ("t1", MachineState.RUNNING)
    finally:
        assert host.shutdown() == ()
    assert host.shutdown() == ()
    assert is_gone(pid)
    assert not has_domain(shared)
    assert list(root.iterdir()) == []


def test_ram_is_seen_from_outside(started: LibvirtHost) -> None:
    with started.ram.view(32 << 20, 8) as view:
        view[:] = b"\x11\x22\x33\x44\x55\x66\x77\x88"
    # the other oracle: QEMU's own view of the same physical address
    assert "0x8877665544332211" in started.qmp.hmp("xp /1gx 0x2000000", soon())


def test_the_machine_has_the_devices_of_the_plain_one(started: LibvirtHost) -> None:
    tree = started.qmp.hmp("info pci", soon())
    assert "bridge: PCI device 1b36" not in tree, "libvirt added bridges of its own"
    blocks = started.qmp.hmp("info block", soon())
    assert blocks.count("(raw, read-only)") == 2
    assert str(started.disks["vm0"]) in blocks
    assert "intel-iommu" in started.qmp.hmp("info qtree", soon())


def test_a_refused_command_is_qemus_own_error(started: LibvirtHost) -> None:
    with pytest.raises(QmpRefused, match="CommandNotFound"):
        started.qmp.execute("no-such-command", {}, soon())
    started.resume(soon())
    assert find_event(started.qmp, "RESUME", soon()).at_ns > 0


def test_a_reset_is_the_machines_end(started: LibvirtHost) -> None:
    started.qmp.execute("system_reset", {}, soon())
    with pytest.raises(LostMachine, match="the machine ended: host-qmp-system-reset"):
        started.agent.wait_event("hello", soon())


def test_what_qemu_says_is_in_the_error(
    shared: libvirtd.Daemon, files: Path, root: Path, tmp_path: Path
) -> None:
    host = make_host(shared, files, root, tmp_path, kernel="no-such-kernel")
    with pytest.raises(LaunchError, match="no-such-kernel"):
        host.__enter__()
    assert list(root.iterdir()) == []
    assert not has_domain(shared)


def test_qemu_killed_is_a_lost_machine(started: LibvirtHost) -> None:
    started.kill()
    with pytest.raises(LostMachine, match="QEMU ended") as caught:
        started.agent.wait_event("hello", soon())
    assert caught.value.how == "exited"


def test_a_hung_qemu_costs_a_deadline_and_is_ended(
    shared: libvirtd.Daemon,
    files: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("liveupdate.target.qemu.host.QUIT_TIMEOUT_S", 0.5)
    monkeypatch.setattr("liveupdate.target.libvirt.host._DESTROY_TIMEOUT_S", 20.0)
    host = make_host(shared, files, root, tmp_path)
    host.start(soon())
    pid = host.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded, match="query-status"):
        host.qmp.execute("query-status", {}, Deadline.after(0.5, "an answer"))
    problems = host.shutdown()
    assert any("had to be killed" in problem for problem in problems)
    assert is_gone(pid)
    assert list(root.iterdir()) == []


def test_a_libvirtd_that_ends_is_a_lost_monitor(
    own: libvirtd.Daemon, files: Path, root: Path, tmp_path: Path
) -> None:
    host = make_host(own, files, root, tmp_path)
    host.start(soon())
    pid = host.pid
    own.child.kill()
    wait_until(lambda: host.qmp.lost, soon())
    with pytest.raises(LostMachine, match="libvirt is gone"):
        host.qmp.execute("query-status", {}, soon())
    # the machine goes on without it, until we end it
    assert not is_gone(pid)
    host.shutdown()
    # nobody of ours is its parent: whoever is reaps it in their own time
    wait_until(lambda: is_gone(pid), soon())
    assert list(root.iterdir()) == []


OWNER = """
import sys, time
from pathlib import Path
from liveupdate.core.deadline import Deadline
from tests.support.idle_libvirt import make_host
tmp = Path(sys.argv[2])
class Daemon:
    uri = sys.argv[3]
host = make_host(Daemon, tmp, Path(sys.argv[1]), tmp, "owned")
host.start(Deadline.after(20, "start"))
print(host.pid, flush=True)
time.sleep(60)
"""


def test_kill_minus_9_of_the_owner_ends_the_domain(
    shared: libvirtd.Daemon, files: Path, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pid"
    argv = (sys.executable, "-c", OWNER, str(root), str(tmp_path), shared.uri)
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with out.open("wb") as output, proc.spawn(argv, stdout=output, stderr=2, env=env) as owner:
        pid = int(wait_until(lambda: out.read_text().strip() or None, soon(30)))
        os.kill(owner.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid), soon(10))
    wait_until(lambda: not has_domain(shared, "owned"), soon(10))
    assert Registry(root).sweep(soon()).removed == ("owned",)
    assert list(root.iterdir()) == []


def test_nobody_at_the_uri_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no libvirt at"):
        link.check(f"qemu+unix:///session?socket={tmp_path}/none")
