# SPDX-License-Identifier: Apache-2.0
"""One hop: what is done to a host and asked of it, move by move (:mod:`liveupdate.run.moves`).

Two drivers make these moves. A run makes them in one go and sees what follows as it happens
(:mod:`liveupdate.run.live`); an operator's update writes each down before it makes it, may be cut
off anywhere, and reads from the host's record afterwards what happened
(:mod:`liveupdate.operate.held`). Nothing here decides whether it went well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from msgspec.structs import replace

from liveupdate.core.errors import RemoteError
from liveupdate.core.steps import Steps
from liveupdate.faults.base import Moment
from liveupdate.model import codec, slots
from liveupdate.model.evidence import Incident, PageDigests, PageFrames, SessionFacts
from liveupdate.model.plan import Hop
from liveupdate.model.vm_state import StateSeen
from liveupdate.planning.planner import fill_append
from liveupdate.probes.inside_digests import collect_digests
from liveupdate.probes.memory import DigestPass
from liveupdate.probes.state import collect_state
from liveupdate.probes.vcpu_state import collect_vcpus, find_errors
from liveupdate.run.observers.host_queries import ask_facts, record_vmm, verify_pattern
from liveupdate.run.strikes import Strikes
from liveupdate.run.testbed import GuestHandle, Testbed
from liveupdate.run.timeline import find_moments, marks, phases
from liveupdate.transport.agent_link import AgentEvent


class HopEngine:
    """The moves of one hop. Each may return facts for its driver to write down.

    A move may be made again after it was interrupted, by an engine that knows nothing of the first
    time; its driver asks the host before that.
    """

    #: kHz of the outgoing kernel's TSC, for the incoming one's command line; None: not handed over
    tsc_khz: int | None = None

    def __init__(self, bed: Testbed, hop: Hop, steps: Steps) -> None:
        self.bed = bed
        self.hop = hop
        self.n = hop.number
        self.steps = steps
        #: when things were seen from here; what the agent's events say comes to it in the end
        self.moments: dict[tuple[str, str], int] = {}
        self.fault = Strikes(bed, self.n, steps)

    def make(self, move: str) -> Mapping[str, object]:
        """Make one of :data:`~liveupdate.run.moves.MOVES`.

        :raises LiveUpdateError: it could not be made, or what became of it is not known.
        """
        made: Mapping[str, object] | None = getattr(self, move.replace("-", "_"))()
        return made or {}

    # --- the moves

    def observe_before(self) -> Mapping[str, object] | None:
        """Watch the guests for a while before the update."""
        self.watch()
        time.sleep(self.bed.plan.observe.before_s)
        return None

    def prepare(self) -> None:
        """Preserve the guests' memory, and store where it is."""
        self.note("prepare")
        self.fault.strike(Moment.PREPARE)
        self.preserve()
        self.note("prepared")
        self.see_preserved()
        for guest in self.bed.guests:
            self.put_pfns(guest, slots.PFNS_BEFORE)
            self.select(guest)

    def load_kernel(self) -> Mapping[str, object]:
        """Load the incoming kernel."""
        append = fill_append(self.hop.append, self.tsc_khz)
        self.note("load")
        self.fault.loaded = self.bed.call(
            "load_kernel",
            {
                "path": self.place_kernel(),
                "append": append,
                "loader": self.hop.loader,
                **self.load_args(),
            },
            timeout_s=self.bed.plan.timeouts.prepare_s,
        )
        self.note("loaded-kernel")
        self.see_loaded()
        self.fault.strike(Moment.BROWNOUT)
        return {"append": append}

    def jump(self) -> None:
        """Tell the host to jump; its agent answers before it does anything."""
        self.before_jump()
        if not self.fault.strike(Moment.JUMP):
            self.note("jump")
            self.bed.call("jump", timeout_s=self.bed.plan.timeouts.jump_s)
        self.see_jump()
        # The line looks alive until a keepalive is missed; its other end is gone with the kernel.
        self.bed.close_ssh()

    def incoming(self) -> Mapping[str, object] | None:
        """Wait until the incoming kernel's agent has brought the guests back, or reports that it
        cannot.
        """
        raise NotImplementedError

    def observe_after(self) -> None:
        """Watch the guests for a while on the incoming kernel."""
        time.sleep(self.bed.plan.observe.after_s)

    def collect(self) -> Mapping[str, object] | None:
        """Ask the host and its guests for their state; :meth:`see_kernel`, :meth:`see_guests`."""
        raise NotImplementedError

    def finish(self) -> None:
        """Return the sessions to the kernel."""
        with contextlib.suppress(RemoteError):
            # Nothing was recovered: there is no session to finish, which the evidence says already.
            self.bed.call("finish")

    # --- what drivers do in their own way

    def watch(self) -> None:
        """Start to watch the guests."""
        raise NotImplementedError

    def preserve(self) -> None:
        """Let the agent preserve the guests' memory."""
        self.bed.call("prepare", timeout_s=self.bed.plan.timeouts.prepare_s)

    def see_preserved(self) -> None:
        """Measure what was preserved."""

    def select(self, guest: GuestHandle) -> None:
        """Look up the pages of a guest's memory that will be read."""

    def place_kernel(self) -> str:
        """Make the incoming kernel available on the host and return its path there."""
        return self.bed.host.place_kernel(self.n, Path(self.hop.incoming.path))

    def load_args(self) -> Mapping[str, object]:
        """Return further arguments for loading the kernel."""
        return {}

    def see_loaded(self) -> None:
        """Start what must not start before the host is ready to jump."""

    def before_jump(self) -> None:
        """Check that the agent is alive."""

    def see_jump(self) -> None:
        """Watch the outgoing kernel freeze and leave."""

    def see_guest(self, guest: GuestHandle) -> None:
        """Ask a guest with the shipped payload more than :meth:`see_guests` does."""

    # --- what is asked, and stored

    def put_before(self) -> None:
        """Store the facts of the outgoing kernel."""
        facts = ask_facts(self.bed)
        self.bed.record.put(slots.KERNEL_BEFORE, facts, self.n)
        self.fault.before = facts
        self.tsc_khz = facts.tsc_khz

    def put_pfns(self, guest: GuestHandle, slot: slots.Document[PageFrames]) -> None:
        """Read where the guest's memory is, and store it."""
        guest.pfns = self.bed.read_pfns(guest)
        self.bed.record.put(slot, PageFrames.of(guest.pfns), self.n, guest.spec.name)

    def put_sessions(self, told: object) -> int:
        """Store the sessions as the incoming agent found them; return how many.

        :raises codec.CodecError: they do not follow the protocol.
        """
        sessions = codec.decode(tuple[SessionFacts, ...], told, "sessions")
        self.bed.record.add(slots.SESSIONS, sessions, self.n)
        return len(sessions)

    def put_failures(self, events: Iterable[AgentEvent]) -> None:
        """Note each guest that the incoming agent could not bring back."""
        for event in events:
            if event.name == "restore-failed":
                text = str(event.data.get("message", ""))
                self.incident("restore-failed", text, guest=event.guest)

    def see_kernel(self) -> None:
        """Store the facts of the incoming kernel."""
        facts = ask_facts(self.bed)
        self.bed.record.put(slots.KERNEL_AFTER, facts, self.n)
        self.fault.after = facts

    def see_guests(self, carried: Collection[str]) -> None:
        """Ask VMMs and payloads for their state.

        :param carried: guests whose memory the incoming kernel has.
        """
        status = self.bed.call("guest_status")
        for guest in self.bed.guests:
            name = guest.spec.name
            record_vmm(self.bed, self.n, name, status.get(name))
            if name in carried:
                with contextlib.suppress(RemoteError):
                    self.put_pfns(guest, slots.PFNS_AFTER)
        for guest in self.payload_guests():
            self.see_guest(guest)
            verify_pattern(self.bed, self.n, guest, self.steps)

    def put_events(
        self,
        events: Iterable[AgentEvent],
        outside: Iterable[DigestPass] = (),
        states: Mapping[str, Mapping[str, StateSeen]] = MappingProxyType({}),
    ) -> None:
        """Store what the agent's events say of the hop: its times, and digests from inside.

        :param outside: digests that were taken from outside.
        :param states: those of VM states, by guest and moment.
        """
        events, record = tuple(events), self.bed.record
        names = tuple(guest.spec.name for guest in self.bed.guests)
        for each in (*outside, *(each for each in collect_digests(events) if each.guest in names)):
            digests = PageDigests.of(each.digests, each.began_ns, each.ended_ns)
            record.put(slots.DIGESTS[each.moment], digests, self.n, each.guest)
        for guest in names:
            state = replace(collect_state(events, guest), **states.get(guest, {}))
            if state.saved is not None or state.read is not None:
                record.put(slots.STATE, state, self.n, guest)
            vcpus = next(each.spec.vcpus for each in self.bed.guests if each.spec.name == guest)
            record.add(slots.VCPUS, collect_vcpus(events, guest, vcpus), self.n, guest)
            for text in find_errors(events, guest):
                self.incident("harness", text, guest=guest)
        self.moments = {**find_moments(events), **self.moments}
        record.add(slots.PHASES, phases(self.n, self.moments, names), self.n)
        record.add(slots.MARKS, marks(self.moments, names), self.n)

    # --- small things

    def payload_guests(self) -> list[GuestHandle]:
        """Return the guests with the shipped payload."""
        return [guest for guest in self.bed.guests if guest.spec.kind.payload]

    def note(self, moment: str) -> None:
        """Note the time at which the host is asked something, or has answered."""
        self.moments[moment, ""] = time.monotonic_ns()

    def incident(self, kind: str, text: str, *, guest: str = "") -> None:
        """Store an incident of this hop."""
        self.bed.record.add_incident(Incident(kind=kind, hop=self.n, text=text, guest=guest))
