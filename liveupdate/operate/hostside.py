# SPDX-License-Identifier: Apache-2.0
"""The host of an update: the line to it, and the steps around the hop and on the way back.

The hop itself is made by :mod:`liveupdate.operate.held`. Every method may be called again after it
was cut off anywhere: it finds out what is done already.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LiveUpdateError, OutcomeUnknown, PlanError
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir
from liveupdate.model import slots
from liveupdate.model.plan import Hop, Plan
from liveupdate.operate import preflight
from liveupdate.operate.held import HeldHop
from liveupdate.operate.journal import HostView, State, status_view
from liveupdate.operate.preflight import Local
from liveupdate.operate.survey import read_survey
from liveupdate.run.provenance import describe
from liveupdate.run.testbed import GuestHandle, Testbed
from liveupdate.target.base import Host
from liveupdate.target.ssh.host import NEXT_KERNEL

_ENTER_S = 30.0
_SHORT_S = 20.0


class Unreachable(LiveUpdateError):
    """The host cannot be asked now."""


class Held(Host, Protocol):
    """The part of :class:`liveupdate.target.ssh.held.HeldHost` that is used here."""

    @property
    def has_console(self) -> bool:
        """Whether the console is being read."""

    @property
    def trouble(self) -> str:
        """Why there is no connection to the agent; "": there is one."""

    def reconnect(self) -> None:
        """Drop the connection to the agent and make a new one."""

    def wait_line(self, deadline: Deadline) -> None:
        """Wait until the agent can be reached."""

    def reset(self, deadline: Deadline) -> None:
        """Reset the machine by its power command."""

    def push_kernel(self, path: Path) -> str:
        """Copy a kernel to the machine and return its path there."""


@dataclass(slots=True)
class HostSide:
    """The host of one update, through its agent and SSH."""

    name: str
    plan: Plan
    record: RunDir
    local: Local
    steps: Steps
    make_host: Callable[[], Held]
    argv: tuple[str, ...]
    _host: Held | None = None
    _bed: Testbed | None = None

    # --- connection

    @property
    def is_entered(self) -> bool:
        """Whether the host is connected."""
        return self._host is not None

    @property
    def trouble(self) -> str:
        """Why the host cannot be asked now; "": it can, as far as is known."""
        return self._host.trouble if self._host is not None else ""

    @property
    def bed(self) -> Testbed:
        """The host with its guests. :raises Unreachable: it is not connected."""
        if self._bed is None:
            raise Unreachable(f"host '{self.name}' is not connected")
        return self._bed

    @property
    def _hop(self) -> Hop:
        return self.plan.hops[0]

    def enter(self) -> None:
        """Connect, which locks the host for this update.

        :raises LiveUpdateError: it cannot be tried; a host that does not answer is no error yet.
        """
        host = self.make_host()
        host.__enter__()
        self._host = host
        guests = tuple(
            GuestHandle(spec=spec, index=index) for index, spec in enumerate(self.plan.guests)
        )
        self._bed = Testbed(plan=self.plan, host=host, record=self.record, guests=guests)

    def close(self) -> None:
        """Disconnect; the host stays locked."""
        host, self._host = self._host, None
        bed, self._bed = self._bed, None
        if bed is not None:
            bed.close_ssh()
        if host is not None:
            for problem in host.shutdown():
                self.steps.note("cleanup", problem=problem)

    def reconnect(self) -> None:
        """Make new connections: dead ones give no error."""
        if self._host is not None:
            self._host.reconnect()
        if self._bed is not None:
            self._bed.close_ssh()

    def power_reset(self) -> None:
        """Reset the machine by its power command."""
        host = self._host or self.make_host()
        host.reset(Deadline.after(60.0, "the power command"))

    def wait_line(self, timeout_s: float) -> None:
        """Wait until the agent can be reached; this is not part of the time for its answer."""
        if self._host is not None:
            self._host.wait_line(Deadline.after(timeout_s, "the line to the agent"))

    def status(self, timeout_s: float) -> Mapping[str, object]:
        """Return the agent's ``update_status``."""
        return self.bed.call("update_status", timeout_s=timeout_s)

    # --- forward

    def lock(self, view: HostView) -> Mapping[str, object]:
        """Store the boot of the host in which this update begins; connecting has locked it."""
        answer = self.status(_SHORT_S)
        generation = answer.get("generation")
        if generation != self._hop.number - 1:
            raise PlanError(
                f"the host was updated meanwhile: its generation is {generation}, planned was"
                f" {self._hop.number - 1}",
                hint="begin a new update",
            )
        now = status_view(answer)
        return {"boot_id": now.boot_id, "since": now.since}

    def preflight(self) -> Mapping[str, object]:
        """Check again, while no other update can change the host.

        :raises PlanError: it may not be updated, or is not as it was when it was planned.
        """
        options = list(self.local.mechanism.kconfig)
        answer = self.bed.call("survey", {"options": options}, timeout_s=60.0)
        survey = read_survey(answer)
        refusals = [
            f"{each.subject}: {each.text}".removeprefix(": ")
            for each in preflight.check(survey, self.local)
            if each.level is preflight.Level.REFUSE
        ]
        if refusals:
            raise PlanError(f"the host cannot be updated: {'; '.join(refusals)}")
        now = {name: guest.spec.memory_bytes for name, guest in survey.guests.items()}
        planned = {guest.name: guest.memory_bytes for guest in self.plan.guests}
        if now != planned:
            raise PlanError(
                f"the host's guests are {', '.join(sorted(now))}; planned was"
                f" {', '.join(sorted(planned))}",
                hint="begin a new update",
            )
        self._put_origin()
        return {"tsc_khz": survey.facts.tsc_khz}

    def _put_origin(self) -> None:
        """Store what the host was before, and what it was done with."""
        self._held(State()).put_before()
        self.record.put(
            slots.PROVENANCE, describe(self.bed, argv=self.argv, accel_reason="a host of yours")
        )

    def copy_kernel(self) -> Mapping[str, object]:
        """Copy the image and compare its digest on the host.

        :raises PlanError: it differs, or the image changed here.
        """
        image = Path(self._hop.incoming.path)
        found = hashlib.sha256(image.read_bytes()).hexdigest()
        if found != self._hop.incoming.sha256:
            raise PlanError(f"'{image}' was changed after the update was planned")
        host = self._host
        if host is None:
            raise Unreachable(f"host '{self.name}' is not connected")
        path = host.push_kernel(image)
        deadline = Deadline.after(_SHORT_S * 3, "sha256sum on the host")
        said = self.bed.ssh(deadline).run(("sha256sum", path), deadline, check=True).stdout
        there = said.decode(errors="replace").split(" ", 1)[0]
        if there != found:
            raise PlanError(f"'{path}' on the host has sha256 {there}, planned was {found}")
        return {"path": path, "sha256": there}

    def make(
        self,
        move: str,
        state: State,
        view: HostView,
        wait: Callable[[], Mapping[str, object]],
    ) -> Mapping[str, object]:
        """Make one move of the hop; :class:`HeldHop` says what the parameters are."""
        return self._held(state, view, wait).make(move)

    def _held(
        self,
        state: State,
        view: HostView | None = None,
        wait: Callable[[], Mapping[str, object]] | None = None,
    ) -> HeldHop:
        return HeldHop(self.bed, self._hop, self.steps, state=state, view=view, wait=wait)

    # --- back

    def abandon(self, view: HostView) -> Mapping[str, object]:
        """Close the sessions: nothing stays preserved, and the guests run on."""
        if view.handover in ("prepared", "failed"):
            self.bed.call("abandon")
        return {}

    def unload(self) -> Mapping[str, object]:
        """Unload the incoming kernel."""
        self.bed.call("unload_kernel")
        return {}

    def observe_back(self, state: State) -> Mapping[str, object]:
        """Watch the guests where they are."""
        return self._held(state).observe_back()

    def collect_back(self, state: State) -> Mapping[str, object]:
        """Fetch what the host recorded until the update was rolled back."""
        if "preflight" not in state.done:
            self._put_origin()
        return self._held(state).collect_back()

    def collect_lost(self, state: State) -> Mapping[str, object]:
        """Ask a host that has lost its guests for its state."""
        panic = None
        if self._host is not None and self._host.has_console:
            panic = self._host.console.panic
        return self._held(state).collect_lost(panic)

    # --- end

    def release(self, first_boot: str) -> Mapping[str, object]:
        """Unlock the host; on the outgoing kernel the copied image is removed, too."""
        now = status_view(self.status(_SHORT_S))
        if now.boot_id == (first_boot or now.boot_id):
            deadline = Deadline.after(_SHORT_S, "the copied kernel to be removed")
            with contextlib.suppress(OutcomeUnknown):
                self.bed.ssh(deadline).run(("rm", "-f", NEXT_KERNEL), deadline)
        if now.update:
            self.bed.call("update_end")
        return {}
