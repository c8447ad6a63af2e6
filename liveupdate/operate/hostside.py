# SPDX-License-Identifier: Apache-2.0
"""What each step of an update does to the host, and what it asks there.

Every method may be called again after it was cut off anywhere: it finds out what is done already.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import (
    DeadlineExceeded,
    EvidenceError,
    LiveUpdateError,
    LostMachine,
    OutcomeUnknown,
    PlanError,
    RemoteError,
)
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir
from liveupdate.formats import payload
from liveupdate.model import codec, slots
from liveupdate.model.evidence import Incident, PageFrames, SessionFacts
from liveupdate.model.plan import Hop, Plan
from liveupdate.operate import host_record, preflight
from liveupdate.operate.journal import ClockPair, HostView, State, status_view
from liveupdate.operate.preflight import Local
from liveupdate.operate.survey import read_survey
from liveupdate.planning.planner import fill_append
from liveupdate.probes.inside_digests import collect_digests
from liveupdate.run.digests import store_digests
from liveupdate.run.observers.host_queries import (
    ask_facts,
    read_over_ssh,
    record_vmm,
    verify_pattern,
)
from liveupdate.run.observers.ticks import GuestStopped, see_ticks
from liveupdate.run.provenance import describe
from liveupdate.run.testbed import GuestHandle, Testbed
from liveupdate.run.timeline import find_moments, marks, phases
from liveupdate.target.base import Host
from liveupdate.target.ssh.host import NEXT_KERNEL

_ENTER_S = 30.0
_SHORT_S = 20.0
_READY_S = 30.0
_LOG_S = 120.0
_TICK_S = 10.0
#: so many ticks are a guest whose timers run
_TICKS_SEEN = 5
#: asking for one goes over the network
_LOOK_S = 0.05
_RECORD_LINES_MAX = 2_000_000


class Unreachable(LiveUpdateError):
    """The host cannot be asked now."""


class GuestNotAlive(LiveUpdateError):
    """A guest does not show that it lives, before anything was done to it."""


class Held(Host, Protocol):
    """Of :class:`liveupdate.target.ssh.held.HeldHost`, what is used here."""

    @property
    def has_console(self) -> bool: ...

    @property
    def trouble(self) -> str: ...

    def reconnect(self) -> None: ...

    def wait_line(self, deadline: Deadline) -> None: ...

    def reset(self, deadline: Deadline) -> None: ...

    def push_kernel(self, path: Path) -> str: ...


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
    _offsets: dict[str, int] = field(default_factory=dict)

    # --- connection

    @property
    def is_entered(self) -> bool:
        return self._host is not None

    @property
    def trouble(self) -> str:
        return self._host.trouble if self._host is not None else ""

    @property
    def bed(self) -> Testbed:
        if self._bed is None:
            raise Unreachable(f"host '{self.name}' is not connected")
        return self._bed

    @property
    def _hop(self) -> Hop:
        return self.plan.hops[0]

    def enter(self) -> None:
        """Connect, which takes the host for this update.

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
        """Disconnect; the host stays taken."""
        host, self._host = self._host, None
        bed, self._bed = self._bed, None
        if bed is not None:
            bed.close_ssh()
        if host is not None:
            for problem in host.shutdown():
                self.steps.note("cleanup", problem=problem)

    def reconnect(self) -> None:
        """Make new lines: nobody tells us that the old ones are dead."""
        if self._host is not None:
            self._host.reconnect()
        if self._bed is not None:
            self._bed.close_ssh()

    def power_reset(self) -> None:
        host = self._host or self.make_host()
        host.reset(Deadline.after(60.0, "the power command"))

    def wait_line(self, timeout_s: float) -> None:
        """Wait until the agent can be asked; not part of the time that its answer takes."""
        if self._host is not None:
            self._host.wait_line(Deadline.after(timeout_s, "the line to the agent"))

    def status(self, timeout_s: float) -> Mapping[str, object]:
        return self.bed.call("update_status", timeout_s=timeout_s)

    # --- forward

    def lock(self, view: HostView) -> Mapping[str, object]:
        """Note which boot of the host this update begins in; connecting has taken it."""
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
        """Ask again, with nobody else at work.

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
        self.record.put(slots.KERNEL_BEFORE, ask_facts(self.bed), self._hop.number)
        self.record.put(
            slots.PROVENANCE, describe(self.bed, argv=self.argv, accel_reason="a host of yours")
        )

    def copy_kernel(self) -> Mapping[str, object]:
        """Copy the image; what arrived is what was planned.

        :raises PlanError: it is not, or the image changed here.
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

    def observe_before(self) -> Mapping[str, object]:
        """Have all guests watched, and see each of them alive.

        :raises GuestNotAlive: one is not.
        """
        self._watch()
        for guest in self._payload_guests():
            self._see_ticks(guest)
        time.sleep(self.plan.observe.before_s)
        return {"tick_offsets": dict(self._offsets)}

    def _watch(self, *, dead_too: bool = False) -> None:
        """:param dead_too: leave out whoever does not answer: it is judged by what is missing."""
        self._offsets = {}
        for guest in self._payload_guests():
            try:
                self._greet(guest)
            except GuestNotAlive:
                if not dead_too:
                    raise
                continue
            self._offsets[guest.spec.name] = guest.tick_offset()
        self.bed.call("update_watch", {"guests": self._offsets})

    def _greet(self, guest: GuestHandle) -> None:
        """Have the payload say where its pages lie."""
        try:
            mark = self.bed.command(guest, payload.HELLO)
            deadline = Deadline.after(_READY_S, f"guest '{guest.spec.name}' to answer")
            line = self.bed.wait_payload(guest, payload.Ready, deadline, since=mark)
        except (DeadlineExceeded, EvidenceError, LostMachine, RemoteError) as error:
            self.status(_SHORT_S)  # a line that is gone is no guest that is dead
            raise GuestNotAlive(f"guest '{guest.spec.name}' does not answer: {error}") from error
        assert isinstance(line, payload.Ready)
        guest.ready = line

    def _see_ticks(self, guest: GuestHandle) -> None:
        try:
            see_ticks(self.bed, guest, _TICKS_SEEN, _TICK_S, interval_s=_LOOK_S)
        except GuestStopped as error:
            self.status(_SHORT_S)
            raise GuestNotAlive(
                f"guest '{guest.spec.name}' does not tick, at tick {error.seq}"
            ) from error

    def prepare(self, view: HostView) -> Mapping[str, object]:
        """Preserve the guests' memory, and note where it lies."""
        if view.handover != "prepared":
            self.bed.call(
                "prepare",
                {"digest": self.plan.observe.memory},
                timeout_s=self.plan.timeouts.prepare_s,
            )
        for guest in self.bed.guests:
            guest.pfns = self.bed.read_pfns(guest)
            frames = PageFrames.of(guest.pfns)
            self.record.put(slots.PFNS_BEFORE, frames, self._hop.number, guest.spec.name)
        return {}

    def load_kernel(self, tsc_khz: object) -> Mapping[str, object]:
        append = fill_append(self._hop.append, tsc_khz if isinstance(tsc_khz, int) else None)
        self.bed.call(
            "load_kernel",
            {
                "path": NEXT_KERNEL,
                "append": append,
                "loader": self._hop.loader,
                "sha256": self._hop.incoming.sha256,
            },
            timeout_s=self.plan.timeouts.prepare_s,
        )
        return {"append": append}

    def jump(self) -> Mapping[str, object]:
        """Ask the host to jump; it answers before it does anything."""
        self.bed.call("jump", timeout_s=self.plan.timeouts.jump_s)
        # The line looks alive until a keepalive is missed; its other end is gone with the kernel.
        self.bed.close_ssh()
        return {}

    def observe_after(self) -> Mapping[str, object]:
        time.sleep(self.plan.observe.after_s)
        return {}

    def finish(self) -> Mapping[str, object]:
        if status_view(self.status(_SHORT_S)).handover == "restored":
            self.bed.call("finish")
        return {}

    # --- back

    def abandon(self, view: HostView) -> Mapping[str, object]:
        if view.handover in ("prepared", "failed"):
            self.bed.call("abandon")
        return {}

    def unload(self) -> Mapping[str, object]:
        self.bed.call("unload_kernel")
        return {}

    def observe_back(self) -> Mapping[str, object]:
        """Watch the guests where they are."""
        self._watch(dead_too=True)
        time.sleep(self.plan.observe.before_s + self.plan.observe.after_s)
        return {}

    # --- evidence

    def collect(self, step: str, state: State) -> Mapping[str, object]:
        """Fetch everything, and store it as the evidence of this hop."""
        hop = self._hop.number
        if step == "collect-lost":
            return self._collect_lost(state)
        seen = self._fetch(state)
        self.record.begin_anew(hop)
        self._store_events(seen)
        self._store_watch(seen)
        if step == "collect-back":
            if "preflight" not in state.done:
                self._put_origin()
            failed = seen.first("freeze-failed")
            if failed is not None:
                text = str(failed.data.get("message", ""))
                self._incident("freeze-refused", text)
            self.record.set_rolled_back()
        else:
            self._ask_incoming(seen)
        status = self.bed.call("guest_status")
        for guest in self.bed.guests:
            record_vmm(self.bed, hop, guest.spec.name, status.get(guest.spec.name))
        for guest in self._payload_guests():
            with contextlib.suppress(GuestNotAlive):  # the pattern it does not verify says it, too
                self._greet(guest)
            verify_pattern(self.bed, hop, guest, self.steps)
        return {"lost_lines": seen.lost}

    def _fetch(self, state: State) -> host_record.HostRecord:
        """Fetch the record."""
        lines: list[str] = []
        start = 0
        while len(lines) < _RECORD_LINES_MAX:
            answer = self.bed.call("update_log", {"from": start}, timeout_s=_LOG_S)
            piece, following = answer.get("lines"), answer.get("next")
            if not isinstance(piece, list) or not isinstance(following, int):
                raise LostMachine("the agent's record is none of our protocol", how="garbled")
            lines += map(str, piece)
            if answer.get("last") is True or following <= start:
                break
            start = following
        self.record.put_host_record(lines)
        now = status_view(self.status(_SHORT_S)).boot_id
        offsets = {}
        for which, boot_id in (
            (host_record.BEFORE, state.host_boot_id or now),
            (host_record.AFTER, now),
        ):
            pair = state.clocks.get(boot_id)
            if pair is not None:
                offsets[which] = pair.offset_ns + _since_our_reboot(pair)
        return host_record.read_record(lines, offsets)

    def _store_events(self, seen: host_record.HostRecord) -> None:
        hop = self._hop.number
        moments = find_moments(seen.events)
        names = tuple(guest.name for guest in self.plan.guests)
        self.record.add(slots.PHASES, phases(hop, moments, names), hop)
        self.record.add(slots.MARKS, marks(moments, names), hop)
        store_digests(self.record, hop, collect_digests(seen.events))

    def _store_watch(self, seen: host_record.HostRecord) -> None:
        hop = self._hop.number
        for guest in self.plan.guests:
            self.record.add(slots.TICKS, seen.ticks.get(guest.name, ()), hop, guest.name)
            self.record.add(slots.PINGS, seen.pings.get(guest.name, ()), hop, guest.name)
            if seen.watched is not None:
                self.record.put(slots.WATCHED, seen.watched, hop, guest.name)

    def _ask_incoming(self, seen: host_record.HostRecord) -> None:
        """What the incoming kernel and its agent say of the handover."""
        hop, bed = self._hop.number, self.bed
        # waited for here, so that a network that is gone is not taken for evidence
        bed.ssh(Deadline.after(bed.plan.timeouts.incoming_s, "SSH to the incoming kernel"))
        bed.call("set_nonce", {"nonce": bed.nonce})
        read_over_ssh(bed, hop)
        self.record.put(slots.KERNEL_AFTER, ask_facts(bed), hop)
        sessions = codec.decode(
            tuple[SessionFacts, ...], self.status(_SHORT_S).get("sessions", []), "sessions"
        )
        self.record.add(slots.SESSIONS, sessions, hop)
        for event in seen.events:
            if event.name == "restore-failed":
                self._incident("restore-failed", str(event.data.get("message", "")), event.guest)
        for guest in bed.guests:
            with contextlib.suppress(RemoteError):
                guest.pfns = bed.read_pfns(guest)
                frames = PageFrames.of(guest.pfns)
                self.record.put(slots.PFNS_AFTER, frames, hop, guest.spec.name)

    def _collect_lost(self, state: State) -> Mapping[str, object]:
        """The host is in a boot that knows nothing of its guests."""
        hop = self._hop.number
        self.record.begin_anew(hop)
        self.record.put(slots.KERNEL_AFTER, ask_facts(self.bed), hop)
        panic = None
        if self._host is not None and self._host.has_console:
            panic = self._host.console.find_crash("panic")
        if panic is not None:
            self._incident("panic", panic.text)
        else:
            self._incident("reset", state.why)
        return {}

    def _incident(self, kind: str, text: str, guest: str = "") -> None:
        self.record.add_incident(Incident(kind=kind, hop=self._hop.number, text=text, guest=guest))

    # --- end

    def release(self, first_boot: str) -> Mapping[str, object]:
        """Give the host back; on the outgoing kernel the copied image goes, too."""
        now = status_view(self.status(_SHORT_S))
        if now.boot_id == (first_boot or now.boot_id):
            deadline = Deadline.after(_SHORT_S, "the copied kernel to be removed")
            with contextlib.suppress(OutcomeUnknown):
                self.bed.ssh(deadline).run(("rm", "-f", NEXT_KERNEL), deadline)
        if now.update:
            self.bed.call("update_end")
        return {}

    def _payload_guests(self) -> list[GuestHandle]:
        return [guest for guest in self.bed.guests if guest.spec.kind.payload]


def control_boot_id() -> str:
    """Boot of this machine: its monotonic clock means nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _since_our_reboot(pair: ClockPair) -> int:
    """What to add to times of our monotonic clock as it was when ``pair`` was noted."""
    if pair.control_boot_id == control_boot_id():
        return 0
    return pair.real_ns - (time.time_ns() - time.monotonic_ns())
