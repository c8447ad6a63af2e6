# SPDX-License-Identifier: Apache-2.0
"""What a check is: a row at the end of the file that judges it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from liveupdate.judging.context import Context, Finding
from liveupdate.model.guest_kinds import GuestKind
from liveupdate.model.mechanism import Requirements
from liveupdate.model.scenario import Scenario
from liveupdate.model.targets import Capability, TargetKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for, before anything is started; decides which checks cannot be answered."""

    scenario: Scenario
    mechanism: Requirements
    target: TargetKind

    def no_guest(self, has: Callable[[GuestKind], object]) -> bool:
        """Return whether no guest is of a kind that ``has`` something."""
        return not any(has(guest.kind) for guest in self.scenario.guests)


def unless_any(has: Callable[[GuestKind], object], reason: str) -> Callable[[Asked], str | None]:
    """Return a reason to skip that holds when no guest is of a kind that ``has`` something."""
    return lambda asked: reason if asked.no_guest(has) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One check."""

    #: stable; the part before the dot is its family
    id: str
    judge: Callable[[Context], Iterable[Finding]]
    #: the capability of the target without which it is SKIP
    needs: Capability | None = None
    #: why nothing of what is asked for can answer it; None: something can
    skip: Callable[[Asked], str | None] = lambda asked: None
    #: it says which guests are dead, which the others rely on
    first: bool = False

    def why_skipped(self, asked: Asked) -> str | None:
        """Return the reason for a SKIP that is known beforehand, or None."""
        if self.needs is not None and self.needs not in asked.target.capabilities:
            return f"target '{asked.target.name}': {asked.target.lacks[self.needs]}"
        return self.skip(asked)
