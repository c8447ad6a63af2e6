# SPDX-License-Identifier: Apache-2.0
"""A host that is held by an update: console and power may be gone, and that is said."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveupdate.cli.apply_session import console_trouble
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LaunchError
from liveupdate.target.machines import Registry
from liveupdate.target.ssh.held import NO_CONSOLE, HeldHost
from liveupdate.target.ssh.spec import ConsoleSpec, LabgridSpec, LabMachine


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lu-test-", dir="/tmp"))
    (path / "rt").mkdir()
    yield path
    shutil.rmtree(path)


def make_machine(root: Path, console: ConsoleSpec, power: tuple[str, ...] = ()) -> LabMachine:
    return LabMachine(
        address="127.0.0.1",
        port=9,
        host_key=root / "none",
        key=root / "none",
        console=console,
        power=power,
        append="",
        disks=(),
        labgrid=LabgridSpec(place="box"),
    )


def make_host(root: Path, machine: LabMachine) -> HeldHost:
    return HeldHost(
        machine, run_id="t1", run_dir=root, registry=Registry(root / "rt"), update="u1", owner="me"
    )


@pytest.mark.parametrize(
    ("console", "said"),
    [
        (ConsoleSpec(socket="/nonexistent/con"), "No such file"),
        (ConsoleSpec(), NO_CONSOLE),
    ],
)
def test_a_console_that_is_gone_is_said_and_the_host_is_taken_all_the_same(
    root: Path, console: ConsoleSpec, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine = make_machine(root, console)
    assert said in console_trouble(machine)
    host = make_host(root, machine)
    with host:
        assert not host.has_console
        assert host.death() is None
    assert ("console of the host is not read" in caplog.text) == (console != ConsoleSpec())


@pytest.mark.parametrize(
    ("power", "said"),
    [(("false",), "the power command failed"), ((), "has no power command")],
)
def test_a_power_command_that_fails_or_is_missing_is_said(
    root: Path, power: tuple[str, ...], said: str
) -> None:
    host = make_host(root, make_machine(root, ConsoleSpec(), power))
    with pytest.raises(LaunchError, match=said):
        host.reset(Deadline.after(10.0, "the power command"))
