# SPDX-License-Identifier: Apache-2.0
"""The interface of a host under update, and what hosts share.

Must not know any concrete machine.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, cast

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LiveUpdateError, StateError
from liveupdate.model.plan import Plan
from liveupdate.model.targets import TargetKind
from liveupdate.target.machines import Registry, write_owner
from liveupdate.transport.agent_link import AgentLink
from liveupdate.transport.console import Console

if TYPE_CHECKING:
    from liveupdate.target.qemu.host import QemuHost

    # loads paramiko, which only a host that is there needs
    from liveupdate.transport.ssh import Ssh

T = TypeVar("T")


class Process(Protocol):
    """A machine's process: a child of this process or of another one."""

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def start_time(self) -> int:
        """Start time in clock ticks after boot, as in ``/proc/PID/stat``."""

    @property
    def returncode(self) -> int | None:
        """Exit status; None while it runs."""

    def wait(self, deadline: Deadline) -> int:
        """Wait until it ends. :raises DeadlineExceeded: it still runs."""

    def kill(self) -> None:
        """End it, in any state. Idempotent."""

    def close(self) -> None:
        """End it if it still runs, and release its resources. Idempotent."""


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
        """The host as a machine that can be observed from outside; None: it cannot.

        Needed for :attr:`Capability.PHYSICAL_MEMORY`, MONITOR, WIRE and PROCESS.
        """

    @property
    def problems(self) -> tuple[str, ...]:
        """Errors of the cleanup."""

    def ssh(self, deadline: Deadline) -> Ssh:
        """Log in, with the pinned host key."""

    def place_kernel(self, hop: int, path: Path) -> str:
        """Make the incoming kernel of a hop available on the host and return its path there.

        :param path: the kernel on the control host.
        """

    def __enter__(self) -> Host: ...

    def shutdown(self) -> tuple[str, ...]:
        """Switch it off and clean up; return :attr:`problems`. Idempotent."""

    def death(self) -> Exception | None:
        """Return why waiting for this machine is useless, or None."""


class Entered(ABC):
    """What hosts have in common: they are entered, have a console and an agent, and are left."""

    def __init__(self, *, run_id: str, run_dir: Path, registry: Registry) -> None:
        """:param run_dir: exists; gets ``boot-N/``."""
        self.run_id = run_id
        self.run_dir = run_dir
        #: what went wrong while cleaning up; the runner reports it
        self.problems: tuple[str, ...] = ()
        self._registry = registry
        self._stack = ExitStack()
        self._console: Console | None = None
        self._agent: AgentLink | None = None
        self._stopping = False

    @property
    def console(self) -> Console:
        """The serial console. :raises StateError: the machine is not entered."""
        return there(self._console)

    @property
    def agent(self) -> AgentLink:
        """The agent's channel. :raises StateError: the machine is not entered."""
        return there(self._agent)

    def __enter__(self) -> Self:
        try:
            self._enter()
        except BaseException:
            self.shutdown()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()

    @abstractmethod
    def _enter(self) -> None:
        """Start the machine, or take it, and connect; what was begun is left by the caller."""

    def shutdown(self) -> tuple[str, ...]:
        """Leave the machine and clean up; return all errors on the way. Idempotent."""
        problems: list[str] = []
        if not self._stopping:
            self._stopping = True
            self._end(problems)
        try:
            # runs every callback, and chains the errors of all that failed
            self._stack.close()
        except (OSError, LiveUpdateError, BufferError) as error:
            failed: BaseException | None = error
            while failed is not None:
                problems.append(f"cleaning up: {failed!r}")
                failed = failed.__context__
        if self._console is not None and self._console.write_error is not None:
            problems.append(f"console log: {self._console.write_error}")
        self.problems += tuple(problems)
        return tuple(problems)

    def _end(self, problems: list[str]) -> None:  # noqa: B027
        """End the machine; nothing by default: it stays switched on."""

    def _make_runtime_dir(self) -> Path:
        """Make the directory of sockets, which goes when the machine is left."""
        runtime = self._registry.make_runtime_dir(self.run_id)
        self._stack.callback(shutil.rmtree, runtime)
        write_owner(runtime)
        return runtime


def there(thing: T | None) -> T:
    """Return what exists while a machine is entered. :raises StateError: it is not."""
    if thing is None:
        raise StateError("the machine", state="not entered", required="entered")
    return thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a target is, and what it contributes to the plan."""

    place: str
    #: the machine's own command line, instead of a planned one
    append: str | None = None
    #: the guests' disks on the machine, see :attr:`Plan.guest_disks`
    guest_disks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """All that a host is made from."""

    plan: Plan
    #: disk with agent and kernels
    kit: Path
    run_id: str
    #: exists
    run_dir: Path
    registry: Registry


class Entry(Protocol):
    """A kind of target as a module, named by :attr:`TargetKind.module`."""

    def locate(self, place: str) -> Located:
        """Find the target, before a plan is made.

        :param place: the text after the colon of the scenario's ``target``, or "".
        :raises PlanError, ScenarioError: it does not exist, or its description is wrong.
        """

    def make(self, order: Order) -> Host:
        """Return the host, not yet started."""


def find_entry(kind: TargetKind) -> Entry:
    """Import the module of a kind of target."""
    return cast(Entry, import_module(kind.module))
