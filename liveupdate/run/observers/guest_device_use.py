# SPDX-License-Identifier: Apache-2.0
"""What a guest does with devices of its own, seen from outside over one hop. Facts only.

Each use moves data by DMA: an echo that is answered through the network card, a record of the
journal that the payload keeps on the NVMe disk. Before the guest is sent to sleep and after it is
awake it has to be seen; in between there is none to be seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import ExitStack

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded
from liveupdate.core.steps import Steps
from liveupdate.model.device_models import FED_KINDS
from liveupdate.model.guest_device_use import GuestUse, JournalFacts
from liveupdate.model.scenario import DeviceSpec
from liveupdate.probes.liveness import EchoWatcher, JournalWatcher
from liveupdate.run.observers.host_queries import scan_journal
from liveupdate.run.testbed import WIRE_MAC, Testbed
from liveupdate.target.qemu.argv import device_mac

#: a network card has to find its link first, which takes seconds under TCG
_FIRST_USE_S = 20.0
#: this many are enough: the wire is not there to be filled
_ENOUGH = 5
_PAUSE_S = 0.05
_ECHO_INTERVAL_S = 0.1


class GuestUseWatch:
    """One device over one hop: :meth:`begin`, :meth:`resumed`, :meth:`end`; and :meth:`close`."""

    def __init__(self, bed: Testbed, spec: DeviceSpec, guest: str, steps: Steps) -> None:
        """:param guest: whose device it is."""
        self._bed = bed
        self._name = spec.name
        self._guest = guest
        self._steps = steps
        self._mark = bed.host.agent.mark()
        self._is_card = spec.kind in FED_KINDS
        #: host times at which uses were seen
        self._times: set[int] = set()
        self._stack = ExitStack()
        self._echoes: EchoWatcher | None = None
        self._journal: JournalWatcher | None = None
        self._before: JournalFacts | None = None
        self._after: JournalFacts | None = None

    def begin(self) -> None:
        """Wait until the device is used. After that a card's link is silent; a journal is
        watched all the time.
        """
        self._watch()
        self._await(lambda: len(self._times))
        if self._is_card:
            self.close()
        else:
            self._before = self._scan()

    def resumed(self) -> None:
        """Watch again, now that the guest is awake."""
        self._watch()

    def end(self) -> None:
        """Wait until it was used again, within the time allowed."""
        self._await(lambda: self.facts().after)
        self.close()
        if not self._is_card:
            self._after = self._scan()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._stack.close()
        self._collect()
        self._echoes = self._journal = None

    def facts(self) -> GuestUse:
        """Return what was seen so far."""
        moments = {
            event.name: event.at_ns
            for event in self._bed.host.agent.events(self._mark)
            if event.guest == self._guest and event.name in ("asleep", "loaded", "awake")
        }
        asleep_ns, loaded_ns = moments.get("asleep"), moments.get("loaded")
        before = [at for at in self._times if asleep_ns is None or at < asleep_ns]
        # a VMM that has loaded its state and no more has not let the guest do anything
        after = [at for at in self._times if loaded_ns is not None and at > loaded_ns]
        return GuestUse(
            guest=self._guest,
            before=len(before),
            asleep_ns=asleep_ns,
            awake_ns=moments.get("awake"),
            first_ns=min(after, default=None),
            after=len(after),
            journal_before=self._before,
            journal_after=self._after,
        )

    # --- inside

    def _watch(self) -> None:
        if self._echoes is not None or self._journal is not None:
            return
        machine = self._bed.own_machine
        if self._is_card:
            number = [each.name for each in self._bed.plan.devices].index(self._name)
            self._echoes = EchoWatcher(
                machine.feeds[self._name],
                {self._guest: device_mac(number)},
                {},
                WIRE_MAC,
                _ECHO_INTERVAL_S,
            )
            self._stack.enter_context(self._echoes.sender)
            self._stack.enter_context(self._echoes.receiver)
        else:
            path, interval_s = (
                machine.namespaces[self._name],
                self._bed.plan.observe.echo_interval_s,
            )
            self._journal = JournalWatcher(self._name, path, interval_s)
            self._stack.enter_context(self._journal.sampler)

    def _collect(self) -> None:
        """Take the times of what was seen since the last look."""
        if self._echoes is not None:
            echoes = self._echoes.take(self._guest)
            self._times.update(each.received_ns for each in echoes if each.received_ns is not None)
        if self._journal is not None:
            self._times.update(each.host_ns for each in self._journal.take())

    def _await(self, count: Callable[[], int]) -> None:
        def is_enough() -> bool:
            self._collect()
            return count() >= _ENOUGH

        with contextlib.suppress(DeadlineExceeded):
            # What was not seen is missing, and the judge says what follows from that.
            deadline = Deadline.after(_FIRST_USE_S, f"guest '{self._guest}' to use '{self._name}'")
            wait_until(is_enough, deadline, interval_s=_PAUSE_S)

    def _scan(self) -> JournalFacts | None:
        ready = next(each.ready for each in self._bed.guests if each.spec.name == self._guest)
        path = self._bed.own_machine.namespaces[self._name]
        return scan_journal(path, ready, self._steps, device=self._name)
