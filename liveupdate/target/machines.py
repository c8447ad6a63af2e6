# SPDX-License-Identifier: Apache-2.0
"""The registry of running machines: ``ps`` reads it, and ``gc`` cleans up after a killed CLI.

One JSON file per machine in the runtime directory. A record is a claim, not a fact: a process
counts only if its start time is the recorded one *and* its argv names the run. It is signalled
through a pidfd, so that a reused pid is never hit. Must not know what a machine is for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from liveupdate.core.atomic_write import atomic_write
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import StateError
from liveupdate.core.proc import read_start_time

log = logging.getLogger(__name__)

_SUFFIX = ".machine.json"
_MAX_RECORD_BYTES = 64 * 1024


Number = Annotated[int, Meta(gt=0)]
"""A pid or a start time."""
Text = Annotated[str, Meta(pattern="^[^\\0]+$")]
"""An id or a path, which cannot hold a NUL."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One started machine. Start times are clock ticks after boot, as in ``/proc/PID/stat``."""

    run_id: Text
    pid: Number
    start_time: Number
    owner_pid: Number
    owner_start_time: Number
    #: sockets, in the runtime directory; removed with the machine
    runtime_dir: Text
    #: results; never removed from here
    run_dir: Text
    ssh_port: int | None = None
    accel: str = ""


class MachineState(Enum):
    """State of a recorded machine. ORPHAN: it runs, but the run that started it is gone."""

    RUNNING = "running"
    ORPHAN = "orphan"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A record and its state."""

    machine: Machine
    state: MachineState


@dataclass(frozen=True, slots=True, kw_only=True)
class GcResult:
    """What ``gc`` did, by run id, and its errors."""

    killed: tuple[str, ...]
    removed: tuple[str, ...]
    errors: tuple[str, ...]


def machine_name(run_id: str) -> str:
    """Return the value of QEMU's ``-name``, by which its argv is recognised."""
    return f"lu-{run_id}"


def is_named(cmdline: bytes, run_id: str) -> bool:
    """Whether an argv, as in ``/proc/PID/cmdline``, is that run's machine."""
    argv = cmdline.split(b"\0")
    name = machine_name(run_id).encode()
    # libvirt writes the long form, with more behind the comma
    return any(
        option == b"-name" and value.partition(b",")[0] in (name, b"guest=" + name)
        for option, value in pairwise(argv)
    )


def decide(
    machine: Machine, start_time: int | None, cmdline: bytes, owner_start_time: int | None
) -> MachineState:
    """Return the state of a record, from what ``/proc`` says of its pid and of its owner's."""
    if start_time != machine.start_time or not is_named(cmdline, machine.run_id):
        return MachineState.DEAD
    if owner_start_time != machine.owner_start_time:
        return MachineState.ORPHAN
    return MachineState.RUNNING


class Registry:
    """The records in one runtime directory (:func:`liveupdate.core.paths.runtime_dir`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make_runtime_dir(self, run_id: str) -> Path:
        """Make the 0700 directory for the sockets of a run.

        :raises StateError: a directory of that name exists.
        """
        path = self.root / run_id
        try:
            path.mkdir(mode=0o700)
        except FileExistsError as error:
            raise StateError(f"run '{run_id}'", state="exists", required="new") from error
        return path

    def add(self, machine: Machine) -> None:
        """Record a machine, or replace its record."""
        text = msgspec.json.format(msgspec.json.encode(machine), indent=1) + b"\n"
        atomic_write(self._file(machine.run_id), text)

    def remove(self, run_id: str) -> None:
        """Remove the record of a machine whose process and directory are gone."""
        self._file(run_id).unlink(missing_ok=True)

    def list(self) -> tuple[Listed, ...]:
        """Return every readable record with its state."""
        found = []
        for path in sorted(self.root.glob(f"*{_SUFFIX}")):
            try:
                with path.open("rb") as file:
                    machine = msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=Machine)
            except (OSError, ValueError, RecursionError) as error:
                log.warning("'%s' is not a record: %s", path, error)
                continue
            if path.name == f"{machine.run_id}{_SUFFIX}":
                found.append(Listed(machine=machine, state=look_at(machine)))
        return tuple(found)

    def sweep(self, deadline: Deadline, *, everything: bool = False) -> GcResult:
        """Kill orphans, and remove the files of dead machines.

        :param everything: also kill the machines of living owners.
        """
        killed, removed, errors = [], [], []
        for item in self.list():
            run_id = item.machine.run_id
            try:
                if item.state is MachineState.ORPHAN or (
                    everything and item.state is MachineState.RUNNING
                ):
                    kill(item.machine, deadline)
                    killed.append(run_id)
                elif item.state is MachineState.RUNNING:
                    continue
                self._remove_traces(item.machine)
                removed.append(run_id)
            except (OSError, StateError, TimeoutError) as error:
                errors.append(f"{run_id}: {error}")
        known = {item.machine.run_id for item in self.list()}
        for path in self._strays(known):
            # made by a CLI that was killed before its machine started
            try:
                shutil.rmtree(path)
                removed.append(path.name)
            except OSError as error:
                errors.append(f"{path.name}: {error}")
        return GcResult(killed=tuple(killed), removed=tuple(removed), errors=tuple(errors))

    def _file(self, run_id: str) -> Path:
        return self.root / f"{run_id}{_SUFFIX}"

    def _remove_traces(self, machine: Machine) -> None:
        directory = Path(machine.runtime_dir)
        # A record is a file with any content: only entries directly below the root are removed,
        # and rmtree does not follow links.
        if directory.parent == self.root and directory.name == machine.run_id:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory)
        self.remove(machine.run_id)

    def _strays(self, known: set[str]) -> Iterator[Path]:
        for path in self.root.iterdir():
            owner = path / "owner"
            if path.name in known or not stat.S_ISDIR(path.lstat().st_mode) or not owner.is_file():
                continue
            pid, _, start_time = owner.read_text().strip().partition(" ")
            if pid.isdigit() and str(read_start_time(int(pid))) != start_time:
                yield path


def write_owner(directory: Path) -> None:
    """Write the owner into a runtime directory, before there is a record."""
    pid = os.getpid()
    (directory / "owner").write_text(f"{pid} {read_start_time(pid)}\n")


def look_at(machine: Machine) -> MachineState:
    """Return the state of a record according to ``/proc``."""
    try:
        cmdline = Path(f"/proc/{machine.pid}/cmdline").read_bytes()
    except OSError:
        cmdline = b""
    return decide(
        machine, read_start_time(machine.pid), cmdline, read_start_time(machine.owner_pid)
    )


def kill(machine: Machine, deadline: Deadline) -> None:
    """Kill a machine, with its process group, and wait until it is gone.

    :raises StateError: the process is not the recorded one (any more).
    :raises TimeoutError: it did not end.
    """
    try:
        descriptor = os.pidfd_open(machine.pid)
    except ProcessLookupError:
        return
    try:
        # Checked again after the pidfd was opened: from here on the pid cannot be reused.
        if look_at(machine) is MachineState.DEAD:
            raise StateError(
                f"pid {machine.pid}", state="another process", required=machine_name(machine.run_id)
            )
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(machine.pid) == machine.pid:
                os.killpg(machine.pid, signal.SIGKILL)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(deadline.remaining_s * 1000):
            raise TimeoutError(f"pid {machine.pid} outlives SIGKILL")
    finally:
        os.close(descriptor)
