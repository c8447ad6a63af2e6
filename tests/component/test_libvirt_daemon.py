# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of the tool's own is started when none runs, is shared, and ends itself."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import PlanError
from liveupdate.target.libvirt import daemon, entry, link
from tests.support import libvirtd

pytestmark = pytest.mark.skipif(bool(libvirtd.missing()), reason=libvirtd.missing())


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own; what was started in it is killed at the end."""
    # short: sockets are made below it
    base = Path(tempfile.mkdtemp(prefix="lu-run-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    directory = base / "liveupdate" / "libvirt"
    yield directory
    if (directory / "pid").exists():
        os.kill(pid_of(directory), signal.SIGKILL)
    shutil.rmtree(base)


def pid_of(directory: Path) -> int:
    return int((directory / "pid").read_text())


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_is_shared_and_started_again_when_it_was_killed(runtime: Path) -> None:
    uri = daemon.ensure()
    link.check(uri)
    first = pid_of(runtime)
    assert daemon.ensure() == uri
    assert pid_of(runtime) == first
    os.kill(first, signal.SIGKILL)
    # a child that it forked just now holds its socket, until it runs its own program
    wait_until(
        lambda: (is_gone(first) and not daemon._answers(runtime / "libvirt-sock")) or None,
        Deadline.after(10, "it to be gone"),
    )
    # its socket and its pid file are still there
    assert daemon.ensure() == uri
    link.check(uri)
    assert pid_of(runtime) != first


def test_it_ends_itself_when_nobody_uses_it(runtime: Path) -> None:
    daemon.ensure(idle_s=1)
    pid = pid_of(runtime)
    assert not is_gone(pid)
    wait_until(lambda: is_gone(pid) or None, Deadline.after(20, "it to end itself"))


@pytest.mark.skipif(os.geteuid() != 0, reason="libvirt starts a session daemon for other users")
def test_root_gets_one_only_where_no_other_is_named(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uri: str) -> None:
        if uri == "qemu:///session":
            raise link.NoAnswer("no libvirt at 'qemu:///session'")
        real(uri)

    real = link.check
    monkeypatch.setattr(link, "check", nobody)
    with pytest.raises(PlanError, match="no libvirt at"):
        entry.locate(f"qemu+unix:///session?socket={runtime}/none")
    assert not runtime.exists()
    uri = entry.locate("").place
    assert uri.endswith(f"socket={runtime}/libvirt-sock")


def test_one_that_does_not_start_is_a_plan_error_with_its_own_words(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "_CONFIG", "no such key = nothing\n")
    with pytest.raises(PlanError, match=r"(?s)libvirtd does not start: .*daemon\.conf"):
        daemon.ensure()
    monkeypatch.setattr(daemon, "find_program", lambda: None)
    with pytest.raises(PlanError, match="needs libvirtd, and there is none"):
        daemon.ensure()
