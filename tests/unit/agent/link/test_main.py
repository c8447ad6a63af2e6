# SPDX-License-Identifier: Apache-2.0
"""The whole agent on a socket pair instead of a virtio-serial port, on a host with no guests."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import liveupdate.agent
from liveupdate.agent.base import framing
from liveupdate.agent.guest.guests import Guest
from liveupdate.agent.guest.spec import GuestSpec
from liveupdate.agent.link.main import Agent
from liveupdate.agent.link.port import Port
from liveupdate.agent.mechanisms.base import Ram
from liveupdate.agent.mechanisms.files import FileMechanism


class Control:
    """The control host's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data + b"\n")

    def call(self, seq: int, name: str, **args: object) -> dict[str, dict[str, object]]:
        self.send(json.dumps({"seq": seq, "call": name, "args": args}).encode())
        return self.next(seq)

    def next(self, seq: int | None) -> dict[str, dict[str, object]]:
        for line in self.lines:
            message = json.loads(line) if line.strip() else {}
            if "re" in message and message["re"] == seq:
                reply: dict[str, dict[str, object]] = message
                return reply
        raise AssertionError("the agent closed the channel")

    def hello(self) -> dict[str, object]:
        assert self.lines.readline() == b"\n"
        hello: dict[str, object] = json.loads(self.lines.readline())
        return hello


@pytest.fixture
def agent() -> Agent:
    return Agent(Port())


@pytest.fixture
def control(agent: Agent) -> Iterator[Control]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        ours.setblocking(False)
        agent.port.attach(ours.dup().detach())
        agent.start()
        threading.Thread(target=agent.loop, daemon=True).start()
        yield Control(theirs)


def test_hello_is_the_first_event(control: Control) -> None:
    hello = control.hello()
    assert (hello["event"], hello["n"]) == ("hello", 1)
    data = hello["data"]
    assert isinstance(data, dict)
    assert data["protocol"] == framing.PROTOCOL
    assert data["recovered"] is False


def test_calls_are_answered_in_order(control: Control) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for seq in range(5):
        assert control.call(seq, "ping")["ok"] == {"boot_id": boot_id}


@pytest.mark.parametrize(
    "garbage", [b"x", b"\xff\x00", b"{}", b'{"seq":', b"[" * 50_000, b"x" * (9 << 20)]
)
def test_garbage_is_refused_and_the_next_call_works(control: Control, garbage: bytes) -> None:
    control.send(garbage)
    assert control.next(None)["error"]["kind"] == "protocol"
    assert "ok" in control.call(1, "ping")


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("fly", {}, "unknown-call"),
        ("jump", {}, "state"),
        ("abandon", {}, "state"),
        ("finish", {}, "state"),
        ("pfns", {"guest": "vm9"}, "no-guest"),
        ("payload", {"guest": 7}, "args"),
        ("set_time", {"realtime_ns": "now"}, "args"),
        ("start_guests", {}, "args"),
        ("fragment", {}, "args"),
        ("fragment", {"share": True}, "args"),
        ("fragment", {"share": 1.5}, "args"),
        ("hugetlb", {"bytes": 12345}, "args"),
        ("start_guests", {"guests": [{"name": "../x"}]}, "args"),
        ("load_kernel", {"path": "/kit/kernel-b", "append": "", "loader": "magic"}, "args"),
        ("load_kernel", {"path": "/dev/null", "append": "", "sha256": "00"}, "image"),
        ("inject", {"fault": "fire"}, "args"),
        ("inject", {"fault": "move-page", "args": {"guest": "vm9", "page": 1}}, "no-guest"),
    ],
)
def test_call_that_makes_no_sense_is_refused(
    control: Control, name: str, args: dict[str, object], kind: str
) -> None:
    assert control.call(1, name, **args)["error"]["kind"] == kind
    assert "ok" in control.call(2, "ping")


def make_guest(agent: Agent) -> Guest:
    spec = GuestSpec({"name": "vm0", "index": 0, "memory_bytes": 16 << 20})
    mechanism = FileMechanism("none", "/nonexistent")
    guest = Guest(spec, mechanism, agent.network, agent.emit, agent.watch)
    guest.ram = Ram(os.memfd_create("vm0"), spec.memory_bytes)
    os.ftruncate(guest.ram.fd, spec.memory_bytes)
    guest.running = True
    return guest


def drop_ram(guest: Guest) -> None:
    assert guest.ram is not None
    guest.ram.close()
    guest.ram = None


def test_a_guest_that_has_ended_may_be_started_anew_and_one_that_runs_may_not(
    control: Control, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Guest] = []
    monkeypatch.setattr(agent.handover, "open", lambda: FileMechanism("none", "/nonexistent"))
    monkeypatch.setattr(Guest, "start", lambda guest: started.append(guest))
    monkeypatch.setattr("liveupdate.agent.guest.vmm_qemu.QemuVmm.check_adapter", lambda _vmm: "x")
    monkeypatch.setattr("liveupdate.agent.link.calls.write_state", lambda _agent: None)
    old = agent.guests["vm0"] = make_guest(agent)
    freed: list[str] = []
    monkeypatch.setattr(FileMechanism, "free_ram", lambda _self, guest, _ram: freed.append(guest))
    wanted = [{"name": "vm0", "index": 0, "memory_bytes": 16 << 20}]
    refused = control.call(1, "start_guests", guests=wanted)
    assert refused["error"]["kind"] == "args" and agent.guests["vm0"] is old
    old.vmm.status = -9
    ram = old.ram
    assert "ok" in control.call(2, "start_guests", guests=wanted)
    assert agent.guests["vm0"] is started[0] is not old
    assert freed == ["vm0"] and old.ram is None
    assert ram is not None
    ram.close()


def test_ram_is_read_while_another_call_takes_its_time(
    control: Control, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = agent.guests["vm0"] = make_guest(agent)
    assert guest.ram is not None
    os.pwrite(guest.ram.fd, b"tick", 4096)
    release = threading.Event()
    monkeypatch.setattr(
        "liveupdate.agent.base.host.boot_id", lambda: "x" if release.wait(10) else "never"
    )
    control.send(b'{"seq": 1, "call": "ping"}')
    answer = control.call(2, "read_ram", guest="vm0", offset=4096, bytes=4)
    assert base64.b64decode(str(answer["ok"]["data"])) == b"tick"
    release.set()
    assert control.next(1)["ok"] == {"boot_id": "x"}
    drop_ram(guest)


def test_the_last_tick_of_a_paused_guest_is_no_sign_of_life(control: Control, agent: Agent) -> None:
    guest = agent.guests["vm0"] = make_guest(agent)
    guest.running = False
    answer = control.call(1, "read_ram", guest="vm0", offset=0, bytes=4)
    assert answer["error"]["kind"] == "paused"
    drop_ram(guest)


@pytest.mark.parametrize(
    "args",
    [
        {"guest": "vm1", "offset": 0, "bytes": 4},
        {"guest": "vm0", "offset": 16 << 20, "bytes": 4},
        {"guest": "vm0", "offset": -1, "bytes": 4},
        {"guest": "vm0", "offset": 0, "bytes": 0},
        {"guest": "vm0", "offset": 0, "bytes": 1 << 30},
        {"guest": "vm0", "offset": "0", "bytes": 4},
        {},
    ],
)
def test_ram_that_is_not_the_guests_is_not_read(
    control: Control, agent: Agent, args: dict[str, object]
) -> None:
    guest = agent.guests["vm0"] = make_guest(agent)
    assert control.call(1, "read_ram", **args)["error"]["kind"] == "args"
    drop_ram(guest)


def test_a_lost_guest_is_not_left_out_of_an_update_in_silence(
    control: Control, agent: Agent
) -> None:
    guest = agent.guests["vm0"] = make_guest(agent)
    guest.error = "VMM ended with status 0; the guest's console: Kernel panic"
    refused = control.call(1, "prepare")["error"]
    assert refused["kind"] == "guest"
    assert "'vm0' is lost" in str(refused["message"])
    assert "Kernel panic" in str(refused["message"])
    assert agent.handover.state == "idle"
    drop_ram(guest)


def test_status_without_guests_is_empty(control: Control) -> None:
    assert control.call(1, "guest_status")["ok"] == {}


def test_agent_without_a_reader_does_not_spin(control: Control) -> None:
    assert "ok" in control.call(1, "ping")
    control.lines.close()
    control.sock.close()
    before_s = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before_s < 0.25


def test_restore_path_imports_nothing_expensive(tmp_path: Path) -> None:
    """The rule of the package, checked in a bare directory as on the host."""
    source = Path(liveupdate.agent.__file__).parent
    (tmp_path / "kit").symlink_to(source)
    code = (
        "import sys; sys.path.append(sys.argv[1]); before = set(sys.modules); "
        "import kit.link.main; "
        "print(*sorted(set(sys.modules) - before))"
    )
    argv = [sys.executable, "-I", "-S", "-B", "-c", code, os.fspath(tmp_path)]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    heavy = {"json", "re", "enum", "socket", "threading", "subprocess", "typing", "dataclasses"}
    assert not heavy & set(loaded)
    assert "kit.link.calls" not in loaded
    assert not [name for name in loaded if "fault_tools" in name]
