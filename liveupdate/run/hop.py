# SPDX-License-Identifier: Apache-2.0
"""One hop: brownout, freeze, kexec, restore, observation; every fact is stored when it appears.

Nothing here decides whether it went well. What cannot go on is raised as a typed error, and the
runner turns it into an incident after the hop has stored what it had seen.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import (
    DeadlineExceeded,
    LiveUpdateError,
    LostMachine,
    RemoteError,
)
from liveupdate.core.steps import Steps
from liveupdate.faults.base import Fault, Moment
from liveupdate.faults.table import FAULTS
from liveupdate.formats.journal import JournalError
from liveupdate.model import codec, slots
from liveupdate.model.evidence import Incident, PageFrames, SessionFacts
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.model.mechanism import AGENT_SESSION
from liveupdate.model.plan import Hop
from liveupdate.planning.planner import fill_append
from liveupdate.probes.inside_digests import collect_digests
from liveupdate.probes.liveness import scan_disk
from liveupdate.run.devices import DeviceHop
from liveupdate.run.digests import OutsideDigests, store_digests
from liveupdate.run.observers.costs import record_costs, record_handed_over
from liveupdate.run.observers.guests import GuestObservers
from liveupdate.run.observers.host_queries import (
    ask_facts,
    read_over_ssh,
    record_vmm,
    verify_pattern,
)
from liveupdate.run.observers.iommu import IommuObserver
from liveupdate.run.testbed import GuestHandle, Testbed, disk_of
from liveupdate.run.timeline import find_moments, marks, phases
from liveupdate.transport.agent_link import AgentEvent
from liveupdate.transport.console import ConsoleLine

#: an agent that is alive answers a ping at once, even under TCG
_PING_S = 5.0
#: how soon a refused kexec is noticed
_SLOT_S = 0.5


class FreezeRefused(LiveUpdateError):
    """The freeze failed, and the agent says that the guests go on, on the outgoing kernel."""


class HopRun:
    """One hop under way. :meth:`run` walks it; :meth:`store` may be called whatever happened."""

    def __init__(self, bed: Testbed, hop: Hop, watchers: GuestObservers, steps: Steps) -> None:
        self._bed = bed
        self._hop = hop
        self._n = hop.number
        self._guest_observers = watchers
        self._steps = steps
        self._agent = bed.host.agent
        self._mark = self._agent.mark()
        self._moments: dict[tuple[str, str], int] = {}
        self._digests = OutsideDigests(bed, steps)
        self._iommu_observer = IommuObserver(bed, hop.number, steps)
        self._devices = DeviceHop(bed, hop.number, watchers.senders, steps)
        fault = bed.plan.fault
        self._fault: Fault | None = None
        if fault is not None and hop.number == 1:
            self._fault = FAULTS[fault.name]

    # --- the walk

    def run(self) -> None:
        """Go through the whole hop.

        :raises FreezeRefused: nothing was lost; the guests run on the outgoing kernel.
        :raises LiveUpdateError: it could not be finished.
        """
        with self._steps.step("observe-before", hop=self._n):
            self._record_before()
            time.sleep(self._bed.plan.observe.before_s)
        with self._steps.step("brownout", hop=self._n):
            self._prepare()
        with self._steps.step("blackout", hop=self._n):
            self._jump()
            self._follow()
        with self._steps.step("observe-after", hop=self._n):
            self._strike(Moment.RESUMED)
            self._observe_after()
        with self._steps.step("finish", hop=self._n):
            self._record_after()

    def store(self) -> None:
        """Store what is there of this hop; never raises for evidence that is not."""
        record = self._bed.record
        self._collect_moments()
        self._devices.store()
        self._guest_observers.store(self._n)
        self._iommu_observer.store()
        store_digests(record, self._n, self._digests.finish())
        store_digests(record, self._n, collect_digests(self._agent.events(self._mark)))
        names = tuple(guest.spec.name for guest in self._bed.guests)
        record.add(slots.PHASES, phases(self._n, self._moments, names), self._n)
        record.add(slots.MARKS, marks(self._moments, names), self._n)

    # --- brownout

    def _record_before(self) -> None:
        bed = self._bed
        facts = ask_facts(bed)
        bed.record.put(slots.KERNEL_BEFORE, facts, self._n)
        self._tsc_khz = facts.tsc_khz
        for guest in self._payload_guests():
            journal = self._scan(guest)
            if journal is not None:
                bed.record.put(slots.JOURNAL_BEFORE, journal, self._n, guest.spec.name)
        self._devices.begin()

    def _prepare(self) -> None:
        bed, timeouts = self._bed, self._bed.plan.timeouts
        self._note("prepare")
        self._strike(Moment.PREPARE)
        bed.call("prepare", timeout_s=timeouts.prepare_s)
        self._note("prepared")
        record_costs(bed, self._n, "before", self._steps)
        record_handed_over(bed, self._n, self._steps)
        for guest in bed.guests:
            guest.pfns = bed.read_pfns(guest)
            frames = PageFrames.of(guest.pfns)
            bed.record.put(slots.PFNS_BEFORE, frames, self._n, guest.spec.name)
            self._digests.select(guest)
        self._note("load")
        bed.call(
            "load_kernel",
            {
                "path": self._place_kernel(),
                "append": fill_append(self._hop.append, self._tsc_khz),
                "loader": self._hop.loader,
            },
            timeout_s=timeouts.prepare_s,
        )
        self._note("loaded-kernel")
        self._iommu_observer.begin()
        self._strike(Moment.BROWNOUT)

    # --- blackout

    def _jump(self) -> None:
        bed, timeouts = self._bed, self._bed.plan.timeouts
        boots = len(bed.host.console.boots)
        self._check_agent()
        self._mark = self._agent.mark()
        if not self._strike(Moment.JUMP):
            self._note("jump")
            bed.call("jump", timeout_s=timeouts.jump_s)
        deadline = Deadline.after(timeouts.jump_s, "the outgoing kernel to freeze and jump")
        for guest in bed.guests:
            self._wait("paused", deadline, guest)
            self._digests.begin(guest.spec.name, "freeze")
        self._wait("jumping", deadline)
        # The line looks alive until a keepalive is missed; its other end is gone with the kernel.
        bed.close_ssh()
        # The freeze pass reads what nobody writes any more; it must be over before a fault may.
        self._digests.wait()
        self._strike(Moment.BLACKOUT)
        line = self._wait_boot(boots, deadline)
        self._moments["first-line", ""] = line.at_ns
        self._strike(Moment.INCOMING)

    def _follow(self) -> None:
        bed, timeouts = self._bed, self._bed.plan.timeouts
        for guest in bed.guests:
            self._digests.begin(guest.spec.name, "boot")
        hello = self._wait(
            "hello", Deadline.after(timeouts.incoming_s, "the incoming kernel's agent")
        )
        bed.agent_pid = _integer(hello, "pid")
        # What the outgoing kernel's tmpfs held is gone with it, the nonce included.
        bed.call("set_nonce", {"nonce": bed.nonce})
        if hello.data.get("recovered") is not True:
            self._steps.note("nothing-recovered", hop=self._n)
            self._record_nothing(hello)
            return
        deadline = Deadline.after(timeouts.restore_s, "the incoming agent to restore the guests")
        restored = self._wait("restored", deadline)
        bed.record.add(slots.SESSIONS, _sessions(restored), self._n)
        for event in self._agent.events(self._mark):
            if event.name == "restore-failed":
                bed.record.add_incident(
                    Incident(
                        kind="restore-failed",
                        hop=self._n,
                        guest=event.guest,
                        text=str(event.data.get("message", "")),
                    )
                )

    def _record_nothing(self, hello: AgentEvent) -> None:
        """Record why the incoming agent took nothing over, as far as it says so."""
        said = _sessions(hello) or (
            SessionFacts(name=AGENT_SESSION, error="nothing was left", tokens=0, retrieve_ns=0),
        )
        self._bed.record.add(slots.SESSIONS, said, self._n)

    # --- after

    def _observe_after(self) -> None:
        window = Deadline.after(self._bed.plan.observe.after_s, "the observation window")
        self._devices.resumed()
        self._collect_moments()
        for guest in self._payload_guests():
            resumed = self._moments.get(("resumed", guest.spec.name))
            if resumed is None:
                continue
            with contextlib.suppress(DeadlineExceeded):
                # A guest that never ticks again is found by the judge in the trace.
                self._moments["ticked", guest.spec.name] = wait_until(
                    _first_tick(self._guest_observers, guest, resumed), window
                )
        read_over_ssh(self._bed, self._n)
        if not window.expired:
            time.sleep(window.remaining_s)

    def _record_after(self) -> None:
        bed = self._bed
        machine = bed.machine
        if machine is not None and (lost := machine.qmp.lost) is not None:
            # Whether the machine was reset is only known through the monitor.
            bed.record.add_incident(Incident(kind="lost-qmp", hop=self._n, text=lost))
        self._iommu_observer.end()
        bed.record.put(slots.KERNEL_AFTER, ask_facts(bed), self._n)
        record_costs(bed, self._n, "after", self._steps)
        self._devices.end()
        status = bed.call("guest_status")
        for guest in bed.guests:
            name = guest.spec.name
            record_vmm(bed, self._n, name, status.get(name))
            if ("resumed", name) not in self._moments:
                continue
            with contextlib.suppress(RemoteError):
                guest.pfns = bed.read_pfns(guest)
                bed.record.put(slots.PFNS_AFTER, PageFrames.of(guest.pfns), self._n, name)
        for guest in self._payload_guests():
            verify_pattern(bed, self._n, guest, self._steps)
            journal = self._scan(guest)
            if journal is not None:
                bed.record.put(slots.JOURNAL_AFTER, journal, self._n, guest.spec.name)
        with contextlib.suppress(RemoteError):
            # Nothing was recovered: there is no session to finish, which the evidence says already.
            bed.call("finish")

    # --- small things

    def _wait_boot(self, boots: int, deadline: Deadline) -> ConsoleLine:
        """Wait for the incoming kernel, or for word that the outgoing one refused to leave.

        :raises FreezeRefused: reboot(2) came back.
        """
        while True:
            slot = Deadline.after(min(_SLOT_S, deadline.remaining_s), deadline.what)
            try:
                return self._bed.host.console.wait_boot(boots, slot)
            except DeadlineExceeded as error:
                for event in self._agent.events(self._mark):
                    _raise_refusal(event)
                if deadline.expired:
                    raise deadline.exceeded(error.last) from error

    def _check_agent(self) -> None:
        """Make sure that somebody is there to jump: the holder of the sessions must be alive.

        :raises LostMachine: the agent does not answer.
        """
        try:
            self._bed.call("ping", timeout_s=_PING_S)
        except DeadlineExceeded as error:
            raise LostMachine(
                f"the agent is gone before the jump: {error}",
                how="no-answer",
                hint="the guests were not frozen; its sessions are closed with it",
            ) from error

    def _place_kernel(self) -> str:
        """Return the path of the incoming kernel on the host, which gets it now if it has not."""
        return self._bed.host.place_kernel(self._n, Path(self._hop.incoming.path))

    def _payload_guests(self) -> list[GuestHandle]:
        return [guest for guest in self._bed.guests if guest.spec.kind.payload]

    def _note(self, moment: str) -> None:
        self._moments[moment, ""] = time.monotonic_ns()

    def _scan(self, guest: GuestHandle) -> JournalFacts | None:
        assert guest.ready is not None
        if self._bed.machine is None:
            return None
        try:
            return scan_disk(disk_of(self._bed.machine, guest), boot=guest.ready.boot)
        except (OSError, JournalError) as error:
            self._steps.note("journal-unreadable", guest=guest.spec.name, error=str(error))
            return None

    def _strike(self, moment: Moment) -> bool:
        """Carry out the fault if this is its moment; return whether it was."""
        fault = self._fault
        if fault is None or fault.at is not moment or fault.strike is None:
            return False
        self._steps.note("fault", fault=fault.name)
        self._bed.record.add_incident(Incident(kind="fault", hop=self._n, text=fault.name))
        fault.strike(self._bed)
        return True

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

    def _collect_moments(self) -> None:
        found = find_moments(self._agent.events(self._mark))
        self._moments = {**found, **self._moments}


def _raise_refusal(event: AgentEvent) -> None:
    if event.name == "freeze-failed":
        raise FreezeRefused(str(event.data.get("message", "the freeze failed")))


def _first_tick(
    watchers: GuestObservers, guest: GuestHandle, after_ns: int
) -> Callable[[], int | None]:
    return lambda: watchers.latest_tick_ns(guest.spec.name, after_ns)


def _integer(event: AgentEvent, key: str) -> int:
    value = event.data.get(key)
    return value if isinstance(value, int) else 0


def _sessions(event: AgentEvent) -> tuple[SessionFacts, ...]:
    """The sessions as the incoming agent found them.

    :raises codec.CodecError: it is not what the protocol says.
    """
    return codec.decode(tuple[SessionFacts, ...], event.data.get("sessions", []), "sessions")
