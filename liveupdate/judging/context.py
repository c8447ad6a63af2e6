# SPDX-License-Identifier: Apache-2.0
"""What every check shares: findings, and the reason why a piece of evidence is absent.

Absent evidence is ERROR. It is SKIP in one case only: a guest or a whole handover is already lost,
and another check says FAIL for it. Evidence that could not exist any more must not look like a
broken tool; :mod:`liveupdate.judging.judge` ensures that the FAIL is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from liveupdate.model.evidence import (
    DeviceTrace,
    Evidence,
    GuestMemory,
    GuestTrace,
    HopEvidence,
    Incident,
)
from liveupdate.model.mechanism import AGENT_SESSION, KHO, LUO
from liveupdate.model.plan import Hop, KernelImage, Plan
from liveupdate.model.scenario import GuestSpec
from liveupdate.model.slots import Slot
from liveupdate.model.verdict import Check, Outcome, reduce

#: the kernel under update violated a guarantee
KERNEL_KINDS = ("panic", "reset")
#: the control host could not see any more; nothing follows about the kernel
TROUBLE_KINDS = ("deadline", "exited", "lost-agent", "lost-ssh", "lost-qmp", "harness")
#: one guest did not survive
GUEST_KINDS = ("vmm-lost", "restore-failed")
#: how many findings a reason quotes before it counts the rest
_QUOTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's result for one hop or one guest in one hop."""

    status: Outcome
    reason: str
    observed: str = ""
    expected: str = ""
    evidence: tuple[str, ...] = ()


def passed(reason: str, observed: str = "", evidence: tuple[str, ...] = ()) -> Finding:
    """Make a PASS with its reason and the files it rests on."""
    return Finding(status=Outcome.PASS, reason=reason, observed=observed, evidence=evidence)


def failed(
    reason: str, *, observed: str = "", expected: str = "", evidence: tuple[str, ...] = ()
) -> Finding:
    """Make a FAIL; ``expected`` and ``observed`` go into the reports."""
    return Finding(
        status=Outcome.FAIL,
        reason=reason,
        observed=observed,
        expected=expected,
        evidence=evidence,
    )


def error_finding(reason: str, *, observed: str = "", evidence: tuple[str, ...] = ()) -> Finding:
    """Make an ERROR: the evidence does not allow a conclusion."""
    return Finding(status=Outcome.ERROR, reason=reason, observed=observed, evidence=evidence)


def skipped(reason: str) -> Finding:
    """Make a SKIP with its reason."""
    return Finding(status=Outcome.SKIP, reason=reason)


def to_check(check_id: str, findings: Sequence[Finding]) -> Check:
    """Reduce findings to one check whose reason quotes the worst ones. No finding at all is
    ERROR.
    """
    status = reduce(finding.status for finding in findings)
    worst = [finding for finding in findings if finding.status is status]
    reasons = list(dict.fromkeys(finding.reason for finding in worst if finding.reason))
    if not findings:
        reasons = ["no finding"]
    more = f"; and {len(reasons) - _QUOTED} more" if len(reasons) > _QUOTED else ""
    files = dict.fromkeys(path for finding in worst for path in finding.evidence)
    return Check(
        id=check_id,
        status=status,
        reason="; ".join(reasons[:_QUOTED]) + more,
        observed=next((finding.observed for finding in worst if finding.observed), ""),
        expected=next((finding.expected for finding in worst if finding.expected), ""),
        evidence=tuple(files),
    )


@dataclass(frozen=True, slots=True)
class Context:
    """Plan and evidence of one run, indexed; ``dead`` is filled by the liveness check."""

    plan: Plan
    evidence: Evidence
    #: (hop, guest) to the reason for which the guest is known to be dead from then on
    dead: dict[tuple[int, str], str] = field(default_factory=dict)

    def hop(self, number: int) -> HopEvidence | None:
        """Return the evidence of a hop; None: there is none."""
        return next((hop for hop in self.evidence.hops if hop.number == number), None)

    def guests(self) -> Iterator[GuestHop]:
        """Walk every planned guest in every planned hop."""
        for hop in self.plan.hops:
            for guest in self.plan.guests:
                where = f"hop {hop.number}, {guest.name}"
                yield GuestHop(where=where, context=self, hop=hop.number, guest=guest)

    def reached(self) -> Iterator[GuestHop]:
        """Walk the guests of each hop that was reached before the update was given up."""
        given_up = self.rolled_back_hop
        return (at for at in self.guests() if given_up is None or at.hop <= given_up)

    def outgoing(self, hop: Hop) -> KernelImage:
        """The kernel that ``hop`` is planned to leave."""
        before = [other for other in self.plan.hops if other.number < hop.number]
        return before[-1].incoming if before else self.plan.images.outgoing

    def memory(self, hop: int, guest: str) -> GuestMemory | None:
        """Return the memory evidence of a guest in a hop; None: there is none."""
        facts = self.hop(hop)
        return next((each for each in facts.memory if each.guest == guest), None) if facts else None

    def trace(self, hop: int, guest: str) -> GuestTrace | None:
        """Return what was observed of a guest in a hop; None: nothing."""
        facts = self.hop(hop)
        return next((each for each in facts.guests if each.guest == guest), None) if facts else None

    def device(self, hop: int, name: str) -> DeviceTrace | None:
        """Return what was observed of a device in a hop; None: nothing."""
        facts = self.hop(hop)
        return facts.devices.get(name) if facts else None

    def incidents(self, kinds: Iterable[str], hop: int) -> list[Incident]:
        """Incidents of these kinds in this hop."""
        return [
            incident
            for incident in self.evidence.incidents
            if incident.kind in kinds and incident.hop == hop
        ]

    @property
    def kernel_incident(self) -> Incident | None:
        """Return the first panic or reset after the update began; later incidents are its
        consequence.
        """
        return next(
            (
                incident
                for incident in sorted(self.evidence.incidents, key=lambda each: each.hop)
                if incident.kind in KERNEL_KINDS and incident.hop > 0
            ),
            None,
        )

    def troubles(self, until: int | None = None) -> list[Incident]:
        """Return the incidents of the control host, except those that a panic or reset explains.

        :param until: only up to this hop.
        """
        cause = self.kernel_incident
        return [
            incident
            for incident in self.evidence.incidents
            if (
                incident.kind in TROUBLE_KINDS
                or (incident.kind in KERNEL_KINDS and incident.hop == 0)
            )
            and (cause is None or incident.hop < cause.hop)
            and (until is None or incident.hop <= until)
        ]

    @property
    def rolled_back_hop(self) -> int | None:
        """The number of the hop that was rolled back with the guests alive; None: none was."""
        if not self.evidence.rolled_back:
            return None
        refused = [each.hop for each in self.evidence.incidents if each.kind == "freeze-refused"]
        seen = [hop.number for hop in self.evidence.hops]
        return max(refused or seen or [1])

    def rolled_back(self, hop: int) -> bool:
        """Whether ``hop`` is the one that was rolled back, or comes after it."""
        given_up = self.rolled_back_hop
        return given_up is not None and hop >= given_up

    def loss(self, hop: int, guest: str | None = None) -> str | None:
        """Return the known FAIL after which the handover (or ``guest``) in ``hop`` cannot be
        observed.
        """
        for number in range(1, hop + 1):
            reason = self._lost_in(number)
            if reason is None and guest is not None:
                reason = self._guest_lost_in(number, guest)
            if reason is not None:
                return reason
        return None

    def _lost_in(self, hop: int) -> str | None:
        for incident in self.incidents(KERNEL_KINDS, hop):
            return say_kernel_incident(incident)
        facts = self.hop(hop)
        if facts is None or facts.after is None:
            return None
        if KHO in self.plan.witnesses and not facts.after.kho_found:
            return f"hop {hop}: the incoming kernel found no handover data"
        if LUO in self.plan.witnesses and not facts.after.liveupdate:
            return f"hop {hop}: the incoming kernel has no /dev/liveupdate"
        for session in facts.sessions:
            if session.name == AGENT_SESSION and session.error is not None:
                return f"hop {hop}: nothing was taken over: {session.error}"
        return None

    def _guest_lost_in(self, hop: int, guest: str) -> str | None:
        for incident in self.incidents(GUEST_KINDS, hop):
            if incident.guest in ("", guest):
                return f"hop {hop}, {guest}: {incident.kind}: {incident.text}"
        facts = self.hop(hop)
        for session in facts.sessions if facts else ():
            if session.name == session_name(guest) and session.error is not None:
                return f"hop {hop}, {guest}: session not retrieved: {session.error}"
        return self.dead.get((hop, guest))

    def missing(
        self, what: str, hop: int, guest: str | None = None, paths: Iterable[str] = ()
    ) -> Finding:
        """Say why ``what`` is absent: its file is unreadable, it was lost with its guest, or it was
        never seen.

        :param paths: files of the run directory that would hold it.
        """
        where = f"hop {hop}" + (f", {guest}" if guest else "")
        for path in paths:
            why = self.evidence.unreadable.get(path)
            if why is not None:
                return error_finding(
                    f"{where}: {what}: {path} cannot be used: {why}", evidence=(path,)
                )
        loss = self.loss(hop, guest)
        if loss is not None:
            return skipped(f"{where}: {what} could not be seen any more ({loss})")
        troubles = self.troubles(until=hop)
        if troubles:
            return error_finding(
                f"{where}: no evidence of {what}, because {say_incident(troubles[0])}"
            )
        return error_finding(f"{where}: no evidence of {what}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run a finding is made, and the files of the run directory that it rests on."""

    where: str
    files: tuple[str, ...] = ()

    def passed(self, reason: str, observed: str = "") -> Finding:
        """Make a PASS of this place."""
        return passed(f"{self.where}: {reason}", observed, self.files)

    def failed(self, reason: str, observed: str = "", expected: str = "") -> Finding:
        """Make a FAIL of this place."""
        return failed(
            f"{self.where}: {reason}", observed=observed, expected=expected, evidence=self.files
        )

    def error(self, reason: str, observed: str = "") -> Finding:
        """Make an ERROR of this place."""
        return error_finding(f"{self.where}: {reason}", observed=observed, evidence=self.files)

    def skipped(self, reason: str) -> Finding:
        """Make a SKIP of this place."""
        return skipped(f"{self.where}: {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestHop(Place):
    """A guest in a hop."""

    context: Context
    hop: int
    guest: GuestSpec

    def on(self, *found: Slot[Any]) -> GuestHop:
        """Return the same place, with findings that rest on these slots of the guest."""
        return replace(self, files=tuple(slot.path(self.hop, self.guest.name) for slot in found))

    @property
    def trace(self) -> GuestTrace | None:
        """What was observed of the guest; None: nothing."""
        return self.context.trace(self.hop, self.guest.name)

    @property
    def paused_ns(self) -> int | None:
        """When the guest was paused; None: that is not known."""
        facts = self.context.hop(self.hop)
        return facts.paused_ns.get(self.guest.name) if facts else None

    @property
    def resumed_ns(self) -> int | None:
        """When the guest was resumed; None: that is not known."""
        facts = self.context.hop(self.hop)
        return facts.resumed_ns.get(self.guest.name) if facts else None

    @property
    def is_rolled_back(self) -> bool:
        """Whether its hop is the one that was rolled back, or comes after it."""
        return self.context.rolled_back(self.hop)

    @property
    def is_unreadable(self) -> bool:
        """Whether one of the files cannot be used."""
        return any(path in self.context.evidence.unreadable for path in self.files)

    def missing(self, what: str) -> Finding:
        """Say why ``what``, which the files would hold, is absent."""
        return self.context.missing(what, self.hop, self.guest.name, self.files)


def say_altered(paths: Sequence[str]) -> str:
    """Format what a FAIL adds when it rests on files that were altered after the run."""
    return f" (or evidence altered: {', '.join(paths)})" if paths else ""


def session_name(guest: str) -> str:
    """Return the name of the LUO session that carries ``guest``."""
    return f"lu.guest.{guest}"


def say_incident(incident: Incident) -> str:
    """Format an incident as kind, guest and text."""
    guest = f" ({incident.guest})" if incident.guest else ""
    return f"{incident.kind}{guest}: {incident.text}"


def say_kernel_incident(incident: Incident) -> str:
    """Format a panic or a reset with the hop in which it happened."""
    what = {
        "panic": "incoming kernel panicked",
        "reset": "the machine was reset instead of kexec'ed",
    }[incident.kind]
    return f"hop {incident.hop}: {what}: {incident.text}"
