# SPDX-License-Identifier: Apache-2.0
"""A machine at a place of a lab: lock, power and console by a real coordinator and exporter."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LaunchError
from liveupdate.target.labgrid import Place, PlaceLost
from liveupdate.target.machines import Registry
from liveupdate.target.ssh.host import SshHost
from liveupdate.target.ssh.spec import ConsoleSpec, LabgridSpec, LabMachine
from tests.support import labgrid

pytest.importorskip("labgrid", reason="pip install -e '.[labgrid]'")
# one worker, so that one lab is started
pytestmark = pytest.mark.xdist_group("labgrid")

PLACE = "box"
HOLD = """
import sys, time
from liveupdate.target.labgrid import Place
from liveupdate.target.ssh.spec import LabgridSpec
with Place(LabgridSpec(place=sys.argv[1], coordinator=sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@dataclass(slots=True)
class Machine:
    """What stands at the place: says the first line of a kernel whenever it is switched on."""

    lab: labgrid.Lab
    switched: list[float]
    root: Path

    @property
    def spec(self) -> LabgridSpec:
        return LabgridSpec(place=PLACE, coordinator=self.lab.address)

    def make_host(self, run_id: str) -> SshHost:
        for name in (f"run-{run_id}", "rt"):
            (self.root / name).mkdir(exist_ok=True)
        machine = LabMachine(
            address="127.0.0.1",
            port=9,
            host_key=self.root / "none",
            key=self.root / "none",
            console=ConsoleSpec(),
            power=(),
            append="",
            disks=(),
            labgrid=self.spec,
        )
        registry = Registry(self.root / "rt")
        return SshHost(
            machine, run_id=run_id, run_dir=self.root / f"run-{run_id}", registry=registry
        )


@pytest.fixture(scope="module")
def lab() -> Iterator[Machine]:
    links: list[socket.socket] = []
    switched: list[float] = []

    def switch() -> None:
        switched.append(1)
        for link in links:
            # those of earlier tests have gone
            with contextlib.suppress(OSError):
                link.sendall(b"[    0.000000] Linux version 7.3.4\r\n")

    def accept() -> None:
        while True:
            try:
                links.append(listener.accept()[0])
            except OSError:
                return

    root = Path(tempfile.mkdtemp(prefix="lu-test-", dir="/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        with labgrid.serve(PLACE, listener.getsockname()[1], switch) as served:
            yield Machine(served, switched, root)
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for link in links:
        link.close()
    shutil.rmtree(root)


@pytest.fixture
def machine(lab: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """The same for each test, free at its start."""
    for name, text in labgrid.ME.items():
        monkeypatch.setenv(name, text)
    yield lab
    holder = lab.lab.holder(PLACE)
    if holder is not None:
        lab.lab.release(PLACE)


def wait_free(machine: Machine) -> None:
    wait_until(
        lambda: machine.lab.holder(PLACE) is None,
        Deadline.after(20.0, "the place to be free"),
        interval_s=0.2,
    )


def test_a_place_is_taken_switched_heard_and_given_back(machine: Machine) -> None:
    before = len(machine.switched)
    with machine.make_host("a1") as host:
        assert len(machine.switched) == before + 1
        assert machine.lab.holder(PLACE) == "desk/me"
        assert "Linux version 7.3.4" in "\n".join(host.console.tail(5))
        assert host.death() is None
    assert host.problems == ()
    assert machine.lab.holder(PLACE) is None


def test_it_is_given_back_after_a_failure_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "reset", lambda *_args: (_ for _ in ()).throw(LaunchError("broken")))
    with pytest.raises(LaunchError, match="broken"):
        machine.make_host("a2").__enter__()
    assert machine.lab.holder(PLACE) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_is_given_back_when_whoever_held_it_is_interrupted_or_killed(
    machine: Machine, number: signal.Signals
) -> None:
    argv = [sys.executable, "-c", HOLD, PLACE, machine.lab.address]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert machine.lab.holder(PLACE) == "desk/me"
        child.send_signal(number)
        child.wait(20)
    wait_free(machine)


def test_somebody_elses_place_is_refused_by_name_and_not_touched(machine: Machine) -> None:
    machine.lab.acquire(PLACE, who=labgrid.OTHER)
    before = len(machine.switched)
    with pytest.raises(LaunchError, match=r"'box' is held by far/somebody.*allow desk/me"):
        machine.make_host("a3").__enter__()
    assert len(machine.switched) == before
    assert machine.lab.holder(PLACE) == "far/somebody"


def test_a_place_that_lets_us_in_is_used_and_left_to_its_holder(machine: Machine) -> None:
    machine.lab.acquire(PLACE, who=labgrid.OTHER)
    machine.lab.allow(PLACE, "desk/me", who=labgrid.OTHER)
    with Place(machine.spec) as place:
        assert place.lost is None
    assert machine.lab.holder(PLACE) == "far/somebody"


def test_a_place_taken_beforehand_is_kept(machine: Machine) -> None:
    machine.lab.acquire(PLACE)
    with Place(machine.spec):
        pass
    assert machine.lab.holder(PLACE) == "desk/me"


def test_a_place_that_is_taken_away_is_said_and_not_touched_any_more(machine: Machine) -> None:
    with machine.make_host("a6") as host:
        machine.lab.release(PLACE)
        machine.lab.acquire(PLACE, who=labgrid.OTHER)
        wait_until(lambda: host.death() is not None, Deadline.after(20.0, "the loss to be seen"))
        before = len(machine.switched)
        with pytest.raises(PlaceLost, match="was taken away"):
            host.reset(Deadline.after(10.0, "the reset"))
        assert len(machine.switched) == before
    # it is not ours to give back
    assert machine.lab.holder(PLACE) == "far/somebody"


def test_no_such_place_and_no_coordinator_are_said(machine: Machine) -> None:
    with pytest.raises(LaunchError, match="nowhere"):
        Place(LabgridSpec(place="nowhere", coordinator=machine.lab.address)).__enter__()
    with pytest.raises(LaunchError, match="labgrid"):
        Place(LabgridSpec(place=PLACE, coordinator="127.0.0.1:1")).__enter__()


def test_a_coordinator_that_restarts_has_forgotten_the_lock(machine: Machine) -> None:
    # last in this file: it ends the coordinator that the others use, and starts it anew
    with Place(machine.spec) as place:
        machine.lab.stop_coordinator(PLACE)
        machine.lab.start_coordinator()
        wait_until(lambda: place.lost is not None, Deadline.after(30.0, "the loss to be seen"))
        assert "it is free now" in str(place.lost)
