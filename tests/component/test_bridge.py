# SPDX-License-Identifier: Apache-2.0
"""The bridge, the relay that runs over there, and the agent's socket, with no SSH between them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liveupdate.agent.link import port as agent_port
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import CommandFailed, LostMachine
from liveupdate.target.ssh.host import _RELAY, _run_console, _TtyStream
from liveupdate.transport.bridge import Bridge
from liveupdate.transport.unix import connect_unix
from tests.support.processes import is_running


def soon(timeout_s: float = 10.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


class Far:
    """Hands out one end of a pair at each opening and keeps the other."""

    def __init__(self) -> None:
        self.ours: list[socket.socket] = []
        self.refuse = False

    def open(self) -> socket.socket:
        if self.refuse:
            raise LostMachine("nobody there", how="no-answer")
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self.ours.append(ours)
        return theirs

    def wait(self, number: int) -> socket.socket:
        wait_until(lambda: len(self.ours) >= number, soon())
        return self.ours[number - 1]

    def close(self) -> None:
        for link in self.ours:
            link.close()


@pytest.fixture
def far() -> Iterator[Far]:
    it = Far()
    yield it
    it.close()


def near_of(bridge: Bridge) -> socket.socket:
    link = connect_unix(bridge.path, soon())
    link.settimeout(10)
    return link


def test_bytes_go_both_ways_and_the_client_outlives_the_far_end(far: Far, tmp_path: Path) -> None:
    with Bridge(tmp_path / "b", far.open) as bridge, near_of(bridge) as near:
        first = far.wait(1)
        first.sendall(b"hello")
        assert near.recv(100) == b"hello"
        near.sendall(b"ask")
        assert first.recv(100) == b"ask"
        first.close()
        second = far.wait(2)
        second.sendall(b"again")
        assert near.recv(100) == b"again"
    assert not (tmp_path / "b").exists()


def test_what_was_meant_for_one_far_end_never_reaches_the_next(far: Far, tmp_path: Path) -> None:
    with Bridge(tmp_path / "b", far.open) as bridge, near_of(bridge) as near:
        first = far.wait(1)
        far.refuse = True
        first.close()
        wait_until(lambda: bridge.trouble or None, soon())
        near.sendall(b"jump!")
        far.refuse = False
        second = far.wait(2)
        near.sendall(b"ping")
        assert second.recv(100) == b"ping"


def test_trouble_is_told_and_tried_again(far: Far, tmp_path: Path) -> None:
    far.refuse = True
    with Bridge(tmp_path / "b", far.open) as bridge, near_of(bridge):
        assert wait_until(lambda: bridge.trouble or None, soon()) == "nobody there"
        far.refuse = False
        far.wait(1)
        assert wait_until(lambda: bridge.trouble == "", soon())


def test_a_bridge_is_left_at_once_whatever_the_far_end_does(far: Far, tmp_path: Path) -> None:
    before = threading.active_count()
    with Bridge(tmp_path / "b", far.open) as bridge, near_of(bridge):
        far.wait(1)
    assert threading.active_count() == before
    with Bridge(tmp_path / "b", far.open):
        pass
    assert threading.active_count() == before


def test_a_console_command_is_read_and_ends_with_its_bridge(tmp_path: Path) -> None:
    argv = ("sh", "-c", "echo started; echo $$; exec sleep 1000")
    with Bridge(tmp_path / "b", lambda: _run_console(argv)) as bridge, near_of(bridge) as near:
        said = b""
        while said.count(b"\n") < 2:
            said += near.recv(100)
        assert said.startswith(b"started\n")
        pid = int(said.split()[1])
        assert is_running(pid)
    wait_until(lambda: not is_running(pid), soon())


def test_a_console_command_that_is_not_there_is_said() -> None:
    with pytest.raises(CommandFailed, match="no such program"):
        _run_console(("liveupdate-no-such-program",))


def test_a_serial_device_is_raw() -> None:
    master, slave = os.openpty()
    try:
        stream = _TtyStream(os.ttyname(slave))
        os.write(master, b"\x03\r\n")
        assert stream.recv(100) == b"\x03\r\n"
        stream.sendall(b"\x04x\n")
        assert os.read(master, 100) == b"\x04x\n"
        stream.close()
        stream.close()
    finally:
        os.close(master)
        os.close(slave)
    with pytest.raises(OSError, match="no serial line"):
        _TtyStream("/dev/null")


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> agent_port.Port:
    monkeypatch.setattr(agent_port, "SOCKET", str(tmp_path / "agent.sock"))
    monkeypatch.setattr(agent_port, "find_port", lambda: None)
    return agent_port.Port()


def relay(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _RELAY, str(path), "attach"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def attached(port: agent_port.Port) -> Callable[[], bool]:
    def look() -> bool:
        port.try_open()
        visitor = port.accept()
        if visitor is None:
            return False
        assert visitor.read() == b"attach\n"
        port.promote(visitor)
        return True

    return look


def test_what_the_agent_said_waits_for_the_first_relay_and_the_next(
    port: agent_port.Port, tmp_path: Path
) -> None:
    assert port.try_open() is False
    port.send(b"hello\n")
    for number in (1, 2):
        child = relay(tmp_path / "agent.sock")
        assert child.stdin is not None and child.stdout is not None
        try:
            wait_until(attached(port), soon())
            port.flush()
            port.drain(5.0)
            if number == 1:
                assert child.stdout.readline() == b"\n"
            assert child.stdout.readline() == (b"hello\n" if number == 1 else b"more\n")
            child.stdin.write(b"call\n")
            child.stdin.flush()
            assert wait_until(lambda: port.read() or None, soon()) == b"call\n"
        finally:
            child.stdin.close()
            child.wait(10)
            child.stdout.close()
        port.hang_up()
        assert port.fd == -1
        port.send(b"more\n")
    port.hang_up()
