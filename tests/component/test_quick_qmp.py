# SPDX-License-Identifier: Apache-2.0
"""The quick QMP connection: with a real QEMU, and with peers that hang, lie and cut the line."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded, EvidenceError, LostMachine
from liveupdate.formats.qemu_trace import RESET
from liveupdate.probes.qemu_machine import Machine, TraceFile, read_physical
from liveupdate.transport.monitor import QmpRefused
from liveupdate.transport.quick_qmp import QuickQmp
from tests.support.fake_peer import Peer, greeted, serve


def soon(timeout_s: float = 5.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


def test_events_before_the_answer_are_passed_over(tmp_path: Path) -> None:
    script = greeted(lambda peer: peer.send({"event": "STOP", "data": {}}, {"return": "text"}))
    with serve(tmp_path / "q", script), QuickQmp(tmp_path / "q") as qmp:
        assert qmp.hmp("info version") == "text"


@pytest.mark.parametrize(
    ("then", "error", "word"),
    [
        (Peer.cut, LostMachine, "closed|gone"),
        (lambda peer: peer.send_raw(b"nonsense\n"), LostMachine, "nonsense"),
        (lambda peer: peer.send(["a", "list"]), LostMachine, "nonsense"),
        (lambda peer: peer.send({"return": 3}), LostMachine, "no text"),
        (
            lambda peer: peer.send({"error": {"class": "GenericError", "desc": "no such thing"}}),
            QmpRefused,
            "no such thing",
        ),
        (Peer.hang, DeadlineExceeded, "no answer"),
    ],
    ids=["cut", "nonsense", "list", "number", "refused", "hang"],
)
def test_what_a_peer_may_do_ends_in_one_error(
    tmp_path: Path, then: Callable[[Peer], None], error: type[Exception], word: str
) -> None:
    with (
        serve(tmp_path / "q", greeted(then)),
        QuickQmp(tmp_path / "q") as qmp,
        pytest.raises(error, match=word),
    ):
        qmp.hmp("xp /1wx 0", soon(0.3))


def test_late_answer_is_not_taken_for_the_next(tmp_path: Path) -> None:
    with serve(tmp_path / "q", greeted(Peer.hang)), QuickQmp(tmp_path / "q") as qmp:
        with pytest.raises(DeadlineExceeded):
            qmp.hmp("xp /1wx 0", soon(0.1))
        with pytest.raises(LostMachine, match="closed"):
            qmp.hmp("xp /1wx 0", soon())


def test_peer_that_does_not_speak_qmp_is_lost(tmp_path: Path) -> None:
    qmp = QuickQmp(tmp_path / "q")
    with (
        serve(tmp_path / "q", lambda peer: peer.send({"hello": 1})),
        pytest.raises(LostMachine, match="does not speak QMP"),
    ):
        qmp.__enter__()


needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="no QEMU; run 'make setup'"
)


@needs_qemu
def test_registers_and_trace_of_a_real_qemu_are_read(tmp_path: Path) -> None:
    path, trace = tmp_path / "q", tmp_path / "a trace"
    # fmt: off
    argv = (
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-M", "q35", "-m", "64M", "-S",
        "-device", "intel-iommu", "-device", "pcie-root-port,id=port-nic0",
        "-chardev", f"socket,id=q,path={path},server=on,wait=off", "-mon", "chardev=q,mode=control",
    )
    # fmt: on
    quiet = subprocess.DEVNULL
    with proc.spawn(argv, stdout=quiet, stderr=quiet), QuickQmp(path) as qmp:
        # no firmware has run: there is a unit, and no configuration window yet
        assert read_physical(qmp, 0xFED9_0000, 4) == b"\x10\0\0\0"
        with pytest.raises(EvidenceError, match="no configuration window"):
            Machine.find(qmp)
        with pytest.raises(EvidenceError, match="does not show"):
            read_physical(qmp, 0xF000_0000, 4)
        with TraceFile(qmp, trace) as file:
            assert list(file.read()) == []
            qmp.execute("system_reset", {}, soon())
            # the reset is carried out after the answer
            seen = wait_until(lambda: tuple(file.read()) or None, soon())
            assert {each.what for each in seen} == {RESET}
        written = wait_until(lambda: trace.stat().st_size or None, soon())
        qmp.execute("system_reset", {}, soon())
        time.sleep(0.3)
        # switched off with the file
        assert trace.stat().st_size == written
