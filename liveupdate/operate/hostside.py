# SPDX-License-Identifier: Apache-2.0
"""The line to the host of an update; :mod:`liveupdate.operate.held` has what is done over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from liveupdate.core.deadline import Deadline
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir
from liveupdate.model.plan import Plan
from liveupdate.operate.preflight import Local
from liveupdate.run.testbed import GuestHandle, Testbed
from liveupdate.target.ssh.held import HeldHost


@dataclass(slots=True, kw_only=True)
class HostSide:
    """The host of one update, and what this process knows of it. ``argv``: its command line."""

    name: str
    plan: Plan
    record: RunDir
    local: Local
    steps: Steps
    host: HeldHost
    argv: tuple[str, ...]
    #: the host is connected
    is_entered: bool = False
    bed: Testbed = field(init=False)

    def __post_init__(self) -> None:
        guests = tuple(
            GuestHandle(spec=spec, index=index) for index, spec in enumerate(self.plan.guests)
        )
        self.bed = Testbed(plan=self.plan, host=self.host, record=self.record, guests=guests)

    def enter(self) -> None:
        """Connect, which locks the host for this update.

        :raises LiveUpdateError: it cannot be tried; a host that does not answer is no error yet.
        """
        self.host.__enter__()
        self.is_entered = True

    def close(self) -> None:
        """Disconnect; the host stays locked."""
        self.bed.close_ssh()
        if self.is_entered:
            for problem in self.host.shutdown():
                self.steps.note("cleanup", problem=problem)
        self.is_entered = False

    def reconnect(self) -> None:
        """Make new connections: dead ones give no error."""
        self.host.reconnect()
        self.bed.close_ssh()

    def power_reset(self) -> None:
        """Reset the machine by its power command."""
        self.host.reset(Deadline.after(60.0, "the power command"))

    def wait_line(self, timeout_s: float) -> None:
        """Wait until the agent can be reached; this is not part of the time for its answer."""
        self.host.wait_line(Deadline.after(timeout_s, "the line to the agent"))

    def status(self, timeout_s: float) -> Mapping[str, object]:
        """Return the agent's ``update_status``."""
        return self.bed.call("update_status", timeout_s=timeout_s)
