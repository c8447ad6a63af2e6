# SPDX-License-Identifier: Apache-2.0
"""What a host under update can offer, as small capabilities; a target has those it has.

A probe names the capabilities it needs; what a target lacks makes a SKIP with that reason. Must not
know any concrete machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from liveupdate.core.deadline import Deadline
from liveupdate.transport.agent_link import AgentLink
from liveupdate.transport.console import Console
from liveupdate.transport.guest_network import Wire
from liveupdate.transport.physmem import PhysMem
from liveupdate.transport.ssh import Ssh


class Process(Protocol):
    """A machine's process: a child of ours, or somebody else's."""

    @property
    def pid(self) -> int: ...

    @property
    def start_time(self) -> int: ...

    @property
    def returncode(self) -> int | None:
        """None while it runs."""

    def wait(self, deadline: Deadline) -> int:
        """Wait for its end. :raises DeadlineExceeded:"""

    def kill(self) -> None:
        """End it, whatever it does. Idempotent."""

    def close(self) -> None:
        """End what still runs, and let go. Idempotent."""


@runtime_checkable
class HasPower(Protocol):
    """Can be reset and switched off from outside."""

    def reset(self, deadline: Deadline) -> None:
        """Reset the machine, as the button does."""

    def shutdown(self) -> None:
        """Switch it off and clean up. Idempotent."""

    def death(self) -> Exception | None:
        """Say why there is no use in waiting for this machine any more, or None."""


@runtime_checkable
class HasConsole(Protocol):
    """Has a console that is read from outside."""

    @property
    def console(self) -> Console: ...


@runtime_checkable
class HasAgent(Protocol):
    """Has a channel to the agent that needs no network."""

    @property
    def agent(self) -> AgentLink: ...


@runtime_checkable
class HasSsh(Protocol):
    """Can be logged in to."""

    def ssh(self, deadline: Deadline) -> Ssh:
        """Log in, with the pinned host key."""


@runtime_checkable
class HasPhysicalMemory(Protocol):
    """Its RAM can be mapped from outside."""

    @property
    def ram(self) -> PhysMem: ...


@runtime_checkable
class HasMonitor(Protocol):
    """Can be asked about its devices from outside."""

    def monitor(self, command_line: str, deadline: Deadline) -> str:
        """Run a monitor command and return its text."""


@runtime_checkable
class HasWire(Protocol):
    """Has a network between control host and guests that sees raw frames."""

    @property
    def wire(self) -> Wire: ...


class Host(HasConsole, HasAgent, HasSsh, Protocol):
    """What every host under update has; the rest is asked for with :func:`isinstance`."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong while cleaning up."""

    def __enter__(self) -> Host: ...

    def shutdown(self) -> tuple[str, ...]: ...

    def death(self) -> Exception | None: ...


CAPABILITIES: Mapping[str, type] = {
    "power": HasPower,
    "console": HasConsole,
    "agent": HasAgent,
    "ssh": HasSsh,
    "physical_memory": HasPhysicalMemory,
    "monitor": HasMonitor,
    "wire": HasWire,
}
"""Names as scenarios, skips and reports use them."""
