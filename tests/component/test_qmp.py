# SPDX-License-Identifier: Apache-2.0
"""QMP against peers that hang, lie, and cut the line, and against a real QEMU without a guest."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded, LostMachine, OutcomeUnknown
from liveupdate.transport.monitor import QmpRefused
from liveupdate.transport.qmp import Qmp
from tests.support.fake_peer import GREETING, Peer, serve
from tests.support.qmp_events import find_event


def soon(timeout_s: float = 5.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


def greet(peer: Peer) -> None:
    peer.send(GREETING)
    request = peer.receive()
    assert request["execute"] == "qmp_capabilities"
    # the library negotiates without an id
    peer.send({"return": {}})


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name == "qmp"]
    assert not left


def test_greeting_that_never_comes_is_a_deadline(tmp_path: Path) -> None:
    with serve(tmp_path / "q", Peer.hang), Qmp(tmp_path / "q") as qmp:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="QMP greeting"):
            qmp.connect(soon(0.3))
        assert time.monotonic() - began < 3


def test_nobody_listens_is_a_deadline_that_says_so(tmp_path: Path) -> None:
    with Qmp(tmp_path / "q") as qmp, pytest.raises(DeadlineExceeded, match="no process listens"):
        qmp.connect(soon(0.1))


def test_a_dead_process_ends_the_wait_for_its_socket(tmp_path: Path) -> None:
    gone = LostMachine("it ended", how="exited")
    with Qmp(tmp_path / "q", watch=lambda: gone) as qmp, pytest.raises(LostMachine, match="ended"):
        qmp.connect(soon())


@pytest.mark.parametrize(
    "first", [b"SSH-2.0-OpenSSH_9.2\r\n", b'{"hello":"world"}\n', b"[]\n", b"", b'{"QMP":7}\n']
)
def test_something_else_on_the_socket_is_garbled(tmp_path: Path, first: bytes) -> None:
    with (
        serve(tmp_path / "q", lambda peer: peer.send_raw(first)),
        Qmp(tmp_path / "q") as qmp,
        pytest.raises(LostMachine) as caught,
    ):
        qmp.connect(soon())
    assert caught.value.how == "garbled"


def test_hanging_up_right_after_negotiation_is_lost(tmp_path: Path) -> None:
    """One regression: an assertion of the library came through."""
    with serve(tmp_path / "q", greet), Qmp(tmp_path / "q") as qmp:
        with contextlib.suppress(LostMachine):
            qmp.connect(soon())
        with pytest.raises((LostMachine, OutcomeUnknown)):
            qmp.execute("query-status", {}, soon())


def test_answer_that_never_comes_is_a_deadline_and_the_line_stays_up(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        greet(peer)
        late = peer.receive()
        answered = peer.receive()
        # the answer to the first comes when nobody waits for it any more
        peer.send({"return": "late", "id": late["id"]}, {"return": "second", "id": answered["id"]})
        peer.hang()

    with serve(tmp_path / "q", script), Qmp(tmp_path / "q") as qmp:
        qmp.connect(soon())
        with pytest.raises(DeadlineExceeded, match="'query-status'"):
            qmp.execute("query-status", {}, soon(0.2))
        assert qmp.execute("query-name", {}, soon()) == "second"


def test_line_cut_before_the_answer_is_outcome_unknown(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        greet(peer)
        peer.receive()

    with serve(tmp_path / "q", script), Qmp(tmp_path / "q") as qmp:
        qmp.connect(soon())
        with pytest.raises(OutcomeUnknown, match="'migrate'"):
            qmp.execute("migrate", {"uri": "file:x"}, soon())
        with pytest.raises(LostMachine, match="hung up|closed"):
            qmp.execute("query-status", {}, soon())


def test_line_cut_after_quit_is_success(tmp_path: Path) -> None:
    asked = []

    def script(peer: Peer) -> None:
        greet(peer)
        asked.append(peer.receive()["execute"])

    with serve(tmp_path / "q", script), Qmp(tmp_path / "q") as qmp:
        qmp.connect(soon())
        qmp.quit(soon())
    assert asked == ["quit"]


@pytest.mark.parametrize(
    "lie",
    [
        {"neither": 1},
        {"error": "a string"},
        {"error": {"class": 5}},
    ],
)
def test_answer_that_is_no_answer_is_garbled(tmp_path: Path, lie: dict[str, object]) -> None:
    def script(peer: Peer) -> None:
        greet(peer)
        request = peer.receive()
        peer.send({**lie, "id": request["id"]})
        peer.hang()

    with serve(tmp_path / "q", script), Qmp(tmp_path / "q") as qmp:
        qmp.connect(soon())
        with pytest.raises(LostMachine) as caught:
            qmp.execute("query-status", {}, soon())
        assert caught.value.how == "garbled"


def test_bytes_that_are_no_json_leave_the_outcome_unknown(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        greet(peer)
        peer.receive()
        peer.send_raw(b"\xff\xfenonsense\n")
        peer.hang()

    with serve(tmp_path / "q", script), Qmp(tmp_path / "q") as qmp:
        qmp.connect(soon())
        with pytest.raises(OutcomeUnknown):
            qmp.execute("query-status", {}, soon())


def test_wrong_type_in_answer_to_hmp_is_garbled(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        greet(peer)
        peer.send({"return": {}, "id": peer.receive()["id"]})

    with serve(tmp_path / "q", script), Qmp(tmp_path / "q") as qmp:
        qmp.connect(soon())
        with pytest.raises(LostMachine, match="no text"):
            qmp.hmp("info mtree -f", soon())


def test_closing_a_peer_that_does_not_read_does_not_take_for_ever(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        greet(peer)
        peer.hang()

    with serve(tmp_path / "q", script):
        qmp = Qmp(tmp_path / "q")
        qmp.connect(soon())
        # more than the socket holds, so that a flush never ends
        with pytest.raises(DeadlineExceeded):
            qmp.execute("x", {"pad": "x" * (4 << 20)}, soon(0.2))
        began = time.monotonic()
        qmp.close()
        qmp.close()
        assert time.monotonic() - began < 4


def test_events_are_kept_with_their_time_and_data(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        greet(peer)
        stamp = {"timestamp": {"seconds": 1, "microseconds": 0}}
        peer.receive()
        peer.send({"event": "RESET", "data": {"guest": True}, **stamp})
        peer.send({"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}, **stamp})

    with serve(tmp_path / "q", script), Qmp(tmp_path / "q") as qmp:
        began = time.monotonic_ns()
        qmp.connect(soon())
        with pytest.raises(OutcomeUnknown):
            qmp.execute("system_reset", {}, soon())
        # the end of the connection must not hide what came before
        event = find_event(qmp, "SHUTDOWN", soon())
        assert event.data == {"guest": True, "reason": "guest-reset"}
        assert began < event.at_ns < time.monotonic_ns()
        assert [item.name for item in qmp.events()] == ["RESET", "SHUTDOWN"]


def test_real_qemu_refuses_and_quits(tmp_path: Path) -> None:
    argv = (
        "qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none",
        "-qmp", f"unix:{tmp_path / 'q'},server=on,wait=off",
    )  # fmt: skip
    with (
        proc.spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child,
        Qmp(tmp_path / "q") as qmp,
    ):
        assert "qemu" in qmp.connect(soon(10))
        with pytest.raises(QmpRefused, match="refused 'no-such-command'") as caught:
            qmp.execute("no-such-command")
        assert caught.value.kind == "CommandNotFound"
        assert "VM status: running" in qmp.hmp("info status")
        qmp.quit(soon())
        assert child.wait(soon()) == 0


def test_real_qemu_that_is_killed_is_lost(tmp_path: Path) -> None:
    argv = (
        "qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none",
        "-qmp", f"unix:{tmp_path / 'q'},server=on,wait=off",
    )  # fmt: skip
    with (
        proc.spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child,
        Qmp(tmp_path / "q") as qmp,
    ):
        qmp.connect(soon(10))
        child.kill()
        wait_until(lambda: qmp.lost, soon(10))
        with pytest.raises(LostMachine):
            qmp.execute("query-status", {}, soon())
