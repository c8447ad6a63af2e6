# SPDX-License-Identifier: Apache-2.0
"""The subprocess gateway with real children: they end as told, and never outlive us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import CommandFailed, DeadlineExceeded
from tests.support.processes import is_running


def soon(what: str = "a child", timeout_s: float = 10.0) -> Deadline:
    return Deadline.after(timeout_s, what)


def read_pids(path: Path, count: int) -> list[int]:
    """Wait until ``count`` processes have written their pids, one per line."""

    def probe() -> list[int] | None:
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line) for line in lines] if len(lines) >= count else None

    return wait_until(probe, soon(f"{count} pids in {path}"))


def test_run_returns_both_streams_and_the_time() -> None:
    done = proc.run(["sh", "-c", "echo out; echo err >&2"], deadline=soon())
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 0)
    assert 0 < done.elapsed_s < 10


def test_stdin_is_empty_and_the_child_leads_its_own_session() -> None:
    done = proc.run(["sh", "-c", "cat; ps -o sid=,pid= -p $$"], deadline=soon())
    session, pid = done.stdout.split()
    assert session == pid


def test_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "-j99")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    done = proc.run(["env"], deadline=soon(), env={"KBUILD_BUILD_USER": "x"})
    names = {line.split("=")[0] for line in done.stdout.splitlines()}
    assert "MAKEFLAGS" not in names
    assert "LANG" not in names
    assert {"PATH", "LC_ALL", "KBUILD_BUILD_USER"} <= names


def test_failure_carries_command_status_and_last_lines() -> None:
    with pytest.raises(CommandFailed) as info:
        proc.run(["sh", "-c", "seq 100; echo went wrong >&2; exit 3"], deadline=soon())
    assert info.value.returncode == 3
    assert info.value.argv[0] == "sh"
    assert info.value.tail == "went wrong"


def test_failure_with_output_in_a_file_quotes_only_what_this_command_wrote(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as log:
        log.write(b"earlier\n")
        log.flush()
        with pytest.raises(CommandFailed) as info:
            proc.run(["sh", "-c", "echo now; exit 1"], deadline=soon(), stdout=log)
    assert info.value.tail == "now"
    assert (tmp_path / "log").read_text() == "earlier\nnow\n"


def test_unchecked_status_is_returned() -> None:
    assert proc.run(["false"], deadline=soon(), check=False).returncode == 1


def test_missing_program_is_127_and_named() -> None:
    with pytest.raises(CommandFailed, match=r"no-such-program.*exit 127"):
        proc.run(["no-such-program"], deadline=soon())


@pytest.mark.parametrize("tree", [False, True])
def test_signal_death_is_negative(tree: bool) -> None:
    done = proc.run(["sh", "-c", "kill -9 $$"], deadline=soon(), check=False, tree=tree)
    assert done.returncode == -signal.SIGKILL


def test_deadline_kills_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"echo $$ >> {pids}; sh -c 'echo $$ >> {pids}; sleep 60' & sleep 60"
    with pytest.raises(DeadlineExceeded, match="the impatient one"):
        proc.run(["sh", "-c", script], deadline=Deadline.after(1.0, "the impatient one"))
    for pid in read_pids(pids, 2):
        wait_until(lambda pid=pid: not is_running(pid), soon(f"the end of {pid}"))  # type: ignore[misc]


def test_spawn_gives_pidfd_start_time_and_descriptors() -> None:
    read_end, write_end = os.pipe()
    with proc.spawn(
        ["sh", "-c", f"echo hello > /proc/self/fd/{write_end}; sleep 60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(write_end,),
    ) as child:
        os.close(write_end)
        assert os.read(read_end, 64) == b"hello\n"
        assert child.start_time == proc.read_start_time(child.pid)
        assert child.returncode is None
        with pytest.raises(DeadlineExceeded):
            child.wait(Deadline.after(0.05, "a child that sleeps"))
        signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
        assert child.wait(soon()) == -signal.SIGTERM
    os.close(read_end)
    child.close()


def test_leaving_the_context_kills_grandchildren(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with proc.spawn(
        ["sh", "-c", f"sh -c 'echo $$ >> {pids}; sleep 60' & exit 0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.wait(soon()) == 0
        (grandchild,) = read_pids(pids, 1)
        assert is_running(grandchild)
    wait_until(lambda: not is_running(grandchild), soon("the end of the grandchild"))


def test_child_survives_the_thread_that_spawned_it() -> None:
    children: list[proc.Child] = []

    def work() -> None:
        children.append(
            proc.spawn(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with children[0] as child:
        time.sleep(0.2)
        assert child.returncode is None


PARENT = """
import subprocess, sys
from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
script = 'echo $$ >> {pids}; sh -c "echo \\$\\$ >> {pids}; sleep 60; true"; true'
if {tree}:
    proc.run(["sh", "-c", script], deadline=Deadline.after(60, "x"), tree=True)
else:
    proc.spawn(["sh", "-c", "echo $$ >> {pids}; exec sleep 60"], stdout=1, stderr=2)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("tree", "count"), [(False, 1), (True, 2)])
def test_children_die_with_a_killed_parent(tmp_path: Path, tree: bool, count: int) -> None:
    pids = tmp_path / "pids"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(pids=pids, tree=tree)],
        stdin=subprocess.PIPE,
    ) as parent:
        found = read_pids(pids, count)
        assert all(is_running(pid) for pid in found)
        parent.kill()
        parent.wait()
        for pid in found:
            wait_until(lambda pid=pid: not is_running(pid), soon(f"the end of {pid}"))  # type: ignore[misc]
