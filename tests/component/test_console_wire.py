# SPDX-License-Identifier: Apache-2.0
"""Console and wire over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import DeadlineExceeded, LostMachine
from liveupdate.transport.console import Console
from liveupdate.transport.guest_network import Wire
from tests.support.fake_peer import Peer, serve

FIRST = b"SeaBIOS\r\n[    0.000000] Linux version 7.3.4-lu-a #1\r\n[    3.1] up\r\n[    9.0] kexec"
SECOND = b"[    0.000000] Linux version 7.3.4-lu-b #2\r\n\xff\x00[    1.0] more\n# prompt"


def soon(timeout_s: float = 5.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


def test_logs_are_byte_exact_and_split_at_the_kexec(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        for at in range(0, len(FIRST + SECOND), 7):
            peer.send_raw((FIRST + SECOND)[at : at + 7])

    with serve(tmp_path / "c", script), Console(tmp_path / "c", tmp_path) as console:
        console.connect(soon())
        began = time.monotonic_ns()
        second = console.wait_boot(1, soon())
        assert began - 1_000_000_000 < second.at_ns < time.monotonic_ns()
        console.drain(soon())
        assert console.tail(2)[-1] == "# prompt"
        assert [line.text for line in console.lines() if line.boot == 0][-1] == "[    9.0] kexec"
        assert console.panic is None and console.death() is None
    assert (tmp_path / "boot-0/console.log").read_bytes() == FIRST
    assert (tmp_path / "boot-1/console.log").read_bytes() == SECOND
    times = [line.split() for line in (tmp_path / "boot-1/console.times").read_text().splitlines()]
    first, second_line = SECOND.splitlines(keepends=True)[:2]
    assert [int(offset) for offset, _ in times] == [0, len(first), len(first + second_line)]
    assert console.write_error is None


def test_waits_find_lines_and_fail_early(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.send_raw(FIRST + b"\n[    9.9] Kernel panic - not syncing: Fatal\n")
        peer.release.wait(10)

    told: list[Exception] = []
    with serve(tmp_path / "c", script):
        console = Console(tmp_path / "c", tmp_path, watch=lambda: told[0] if told else None)
        with console:
            console.connect(soon())
            assert console.wait_line(r"\bup$", soon()).boot == 0
            console.wait_line("panic", soon())
            mark = console.mark()
            assert console.panic is not None and "Fatal" in console.panic.text
            assert "kernel panic in boot 0: [    9.9] Kernel panic" in str(console.death())
            with pytest.raises(DeadlineExceeded, match="Fatal"):
                console.wait_line(r"\bup$", soon(0.1), since=mark)
            threading.Timer(0.1, told.append, [LostMachine("QEMU ended", how="exited")]).start()
            with pytest.raises(LostMachine, match="QEMU ended"):
                console.wait_boot(1, soon())


def test_the_end_of_the_console_ends_every_wait(tmp_path: Path) -> None:
    with (
        serve(tmp_path / "c", lambda peer: peer.send_raw(FIRST)),
        Console(tmp_path / "c", tmp_path) as console,
    ):
        console.connect(soon())
        with pytest.raises(LostMachine, match="first line of boot 1"):
            console.wait_boot(1, soon())


def test_a_log_that_cannot_be_written_does_not_blind_the_console(tmp_path: Path) -> None:
    (tmp_path / "boot-0").write_text("in the way")
    with (
        serve(tmp_path / "c", lambda peer: peer.send_raw(FIRST + SECOND)),
        Console(tmp_path / "c", tmp_path) as console,
    ):
        console.connect(soon())
        console.wait_boot(1, soon())
    assert isinstance(console.write_error, OSError)


def test_frames_go_both_ways_and_are_stamped(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "o", tmp_path / "t"
    with (
        Wire(ours, theirs) as wire,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as qemu,
    ):
        # nobody there yet: lost, as on a wire
        assert wire.send(b"x" * 60) is None
        qemu.bind(str(theirs))
        assert wire.send(b"a" * 60) is not None
        assert qemu.recv(100) == b"a" * 60
        began = time.monotonic_ns()
        qemu.sendto(b"b" * 1514, str(ours))
        frame = wire.recv(soon())
        assert frame is not None and frame.data == b"b" * 1514
        assert began < frame.at_ns < time.monotonic_ns()
        assert wire.recv(soon(0.05)) is None
    assert not ours.exists()


def test_a_full_queue_loses_frames_and_never_waits(tmp_path: Path) -> None:
    with (
        Wire(tmp_path / "o", tmp_path / "t") as wire,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as qemu,
    ):
        qemu.bind(str(tmp_path / "t"))
        began = time.monotonic()
        assert None in [wire.send(b"x" * 1500) for _ in range(5000)]
        assert time.monotonic() - began < 5


def test_a_patient_sender_waits_for_room_and_not_for_ever(tmp_path: Path) -> None:
    with (
        Wire(tmp_path / "o", tmp_path / "t") as wire,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as qemu,
    ):
        qemu.bind(str(tmp_path / "t"))
        taken = 0
        while wire.send_within(taken.to_bytes(4, "little"), 0.0) is not None:
            taken += 1
        began = time.monotonic()
        assert wire.send_within(b"late", 0.2) is None
        assert 0.1 < time.monotonic() - began < 3
        timer = threading.Timer(0.1, qemu.recv, [100])
        timer.start()
        sent_ns = wire.send_within(b"room", 5.0)
        timer.join()
        assert sent_ns is not None
        rest = [qemu.recv(100) for _ in range(taken)]
        assert rest[-1] == b"room"
        assert [int.from_bytes(each, "little") for each in rest[:-1]] == list(range(1, taken))
