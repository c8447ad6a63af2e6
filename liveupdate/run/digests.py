# SPDX-License-Identifier: Apache-2.0
"""Digests of the guests' pages and VM states over one hop, taken from outside.

Those that an agent reports are of the same kind. What failed raises nothing here: it is noted, and
missing in the evidence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from liveupdate.core.steps import Steps
from liveupdate.model.vm_state import StateSeen
from liveupdate.probes.memory import DigestJob, DigestPass
from liveupdate.probes.state import read_places, see_state
from liveupdate.run.testbed import GuestHandle, Testbed
from liveupdate.transport.agent_link import AgentEvent
from liveupdate.transport.physmem import Page

#: a pass over a guest's pages that takes longer than this is given up
_PASS_S = 120.0


class OutsideDigests:
    """The passes over the memory of a machine that can be read from outside; none for any other."""

    def __init__(self, bed: Testbed, steps: Steps) -> None:
        self._bed = bed
        self._steps = steps
        self._pages: dict[str, list[Page]] = {}
        self._jobs: list[DigestJob] = []

    def select(self, guest: GuestHandle) -> None:
        """Look the guest's pages up, so that the blackout only has to read them."""
        if self._bed.plan.observe.memory and self._bed.machine is not None:
            self._pages[guest.spec.name] = self._bed.machine.ram.select_pages(guest.pfns)

    def begin(self, guest: str, moment: str) -> None:
        """Begin a pass in a thread, if the guest's pages are known."""
        if guest in self._pages:
            self._jobs.append(DigestJob(self._pages[guest], guest, moment))

    def wait(self) -> None:
        """Wait until no pass reads any more."""
        for job in self._jobs:
            job.join(_PASS_S)

    def finish(self) -> list[DigestPass]:
        """Wait, and return the passes that ended. Releases the host's memory."""
        jobs, self._jobs = self._jobs, []
        # they point into the mapping of the host's RAM, which is to be closed
        self._pages.clear()
        passes: list[DigestPass] = []
        for job in jobs:
            job.join(_PASS_S)
            if job.error is not None:
                self._steps.note("digest-failed", guest=job.guest, error=str(job.error))
            if job.result is not None:
                passes.append(job.result)
        return passes


class OutsideStates:
    """The VM states in the memory of a machine that can be read from outside.

    They are small: no thread is worth its start.
    """

    def __init__(self, bed: Testbed, steps: Steps) -> None:
        self._bed = bed
        self._steps = steps
        #: guest to moment, ``freeze`` or ``boot``
        self.seen: defaultdict[str, dict[str, StateSeen]] = defaultdict(dict)

    def find(self, events: Iterable[AgentEvent]) -> None:
        """Take from the agent's events where the states lie."""
        told = {event.guest: event for event in events if event.name == "preserved"}
        for guest in self._bed.guests:
            guest.state_places = ()
            event = told.get(guest.spec.name)
            if event is None or self._bed.machine is None:
                continue
            try:
                guest.state_places = read_places(event)
            except ValueError as error:
                self._steps.note("state-not-found", guest=guest.spec.name, error=str(error))

    def look(self, moment: str) -> None:
        """Digest each state whose place is known."""
        for guest in self._bed.guests:
            if not guest.state_places or self._bed.machine is None:
                continue
            name = guest.spec.name
            try:
                self.seen[name][moment] = see_state(self._bed.machine.ram, guest.state_places)
            except ValueError as error:
                self._steps.note("state-not-seen", guest=name, moment=moment, error=str(error))
