# SPDX-License-Identifier: Apache-2.0
"""A host under update without QEMU, for tests of what drives one.

It differs from :class:`~liveupdate.target.qemu.host.QemuHost` where libvirt's host does: in the
process that it starts, its monitor and its memory map. Console, agent's channel, wire, RAM and
disks are the real ones. No scenario can name it: a verdict on it says nothing about any kernel.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LostMachine, OutcomeUnknown
from liveupdate.model.plan import Plan
from liveupdate.target.base import Order, Process
from liveupdate.target.fake.machine import FakeMachine, Script, whole_ram
from liveupdate.target.machines import Registry
from liveupdate.target.qemu.argv import MachinePaths
from liveupdate.target.qemu.host import QemuHost
from liveupdate.transport.monitor import Monitor
from liveupdate.transport.physmem import PhysMem
from liveupdate.transport.ssh import Ssh, SshResult

_USERNET = "  TCP[HOST_FORWARD]  12  127.0.0.1 2222  10.0.2.15  22  0  0\r\n"


class FakeMonitor(Monitor):
    """The monitor of a :class:`FakeMachine`: what a run asks, and nothing else."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__()
        self._machine = machine
        self._lost: str | None = None

    @property
    def lost(self) -> str | None:
        """Why the connection is gone; None while it lives."""
        return self._lost

    def connect(self, deadline: Deadline) -> Mapping[str, object]:
        """Return a version; there is nothing to connect."""
        return {"qemu": {"major": 0, "minor": 0, "micro": 0}}

    def drop(self) -> None:
        """Cut the connection; for the fault tests."""
        self._lost = "cut"

    def close(self) -> None:
        """Close the connection."""
        self._lost = self._lost or "closed by us"

    def shut_down(self, reason: str) -> None:
        """Report an event SHUTDOWN with that reason."""
        self._keep("SHUTDOWN", {"reason": reason})

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        deadline: Deadline | None = None,
    ) -> object:
        """Answer the commands that a run sends.

        :raises QmpRefused: any other command.
        :raises LostMachine: the connection was cut.
        """
        if self._lost:
            raise LostMachine(f"QMP is gone: {self._lost}; wanted '{command}'", how="no-answer")
        match command:
            case "cont":
                self._machine.start()
            case "quit":
                self._machine.end(0)
            case "system_reset":
                self._machine.reset("host-qmp-system-reset")
            case "set_link":
                self._machine.script.is_ssh_up = False
            case "human-monitor-command":
                return _USERNET
        return {}


class FakeSsh(Ssh):
    """A connection in which every command is ``cat`` of boot_id and nonce."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self._boot_id = machine.boot_id

    @property
    def is_alive(self) -> bool:
        """Whether the connection has not been closed."""
        return self._boot_id == self._machine.boot_id

    def close(self) -> None:
        """Close the connection."""
        pass

    def run(
        self, argv: Sequence[str], deadline: Deadline, *, stdin: bytes = b"", check: bool = False
    ) -> SshResult:
        """Return boot_id and nonce of the machine, for any command."""
        if not (self.is_alive and self._machine.script.is_ssh_up):
            raise OutcomeUnknown("the line was cut")
        said = f"{self._machine.boot_id}\n{self._machine.nonce}\n".encode()
        return SshResult(argv=tuple(argv), stdout=said, stderr=b"", status=0)


class FakeHost(QemuHost):
    """The host under update of a plan; :attr:`machine` is there once it is entered."""

    def __init__(
        self, plan: Plan, *, run_id: str, run_dir: Path, registry: Registry, script: Script
    ) -> None:
        kit = Path(os.devnull)
        super().__init__(
            Order(plan=plan, kit=kit, run_id=run_id, run_dir=run_dir, registry=registry)
        )
        self.script = script
        self._kernels = (plan.images.outgoing, *(hop.incoming for hop in plan.hops))

    @property
    def machine(self) -> FakeMachine:
        """The machine. :raises StateError: the host is not entered."""
        return cast(FakeMachine, self._child)

    def ssh(self, deadline: Deadline) -> Ssh:
        """Return a fake connection."""
        if not self.script.is_ssh_up:
            raise deadline.exceeded("no answer")
        return FakeSsh(self.machine)

    def _launch(self, paths: MachinePaths, deadline: Deadline, *, incoming: bool) -> Process:
        self.argv = ("fake", "-accel", self.spec.accel)
        return FakeMachine(self.script, paths, self.spec.memory_bytes, self._kernels)

    def _make_monitor(self, paths: MachinePaths) -> Monitor:
        monitor = FakeMonitor(self.machine)
        self.machine.on_reset = monitor.shut_down
        return monitor

    def _map_ram(self, deadline: Deadline) -> PhysMem:
        return whole_ram(self.ram_fd, self.spec.memory_bytes)

    def _register(self) -> None:
        """Have no record: there is no process that would be left behind."""
