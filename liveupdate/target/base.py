# SPDX-License-Identifier: Apache-2.0
"""What a host under update can offer. Must not know any concrete machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from liveupdate.core.deadline import Deadline
from liveupdate.model.plan import Plan
from liveupdate.model.targets import TargetKind
from liveupdate.target.machines import Registry
from liveupdate.transport.agent_link import AgentLink
from liveupdate.transport.console import Console
from liveupdate.transport.ssh import Ssh

if TYPE_CHECKING:
    from liveupdate.target.qemu.host import QemuHost


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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFiles:
    """What a machine of ours is made from; none of it is written to."""

    kernel: Path
    rootfs: Path
    kit: Path
    ssh_client_key: Path
    ssh_host_key_pub: Path
    #: users' own disk images, by guest
    images: Mapping[str, Path] = field(default_factory=dict)


class Host(Protocol):
    """What every host under update has."""

    @property
    def console(self) -> Console:
        """The console, read from outside."""

    @property
    def agent(self) -> AgentLink:
        """A channel to the agent that needs no network."""

    @property
    def outside(self) -> QemuHost | None:
        """The host as a machine that is seen from outside, or None: it is not.

        It is for :attr:`Capability.PHYSICAL_MEMORY`, MONITOR, WIRE and PROCESS.
        """

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong while cleaning up."""

    def ssh(self, deadline: Deadline) -> Ssh:
        """Log in, with the pinned host key."""

    def place_kernel(self, hop: int, path: Path) -> str:
        """Return where the incoming kernel of a hop lies on the host, after bringing it there.

        :param path: the kernel on the control host.
        """

    def __enter__(self) -> Host: ...

    def shutdown(self) -> tuple[str, ...]:
        """Switch it off and clean up; return :attr:`problems`. Idempotent."""

    def death(self) -> Exception | None:
        """Say why there is no use in waiting for this machine any more, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a target is, and what only it knows of itself."""

    place: str
    #: the machine's own command line, instead of a planned one
    append: str | None = None
    #: the guests' disks on the machine, see :attr:`Plan.guest_disks`
    guest_disks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """All that a host is made from."""

    plan: Plan
    files: HostFiles
    run_id: str
    #: exists
    run_dir: Path
    registry: Registry


class Entry(Protocol):
    """A kind of target as a module, named by :attr:`TargetKind.module`."""

    def locate(self, place: str) -> Located:
        """Find the target, before a plan is made.

        :param place: what stands behind the colon of the scenario's ``target``, or "".
        :raises PlanError, ScenarioError: it is not there, or wrongly described.
        """

    def make(self, order: Order) -> Host:
        """Return the host, not entered."""


def find_entry(kind: TargetKind) -> Entry:
    """Import the module of a kind of target."""
    return cast(Entry, import_module(kind.module))
