# SPDX-License-Identifier: Apache-2.0
"""The steps of an operator's update: made by processes that come and go, on a remote host.

Every one may be made again after it was cut off anywhere: it finds out what is done already.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

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
from liveupdate.formats import payload
from liveupdate.model import slots
from liveupdate.operate import host_record, preflight
from liveupdate.operate.hostside import HostSide
from liveupdate.operate.journal import ClockPair, HostView, State, status_view
from liveupdate.operate.survey import read_survey
from liveupdate.run.hop import HopEngine
from liveupdate.run.observers.host_queries import read_over_ssh
from liveupdate.run.observers.ticks import GuestStopped, see_ticks
from liveupdate.run.provenance import describe
from liveupdate.run.testbed import GuestHandle
from liveupdate.target.ssh.host import NEXT_KERNEL

_SHORT_S = 20.0
_READY_S = 30.0
_LOG_S = 120.0
_TICK_S = 10.0
#: so many ticks are a guest whose timers run
_TICKS_SEEN = 5
#: asking for one goes over the network
_LOOK_S = 0.05
#: an agent keeps up to 256 MiB
_RECORD_BYTES_MAX = 300 << 20


class GuestNotAlive(LiveUpdateError):
    """A guest shows no sign of life, before anything was done to it."""


class HeldHop(HopEngine):
    """The moves of the hop, and the steps around it and on the way back; made anew for each."""

    def __init__(
        self,
        side: HostSide,
        *,
        state: State,
        view: HostView,
        wait: Callable[[], Mapping[str, object]],
    ) -> None:
        """
        :param state: what the journal says; :param view: what the host said before this step.
        :param wait: waits for the incoming kernel with its driver's patience.
        """
        super().__init__(side.bed, side.plan.hops[0], side.steps)
        self._side = side
        self._state = state
        self._view = view
        self._wait = wait
        self._offsets: dict[str, int] = {}
        tsc_khz = state.facts.get("preflight", {}).get("tsc_khz")
        self.tsc_khz = tsc_khz if isinstance(tsc_khz, int) else None

    def status(self) -> Mapping[str, object]:
        """Return the agent's ``update_status``."""
        return self._side.status(_SHORT_S)

    def note(self, moment: str) -> None:
        """Do nothing: a process that resumes does not know the times of the one before."""

    # --- before the hop

    def lock(self) -> Mapping[str, object]:
        """Store the boot of the host in which this update begins; connecting has locked it."""
        answer = self.status()
        generation = answer.get("generation")
        if generation != self.n - 1:
            raise PlanError(
                f"the host was updated meanwhile: its generation is {generation}, planned was"
                f" {self.n - 1}",
                hint="begin a new update",
            )
        now = status_view(answer)
        return {"boot_id": now.boot_id, "since": now.since}

    def preflight(self) -> Mapping[str, object]:
        """Check again, while no other update can change the host.

        :raises PlanError: it may not be updated, or is not as it was when it was planned.
        """
        local = self._side.local
        options = list(local.mechanism.kconfig)
        survey = read_survey(self.bed.call("survey", {"options": options}, timeout_s=60.0))
        refused = [
            f"{each.subject}: {each.text}".removeprefix(": ")
            for each in preflight.refusals(preflight.check(survey, local))
        ]
        if refused:
            raise PlanError(f"the host cannot be updated: {'; '.join(refused)}")
        now = {name: guest.spec.memory_bytes for name, guest in survey.guests.items()}
        planned = {guest.name: guest.memory_bytes for guest in self.bed.plan.guests}
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
        self.put_before()
        origin = describe(self.bed, argv=self._side.argv, accel_reason="a host of yours")
        self.bed.record.put(slots.PROVENANCE, origin)

    def copy_kernel(self) -> Mapping[str, object]:
        """Copy the image and compare its digest on the host.

        :raises PlanError: it differs, or the image changed here.
        """
        image = Path(self.hop.incoming.path)
        found = hashlib.sha256(image.read_bytes()).hexdigest()
        if found != self.hop.incoming.sha256:
            raise PlanError(f"'{image}' was changed after the update was planned")
        path = self._side.host.push_kernel(image)
        deadline = Deadline.after(_SHORT_S * 3, "sha256sum on the host")
        said = self.bed.ssh(deadline).run(("sha256sum", path), deadline, check=True).stdout
        there = said.decode(errors="replace").split(" ", 1)[0]
        if there != found:
            raise PlanError(f"'{path}' on the host has sha256 {there}, planned was {found}")
        return {"path": path, "sha256": there}

    # --- the hop

    def observe_before(self) -> Mapping[str, object]:
        """Watch all guests, and check that each is alive.

        :raises GuestNotAlive: one is not.
        """
        super().observe_before()
        return {"tick_offsets": dict(self._offsets)}

    def watch(self) -> None:
        """Let the agent watch the guests, and wait for ticks of each.

        :raises GuestNotAlive: one does not tick or answer.
        """
        self._watch()
        for guest in self.payload_guests():
            try:
                see_ticks(self.bed, guest, _TICKS_SEEN, _TICK_S, interval_s=_LOOK_S)
            except GuestStopped as error:
                self.status()  # a line that is gone is no guest that is dead
                raise GuestNotAlive(
                    f"guest '{guest.spec.name}' does not tick, at tick {error.seq}"
                ) from error

    def _watch(self, *, dead_too: bool = False) -> None:
        """:param dead_too: leave out guests that do not answer: missing evidence judges them."""
        self._offsets = {}
        for guest in self.payload_guests():
            try:
                self._greet(guest)
            except GuestNotAlive:
                if not dead_too:
                    raise
                continue
            self._offsets[guest.spec.name] = guest.tick_offset()
        self.bed.call("update_watch", {"guests": self._offsets})

    def _greet(self, guest: GuestHandle) -> None:
        """Ask the payload where its pages are."""
        try:
            mark = self.bed.command(guest, payload.HELLO)
            deadline = Deadline.after(_READY_S, f"guest '{guest.spec.name}' to answer")
            line = self.bed.wait_payload(guest, payload.Ready, deadline, since=mark)
        except (DeadlineExceeded, EvidenceError, LostMachine, RemoteError) as error:
            self.status()  # a line that is gone is no guest that is dead
            raise GuestNotAlive(f"guest '{guest.spec.name}' does not answer: {error}") from error
        assert isinstance(line, payload.Ready)
        guest.ready = line

    def preserve(self) -> None:
        """Let the agent preserve and digest the guests' memory, unless that is done."""
        if self._view.handover == "prepared":
            return
        self.bed.call(
            "prepare",
            {"digest": self.bed.plan.observe.memory},
            timeout_s=self.bed.plan.timeouts.prepare_s,
        )

    def place_kernel(self) -> str:
        """Return the path to which ``copy-kernel`` copied the image."""
        return NEXT_KERNEL

    def load_args(self) -> Mapping[str, object]:
        """Return the image's digest, which the agent checks before it loads it."""
        return {"sha256": self.hop.incoming.sha256}

    def incoming(self) -> Mapping[str, object]:
        """Wait for the incoming kernel with the driver's patience."""
        return self._wait()

    def collect(self) -> Mapping[str, object]:
        """Fetch everything, and store it as the evidence of this hop."""
        bed = self.bed
        seen = self._fetch()
        # waited for here, so that a lost network is not taken for evidence
        bed.ssh(Deadline.after(bed.plan.timeouts.incoming_s, "SSH to the incoming kernel"))
        bed.call("set_nonce", {"nonce": bed.nonce})
        read_over_ssh(bed, self.n)
        self.see_kernel()
        self.put_sessions(self.status().get("sessions", []))
        self.put_failures(seen.events)
        self.see_guests([guest.spec.name for guest in bed.guests])
        return {"lost_lines": seen.lost}

    def see_guest(self, guest: GuestHandle) -> None:
        """Ask the payload for its pages, which checking its pattern needs."""
        with contextlib.suppress(GuestNotAlive):  # the pattern it does not verify says it, too
            self._greet(guest)

    def finish(self) -> None:
        """Return the sessions to the kernel, unless that is done."""
        if status_view(self.status()).handover == "restored":
            self.bed.call("finish")

    # --- back

    def abandon(self) -> None:
        """Close the sessions: nothing stays preserved, and the guests run on."""
        if self._view.handover in ("prepared", "failed"):
            self.bed.call("abandon")

    def unload(self) -> None:
        """Unload the incoming kernel."""
        self.bed.call("unload_kernel")

    def observe_back(self) -> None:
        """Watch the guests where they are."""
        self._watch(dead_too=True)
        time.sleep(self.bed.plan.observe.before_s + self.bed.plan.observe.after_s)

    def collect_back(self) -> Mapping[str, object]:
        """Fetch what the host recorded until the update was rolled back."""
        if "preflight" not in self._state.done:
            self._put_origin()
        seen = self._fetch()
        failed = seen.first("freeze-failed")
        if failed is not None:
            self.incident("freeze-refused", str(failed.data.get("message", "")))
        self.bed.record.set_rolled_back()
        self.see_guests(())
        return {"lost_lines": seen.lost}

    def collect_lost(self) -> None:
        """Store the state of a host that rebooted and lost its guests."""
        host = self._side.host
        panic = host.console.panic if host.has_console else None
        self.bed.record.begin_anew(self.n)
        self.see_kernel()
        if panic is not None:
            self.incident("panic", panic.text)
        else:
            self.incident("reset", self._state.why)

    # --- end

    def release(self) -> None:
        """Unlock the host; on the outgoing kernel the copied image is removed, too."""
        now = status_view(self.status())
        if now.boot_id == (self._state.host_boot_id or now.boot_id):
            deadline = Deadline.after(_SHORT_S, "the copied kernel to be removed")
            with contextlib.suppress(OutcomeUnknown):
                self.bed.ssh(deadline).run(("rm", "-f", NEXT_KERNEL), deadline)
        if now.update:
            self.bed.call("update_end")

    release_back = release_lost = release

    # --- the host's record

    def _fetch(self) -> host_record.HostRecord:
        """Fetch the record and store what it says, in place of what was stored of this hop."""
        lines: list[str] = []
        start, left = 0, _RECORD_BYTES_MAX
        while True:
            answer = self.bed.call("update_log", {"from": start}, timeout_s=_LOG_S)
            piece, following = answer.get("lines"), answer.get("next")
            if not isinstance(piece, list) or not isinstance(following, int):
                raise LostMachine("the agent's record is none of our protocol", how="garbled")
            lines += map(str, piece)
            left -= sum(map(len, lines[-len(piece) :])) + len(piece) if piece else 0
            if left < 0:
                raise LostMachine("the agent's record is larger than any", how="garbled")
            if answer.get("last") is True or following <= start:
                break
            start = following
        record = self.bed.record
        record.put_host_record(lines)
        seen = host_record.read_record(lines, self._find_offsets())
        record.begin_anew(self.n)
        if seen.lost:
            self.incident("harness", f"{seen.lost} lines of the host's record are lost")
        self.put_events(seen.events)
        for guest in self.bed.plan.guests:
            record.add(slots.TICKS, seen.ticks.get(guest.name, ()), self.n, guest.name)
            record.add(slots.PINGS, seen.pings.get(guest.name, ()), self.n, guest.name)
            if seen.watched is not None:
                record.put(slots.WATCHED, seen.watched, self.n, guest.name)
        return seen

    def _find_offsets(self) -> dict[int, int]:
        """Say what to add to times of either kernel to have them in this process's clock."""
        now = status_view(self.status()).boot_id
        boots = {host_record.BEFORE: self._state.host_boot_id or now, host_record.AFTER: now}
        pairs = {which: self._state.clocks.get(boot_id) for which, boot_id in boots.items()}
        return {
            which: pair.offset_ns + _since_our_reboot(pair)
            for which, pair in pairs.items()
            if pair is not None
        }


def control_boot_id() -> str:
    """Return the boot id of this machine: its monotonic clock has no meaning in another boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _since_our_reboot(pair: ClockPair) -> int:
    """Return the offset for times of this machine's monotonic clock as it was when ``pair`` was
    noted.
    """
    if pair.control_boot_id == control_boot_id():
        return 0
    return pair.real_ns - (time.time_ns() - time.monotonic_ns())
