# SPDX-License-Identifier: Apache-2.0
"""A hop of a run: made in one go, and watched as it happens. Every fact is stored when it appears.

A failure is raised as a typed error; the runner turns it into an incident after the hop has stored
what it observed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from functools import partial

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded, LiveUpdateError, LostMachine
from liveupdate.core.steps import Steps
from liveupdate.faults.base import Moment
from liveupdate.model import slots
from liveupdate.model.evidence import SessionFacts
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.model.mechanism import AGENT_SESSION
from liveupdate.model.plan import Hop
from liveupdate.run.devices import DeviceHop
from liveupdate.run.digests import OutsideDigests, OutsideStates
from liveupdate.run.hop import HopEngine
from liveupdate.run.moves import STEPS
from liveupdate.run.observers.costs import record_costs, record_handed_over
from liveupdate.run.observers.guests import GuestObservers
from liveupdate.run.observers.host_queries import read_over_ssh, scan_journal
from liveupdate.run.observers.iommu import IommuObserver
from liveupdate.run.testbed import GuestHandle, Testbed, field_of
from liveupdate.run.timeline import find_moments
from liveupdate.transport.agent_link import AgentEvent
from liveupdate.transport.console import ConsoleLine

#: an agent that is alive answers a ping at once, even under TCG
_PING_S = 5.0
#: how soon a refused kexec is noticed
_SLOT_S = 0.5


class FreezeRefused(LiveUpdateError):
    """The freeze failed, and the agent reports that the guests run on the outgoing kernel."""


class LiveHop(HopEngine):
    """One hop in progress. :meth:`run` walks it; :meth:`store` may be called however it ended."""

    def __init__(self, bed: Testbed, hop: Hop, watchers: GuestObservers, steps: Steps) -> None:
        super().__init__(bed, hop, steps)
        self._guest_observers = watchers
        self._agent = bed.host.agent
        self._mark = self._agent.mark()
        self._digests = OutsideDigests(bed, steps)
        self._states = OutsideStates(bed, steps)
        self._iommu_observer = IommuObserver(bed, self.n, steps)
        self._devices = DeviceHop(bed, self.n, watchers.senders, steps)
        #: how many kernels have booted before the jump, and until when the next one has to
        self._boots = 0
        self._leaving = Deadline.after(0.0, "nothing")

    def run(self) -> None:
        """Go through the whole hop.

        :raises FreezeRefused: nothing was lost; the guests run on the outgoing kernel.
        :raises LiveUpdateError: it could not be finished.
        """
        for step, moves in STEPS.items():
            with self.steps.step(step, hop=self.n):
                for move in moves:
                    self.make(move)

    def store(self) -> None:
        """Store what there is of this hop; never raises for missing evidence."""
        self.fault.store()
        self._devices.store()
        self._guest_observers.store(self.n)
        self._iommu_observer.store()
        events = self._agent.events(self._mark)
        self.put_events(events, self._digests.finish(), self._states.seen)

    # --- before

    def watch(self) -> None:
        """Store the kernel's facts and the journals, and start the frames to devices."""
        self.put_before()
        self._put_journals(slots.JOURNAL_BEFORE)
        self._devices.begin()

    def see_preserved(self) -> None:
        """Store the costs, and KHO's map of preserved memory."""
        record_costs(self.bed, self.n, "before", self.steps)
        record_handed_over(self.bed, self.n, self.steps)

    def select(self, guest: GuestHandle) -> None:
        """Look the guest's pages up, so that the blackout only has to read them."""
        self._digests.select(guest)

    def see_loaded(self) -> None:
        """Start to watch the IOMMU."""
        self._iommu_observer.begin()

    # --- blackout

    def before_jump(self) -> None:
        """Check that the holder of the sessions is alive.

        :raises LostMachine: the agent does not answer.
        """
        self._boots = len(self.bed.host.console.boots)
        try:
            self.bed.call("ping", timeout_s=_PING_S)
        except DeadlineExceeded as error:
            raise LostMachine(
                f"the agent is gone before the jump: {error}",
                how="no-answer",
                hint="the guests were not frozen; its sessions are closed with it",
            ) from error
        self._mark = self._agent.mark()

    def see_jump(self) -> None:
        """Digest each guest's memory as it is paused, and wait for the agent's last event.

        :raises FreezeRefused: the freeze failed.
        """
        self._leaving = Deadline.after(
            self.bed.plan.timeouts.jump_s, "the outgoing kernel to freeze and jump"
        )
        for guest in self.bed.guests:
            self._wait("paused", self._leaving, guest)
            self._digests.begin(guest.spec.name, "freeze")
        self._wait("jumping", self._leaving)
        self._states.find(self._agent.events(self._mark))
        self._states.look("freeze")

    def incoming(self) -> None:
        """Strike, wait for the incoming kernel, digest the memory again, and wait for the
        guests.
        """
        # The freeze pass reads memory that is no longer written; it must end before a fault writes.
        self._digests.wait()
        self.fault.strike(Moment.BLACKOUT)
        self.moments["first-line", ""] = self._wait_boot().at_ns
        self.fault.strike(Moment.INCOMING)
        self._states.look("boot")
        for guest in self.bed.guests:
            self._digests.begin(guest.spec.name, "boot")
        self._follow()

    def _follow(self) -> None:
        bed, timeouts = self.bed, self.bed.plan.timeouts
        hello = self._wait(
            "hello", Deadline.after(timeouts.incoming_s, "the incoming kernel's agent")
        )
        bed.agent_pid = field_of(hello.data, "pid", int) or 0
        # The outgoing kernel's tmpfs is gone, and the nonce with it.
        bed.call("set_nonce", {"nonce": bed.nonce})
        if hello.data.get("recovered") is not True:
            self.steps.note("nothing-recovered", hop=self.n)
            if not self.put_sessions(hello.data.get("sessions", [])):
                nothing = SessionFacts(
                    name=AGENT_SESSION, error="nothing was left", tokens=0, retrieve_ns=0
                )
                bed.record.add(slots.SESSIONS, (nothing,), self.n)
            return
        deadline = Deadline.after(timeouts.restore_s, "the incoming agent to restore the guests")
        restored = self._wait("restored", deadline)
        self.put_sessions(restored.data.get("sessions", []))
        self.put_failures(self._agent.events(self._mark))

    # --- after

    def observe_after(self) -> None:
        """Wait for the first tick of each guest and for the end of the observation."""
        self.fault.strike(Moment.RESUMED)
        window = Deadline.after(self.bed.plan.observe.after_s, "the observation window")
        self._devices.resumed()
        for guest in self.payload_guests():
            name = guest.spec.name
            resumed = self._resumed().get(name)
            if resumed is None:
                continue
            first_tick = partial(self._guest_observers.latest_tick_ns, name, resumed)
            with contextlib.suppress(DeadlineExceeded):
                # A guest that never ticks again is found by the judge in the trace.
                self.moments["ticked", name] = wait_until(first_tick, window)
        read_over_ssh(self.bed, self.n)
        if not window.expired:
            time.sleep(window.remaining_s)

    def collect(self) -> None:
        """Stop watching the IOMMU and the devices, and store the state of host and guests."""
        machine = self.bed.machine
        if machine is not None and (lost := machine.qmp.lost) is not None:
            # Whether the machine was reset is only known through the monitor.
            self.incident("lost-qmp", lost)
        self._iommu_observer.end()
        self.see_kernel()
        record_costs(self.bed, self.n, "after", self.steps)
        self._devices.end()
        self.see_guests(self._resumed())
        self._put_journals(slots.JOURNAL_AFTER)

    # --- small things

    def _resumed(self) -> Mapping[str, int]:
        """Return when each guest was resumed, of those that were."""
        moments = find_moments(self._agent.events(self._mark))
        return {guest: at_ns for (name, guest), at_ns in moments.items() if name == "resumed"}

    def _wait_boot(self) -> ConsoleLine:
        """Wait for the incoming kernel, or for the report that the outgoing one refused to leave.

        :raises FreezeRefused: reboot(2) returned.
        """
        deadline = self._leaving
        while True:
            slot = Deadline.after(min(_SLOT_S, deadline.remaining_s), deadline.what)
            try:
                return self.bed.host.console.wait_boot(self._boots, slot)
            except DeadlineExceeded as error:
                for event in self._agent.events(self._mark):
                    _raise_refusal(event)
                if deadline.expired:
                    raise deadline.exceeded(error.last) from error

    def _wait(self, name: str, deadline: Deadline, guest: GuestHandle | None = None) -> AgentEvent:
        """Wait for an event of this hop; a freeze that failed comes instead as FreezeRefused."""
        wanted = guest.spec.name if guest is not None else None

        def look(event: AgentEvent) -> bool:
            if event.name == "freeze-failed":
                return True
            return event.name == name and wanted in (None, event.guest)

        event = self._agent.wait_for(look, deadline, what=f"'{name}'", since=self._mark)
        _raise_refusal(event)
        return event

    def _put_journals(self, slot: slots.Document[JournalFacts]) -> None:
        machine = self.bed.machine
        if machine is None:
            return
        for guest in self.payload_guests():
            name = guest.spec.name
            journal = scan_journal(machine.disks[name], guest.ready, self.steps, guest=name)
            if journal is not None:
                self.bed.record.put(slot, journal, self.n, name)


def _raise_refusal(event: AgentEvent) -> None:
    if event.name == "freeze-failed":
        raise FreezeRefused(str(event.data.get("message", "the freeze failed")))
