# SPDX-License-Identifier: Apache-2.0
"""All watchers of all guests, started together; hands their harvest to the run directory."""

from __future__ import annotations

import functools
import threading
import time
from contextlib import ExitStack

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LiveUpdateError
from liveupdate.model import slots
from liveupdate.model.device_models import FED_KINDS
from liveupdate.model.evidence import AgentPing, Incident
from liveupdate.model.guest_kinds import Watch
from liveupdate.probes.base import Sampler
from liveupdate.probes.frames import FrameSender
from liveupdate.probes.liveness import EchoWatcher, JournalWatcher, TickWatcher
from liveupdate.run.devices import make_sender
from liveupdate.run.testbed import WIRE_MAC, GuestHandle, Testbed, field_of

#: a user's own image is asked for its clock this often
PING_INTERVAL_S = 0.25


class PingWatcher:
    """Asks a user's own guest for its clock through its QEMU guest agent."""

    def __init__(self, bed: Testbed, guest: GuestHandle) -> None:
        self._bed = bed
        self._guest = guest
        self._lock = threading.Lock()
        self._pings: list[AgentPing] = []
        self.sampler = Sampler(f"ping-{guest.spec.name}", PING_INTERVAL_S, self._sample)

    def _sample(self) -> None:
        asked_ns = time.monotonic_ns()
        try:
            answer = self._bed.host.agent.call(
                "qga_ping", {"guest": self._guest.spec.name}, Deadline.after(2.0, "qga_ping")
            )
            realtime = field_of(answer, "realtime_ns", int)
        except LiveUpdateError:
            # No answer is the fact; through the whole blackout there can be none.
            realtime = None
        with self._lock:
            self._pings.append(
                AgentPing(host_ns=time.monotonic_ns(), realtime_ns=realtime, asked_ns=asked_ns)
            )

    def take(self) -> tuple[AgentPing, ...]:
        """Return the answers since the last call."""
        with self._lock:
            pings, self._pings = self._pings, []
        return tuple(pings)


class GuestObservers:
    """Watches from enter to exit. A guest without the shipped payload is watched as far as
    possible.
    """

    def __init__(self, bed: Testbed) -> None:
        observe = bed.plan.observe
        self._bed = bed
        self._stack = ExitStack()
        self._ticks: dict[str, TickWatcher] = {}
        self._journals: dict[str, JournalWatcher] = {}
        self._pings: dict[str, PingWatcher] = {}
        #: they are told when to send by the hop
        self.senders = {
            spec.name: make_sender(bed, spec)
            for spec in bed.plan.devices
            if spec.kind in FED_KINDS and spec.guest is None
        }
        bed.senders.update(self.senders)
        machine = bed.machine
        for guest in bed.guests:
            name, kind = guest.spec.name, guest.spec.kind
            if Watch.TICKS in kind.watches:
                self._ticks[name] = TickWatcher(
                    name, functools.partial(bed.read_tick_page, guest), observe.tick_sample_s
                )
            if Watch.PINGS in kind.watches:
                self._pings[name] = PingWatcher(bed, guest)
            if kind.journal and machine is not None:
                self._journals[name] = JournalWatcher(
                    name, machine.disks[name], observe.echo_interval_s
                )
        self._echoes: EchoWatcher | None = None
        if machine is not None:
            macs = {each.spec.name: each.mac for each in bed.guests if each.spec.kind.payload}
            pairs = ((each.spec.name, each.spec.address) for each in bed.guests)
            addresses = {name: address for name, address in pairs if address is not None}
            interval_s = observe.echo_interval_s
            self._echoes = EchoWatcher(machine.wire, macs, addresses, WIRE_MAC, interval_s)

    def __enter__(self) -> GuestObservers:
        for sampler in self._samplers():
            self._stack.enter_context(sampler)
        for sender in self.senders.values():
            self._stack.enter_context(sender)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _samplers(self) -> list[Sampler]:
        samplers = [watcher.sampler for watcher in self._ticks.values()]
        samplers += [watcher.sampler for watcher in self._journals.values()]
        samplers += [watcher.sampler for watcher in self._pings.values()]
        if self._echoes is not None:
            samplers += [self._echoes.sender, self._echoes.receiver]
        return samplers

    def _store_echoes(self, echoes: EchoWatcher, hop: int) -> None:
        record = self._bed.record
        for name in echoes.guests:
            record.add(slots.ECHOES, echoes.take(name), hop, name)
            if name not in self._ticks and name not in self._pings:
                record.put(slots.WATCHED, echoes.sender.take_watched(), hop, name)

    def latest_tick_ns(self, guest: str, after_ns: int) -> int | None:
        """When the guest's first tick after ``after_ns`` was seen; None: not yet."""
        watcher = self._ticks.get(guest)
        return watcher.first_after(after_ns) if watcher else None

    def store(self, hop: int) -> None:
        """Store what was collected since the last call."""
        record = self._bed.record
        for name, ticks in self._ticks.items():
            record.add(slots.TICKS, ticks.take(), hop, name)
            record.put(slots.WATCHED, ticks.sampler.take_watched(), hop, name)
        for name, journals in self._journals.items():
            record.add(slots.JOURNAL_SEEN, journals.take(), hop, name)
        for name, pings in self._pings.items():
            record.add(slots.PINGS, pings.take(), hop, name)
            record.put(slots.WATCHED, pings.sampler.take_watched(), hop, name)
        if self._echoes is not None:
            self._store_echoes(self._echoes, hop)
        watchers: list[Sampler | FrameSender] = [*self._samplers(), *self.senders.values()]
        for watcher in watchers:
            if watcher.error is not None:
                record.add_incident(
                    Incident(
                        kind="harness", hop=hop, text=f"watcher '{watcher.name}': {watcher.error}"
                    )
                )
                watcher.error = None
