# SPDX-License-Identifier: Apache-2.0
"""System calls inside another process: it answers, and goes on as if nothing had been."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from liveupdate.agent.base import traced as traced_module
from liveupdate.agent.base.traced import Traced

FIONREAD = 0x541B
GETPID = 39

WAITS = """
import os, sys
reader, writer = os.pipe()
os.write(writer, bytes(77))
print(reader, flush=True)
line = sys.stdin.readline()
print("heard", line.strip(), len(os.read(reader, 100)), flush=True)
"""
COMPUTES = """
print(0, flush=True)
total = 0
for number in range(2_000_000):
    total += number
print(total, flush=True)
"""
COUNTS_SIGNALS = """
import signal, sys
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
print(0, flush=True)
sys.stdin.readline()
print(len(seen), flush=True)
"""


@contextmanager
def process(code: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process, and the number that it printed first."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            yield running, int(running.stdout.readline())
        finally:
            running.kill()


def test_descriptor_of_a_waiting_process_is_asked_and_the_process_goes_on() -> None:
    with process(WAITS) as (running, fd):
        with Traced(running.pid) as traced:
            scratch = traced.scratch(4096)
            assert traced.ioctl(fd, FIONREAD, scratch) == 0
            assert int.from_bytes(traced.read(scratch, 4), "little") == 77
            traced.write(scratch, b"mark")
            assert traced.read(scratch, 4) == b"mark"
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                traced.ioctl(999, FIONREAD, scratch)
        assert f"{scratch:x}-" not in Path(f"/proc/{running.pid}/maps").read_text()
        out, _ = running.communicate("hello\n", timeout=30)
        assert out == "heard hello 77\n"
        assert running.returncode == 0


def test_process_that_computes_is_stopped_anywhere_and_computes_on() -> None:
    with process(COMPUTES) as (running, _):
        for _ in range(20):
            with Traced(running.pid) as traced:
                assert traced.syscall(GETPID) == running.pid
        out, _ = running.communicate(timeout=60)
        assert int(out) == sum(range(2_000_000))
        assert running.returncode == 0


BLOCKS_OR_NOT = """
import fcntl, os, struct, sys
reader, writer = os.pipe()
print(reader, flush=True)
sys.stdin.readline()
fcntl.ioctl(reader, 0x5421, struct.pack("i", 1))
print(os.get_blocking(reader), flush=True)
"""
FIONBIO = 0x5421


def test_ioctl_is_caught_before_it_is_executed_and_its_argument_changed() -> None:
    with process(BLOCKS_OR_NOT) as (running, _):
        with Traced(running.pid) as traced:
            assert running.stdin is not None
            running.stdin.write("go\n")
            running.stdin.flush()
            address = traced.until_ioctl(FIONBIO)
            assert traced.read(address, 4) == (1).to_bytes(4, "little")
            traced.write(address, bytes(4))
        out, _ = running.communicate(timeout=30)
        assert out == "True\n"
        assert running.returncode == 0


def test_ioctl_that_does_not_come_is_an_error_and_the_process_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traced_module, "STOP_S", 0.3)
    with process(WAITS) as (running, _):
        with pytest.raises(TimeoutError, match="did not stop in time"):
            wait_for_ioctl(running.pid)
        out, _ = running.communicate("hello\n", timeout=30)
        assert out == "heard hello 77\n"


def wait_for_ioctl(pid: int) -> None:
    with Traced(pid) as traced:
        traced.until_ioctl(FIONBIO)


def test_signals_that_arrive_meanwhile_are_delivered() -> None:
    with process(COUNTS_SIGNALS) as (running, _):
        with Traced(running.pid) as traced:
            os.kill(running.pid, signal.SIGUSR1)
            assert traced.syscall(GETPID) == running.pid
        until = time.monotonic() + 10
        while "SigPnd:\t0000000000000000" not in Path(f"/proc/{running.pid}/status").read_text():
            assert time.monotonic() < until
        out, _ = running.communicate("\n", timeout=30)
        assert out == "1\n"


def test_process_that_does_not_exist_or_has_ended_is_an_error() -> None:
    with process(WAITS) as (running, _):
        running.kill()
        running.wait()
        with pytest.raises(FileNotFoundError), Traced(running.pid):
            pass


def test_exit_status_of_a_process_that_ends_is_left_to_its_parent() -> None:
    with process(WAITS) as (running, _):
        with pytest.raises(ProcessLookupError):
            kill_and_ask(running)
        assert running.wait(timeout=10) == -signal.SIGKILL


NANOSLEEP = 35


def test_call_that_takes_too_long_is_an_error_and_the_process_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traced_module, "STOP_S", 0.3)
    with process(WAITS) as (running, _):
        with pytest.raises(TimeoutError, match="did not stop in time"):
            sleep_inside(running.pid)
        out, _ = running.communicate("hello\n", timeout=30)
        assert out == "heard hello 77\n"
        assert running.returncode == 0


def sleep_inside(pid: int) -> None:
    with Traced(pid) as traced:
        area = traced.scratch(4096)
        traced.write(area, (3600).to_bytes(8, "little") + bytes(8))
        traced.syscall(NANOSLEEP, area, 0)


def kill_and_ask(running: subprocess.Popen[str]) -> None:
    with Traced(running.pid) as traced:
        running.kill()
        traced.syscall(GETPID)


def test_process_that_ends_while_it_is_traced_is_an_error_and_leaves_nothing_behind() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with process(WAITS) as (running, _), pytest.raises(ProcessLookupError):
        kill_and_ask(running)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_same_process_cannot_be_traced_twice_at_once() -> None:
    with (
        process(WAITS) as (running, _),
        Traced(running.pid),
        pytest.raises(PermissionError),
        Traced(running.pid),
    ):
        pass
