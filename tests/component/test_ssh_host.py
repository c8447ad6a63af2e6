# SPDX-License-Identifier: Apache-2.0
"""Taking a machine of a lab, as far as that goes without one: locks, power and console."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import DeadlineExceeded, LaunchError, StateError
from liveupdate.target.machines import Registry
from liveupdate.target.ssh.host import SshHost
from liveupdate.target.ssh.spec import ConsoleSpec, LabMachine


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lu-test-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def machine(root: Path) -> Iterator[LabMachine]:
    """A machine that says the first line of a kernel whenever its power is switched."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "console"))
        listener.listen()
        switched = root / "switched"

        def talk() -> None:
            while True:
                try:
                    link = listener.accept()[0]
                except OSError:
                    return
                with link:
                    while not switched.exists():
                        if not _is_open(link):
                            break
                    else:
                        link.sendall(b"[    0.000000] Linux version 7.3.4\n")

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield LabMachine(
            address="127.0.0.1",
            port=9,
            host_key=root / "none",
            key=root / "none",
            console=ConsoleSpec(socket=str(root / "console")),
            power=("sh", "-c", f'[ "$0" = reset ] && touch {switched}'),
            append="",
            disks=(),
        )
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def _is_open(link: socket.socket) -> bool:
    link.settimeout(0.02)
    try:
        return link.recv(1) != b""
    except TimeoutError:
        return True


def make_host(machine: LabMachine, root: Path, run_id: str = "t1") -> SshHost:
    run_dir = root / f"run-{run_id}"
    run_dir.mkdir(exist_ok=True)
    (root / "rt").mkdir(exist_ok=True)
    return SshHost(machine, run_id=run_id, run_dir=run_dir, registry=Registry(root / "rt"))


def left(root: Path) -> list[str]:
    return [path.name for path in (root / "rt").iterdir() if not path.name.endswith(".lock")]


def test_a_machine_is_reset_when_it_is_taken_and_let_go_without_a_trace(
    machine: LabMachine, root: Path
) -> None:
    with make_host(machine, root) as host:
        assert (root / "switched").exists()
        assert [line.boot for line in host.console.boots] == [0]
        assert host.death() is None
        # sshd is not there (port 9 is discard): what was asked for is not known to have come
        with pytest.raises(DeadlineExceeded, match="a hello"):
            host.agent.wait_event("hello", Deadline.after(0.3, "a hello"))
    assert host.problems == ()
    assert left(root) == []
    with pytest.raises(StateError):
        make_host(machine, root, "t2").console  # noqa: B018


def test_the_second_run_on_one_machine_is_refused(machine: LabMachine, root: Path) -> None:
    with make_host(machine, root):
        with pytest.raises(LaunchError, match=r"another run uses 127\.0\.0\.1:9"):
            make_host(machine, root, "t2").__enter__()
        assert left(root) == ["t1"]


@pytest.mark.parametrize("command", [("false",), ("liveupdate-no-such-power",)])
def test_a_power_command_that_fails_is_said_and_leaves_nothing(
    machine: LabMachine, root: Path, command: tuple[str, ...]
) -> None:
    host = make_host(replace(machine, power=command), root)
    with pytest.raises(LaunchError, match="the power command failed"):
        host.__enter__()
    assert left(root) == []


def test_a_power_command_that_hangs_costs_its_deadline(machine: LabMachine, root: Path) -> None:
    host = make_host(replace(machine, power=("sh", "-c", "sleep 60")), root)
    with pytest.raises(DeadlineExceeded, match="the power command"):
        host.reset(Deadline.after(0.3, "the power command"))


def test_a_console_that_is_not_there_is_said(
    machine: LabMachine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liveupdate.target.ssh.host._CONNECT_TIMEOUT_S", 0.3)
    gone = replace(machine, console=ConsoleSpec(socket=str(root / "nowhere")))
    with pytest.raises(DeadlineExceeded, match="the console"):
        make_host(gone, root).__enter__()
    assert left(root) == []
    assert not (root / "switched").exists()
