# SPDX-License-Identifier: Apache-2.0
"""A hop: prepare, freeze, jump, and on the other side restore and finish.

::

    idle --prepare--> prepared --jump--> (next kernel) restored --finish--> idle
                      prepared --abandon--> idle
                      prepared --jump fails--> failed --abandon--> idle

One preserved set for the agent (token 1: manifest, token 2: an operator's update), one per guest
(RAM, and token 2: VMM state) and one per device (token 1: ring). With LUO a preserved set is a
session, and events and evidence call it that. Whatever fails before
reboot(2) has no way back leaves the guests running here.
"""

from __future__ import annotations

import os

from ..base.fast_stdlib import TYPE_CHECKING, close_fd, now_ns, read_text, run_parallel
from ..base.host import boot_id, kernel_said
from ..base.names import KindError
from ..guest.guests import Guest
from ..guest.vmm_qemu import VmmError
from ..mechanisms.base import MechanismError, open_mechanism
from . import manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..base.framing import Emit
    from ..device.devices import Device as PciDevice
    from ..guest.spec import GuestEntry
    from ..mechanisms.base import Mechanism, PreservedSet
    from .lock_record import Update

AGENT_SESSION = "lu.agent"
TOKEN_MANIFEST = 1
#: lock and record of an update that holds the host
TOKEN_RECORD = 2
#: how long the last events may take to reach a reader that is slow
DRAIN_S = 0.5
_REBOOT_KEXEC = 0x45584543  # LINUX_REBOOT_CMD_KEXEC


class HandoverError(KindError):
    """A call that is not possible now, or that the kernel refused."""


class Handover:
    """The preserved sets of this boot and their state."""

    def __init__(
        self,
        guests: dict[str, Guest],
        emit: Emit,
        drain: Callable[[float], None],
        update: Update,
    ) -> None:
        self._guests = guests
        self._update = update
        #: passed-through devices, by name
        self.devices: dict[str, PciDevice] = {}
        self._emit = emit
        self._drain = drain
        self.state = "idle"
        self._mechanism: Mechanism | None = None
        self._session: PreservedSet | None = None
        self._manifest = -1
        self._record = -1
        #: SessionFacts of the sessions asked for in this boot
        self.sessions: list[dict[str, object]] = []
        #: what is in sessions now, outgoing or not yet finished
        self.preserved_bytes = 0
        #: faults of tests: applied to all guests at freeze, or at the jump
        self.faults: list[dict[str, object]] = []
        self._reboot: Callable[[int], int] | None = None

    # --- incoming

    def open(self) -> Mechanism:
        """Return the mechanism of this boot.

        :raises HandoverError: it cannot be used.
        """
        if self._mechanism is None:
            try:
                self._mechanism = open_mechanism()
            except (OSError, MechanismError) as err:
                raise HandoverError("device", f"{err}") from err
        return self._mechanism

    def next_words(self) -> str:
        """Return the mechanism's words for the command line of a kernel that is loaded."""
        return "" if self._mechanism is None else self._mechanism.next_words()

    def recover(self) -> tuple[bool, list[GuestEntry]]:
        """Look for what the previous kernel left. Sends no event, because ``hello`` must be the
        first.

        :return: whether there is a preserved set of an agent, and the guests in it.
        """
        began = now_ns()
        try:
            self._mechanism = open_mechanism()
            session = self._mechanism.retrieve(AGENT_SESSION)
        except FileNotFoundError:
            return False, []  # no such device, or no such preserved set: a cold boot
        except (OSError, MechanismError) as err:
            self._note_session(AGENT_SESSION, f"{err}", 0, now_ns() - began)
            return False, []
        self._session, self.state = session, "restored"
        error = None
        entries: list[GuestEntry] = []
        self._recover_update(session)
        try:
            self._manifest = session.retrieve(TOKEN_MANIFEST)
            left_by, entries, devices = manifest.read(self._manifest)
            self.preserved_bytes = os.fstat(self._manifest).st_size
            if left_by == boot_id():
                raise manifest.ManifestError("was left by this very boot")
            if devices:
                from ..device.devices import Device as PciDevice
                from ..device.devices import DeviceSpec

                for spec in map(DeviceSpec, devices):
                    self.devices[spec.name] = PciDevice(spec, self._emit)
        except (OSError, ValueError) as err:
            error = f"manifest: {err}"
        self._note_session(AGENT_SESSION, error, session.tokens, now_ns() - began)
        return True, entries

    def _recover_update(self, session: PreservedSet) -> None:
        """Take lock and record back, if an update held the host."""
        try:
            self._record = session.retrieve(TOKEN_RECORD)
        except OSError:
            return  # none did
        try:
            self._update.take_over(self._record)
        except (OSError, ValueError) as err:
            # no trouble of the guests: a caller who reads the record finds out
            self._emit("agent-error", {"call": "recover", "message": f"record: {err}"})

    def restore(self) -> None:
        """Restore all guests at once; a failure is an event and does not stop the others."""
        for session in self.sessions:
            if session["error"] is not None:  # no guest can be named
                self._restore_failed("", "session", str(session["error"]))
        guests, devices = list(self._guests.values()), list(self.devices.values())
        work = [_bind(self._restore_device, device) for device in devices]
        run_parallel([*work, *(_bind(self._restore_guest, guest) for guest in guests)])
        self.preserved_bytes += sum(device.preserved_bytes for device in devices)
        self.preserved_bytes += sum(g.ram.size for g in guests if g.ram is not None)
        self._emit("restored", {"sessions": self.sessions})

    def _restore_guest(self, guest: Guest) -> None:
        name, kind = guest.spec.name, "session"
        began = now_ns()
        try:
            elapsed, error = 0, None
            try:
                elapsed = guest.retrieve()
            except (OSError, VmmError) as err:
                error = str(err)
                raise
            finally:
                tokens = guest.session.tokens if guest.session else 0
                self._note_session(guest.spec.session, error, tokens, now_ns() - began)
            guest.tell("retrieved", session=guest.spec.session, retrieve_ns=elapsed, tokens=tokens)
            kind = "vmm"
            if guest.faults:
                from ..guest import fault_tools

                fault_tools.apply_after_retrieve(guest)
            guest.resume()
            if guest.faults:
                fault_tools.apply_after_resume(guest)
                guest.faults = []
        except Exception as err:
            guest.error = str(err)
            kind = err.kind if isinstance(err, VmmError) else kind
            self._restore_failed(name, kind, guest.error)

    def _restore_device(self, device: PciDevice) -> None:
        began = now_ns()
        error: str | None = "no mechanism"
        tokens, elapsed = 0, 0
        try:
            if self._mechanism is not None:
                tokens, elapsed = device.restore(self._mechanism)
                error = None
        except Exception as err:
            error = str(err)
            device.error = error
            device.tell("device-failed", message=error)
        if device.session is None:
            self._note_session(device.spec.session, error, tokens, now_ns() - began)
        else:  # what came after the session was there is the device's trouble
            tokens = device.session.tokens
            self._note_session(device.spec.session, None, tokens, elapsed)

    def _restore_failed(self, guest: str, kind: str, message: str) -> None:
        self._emit("restore-failed", {"guest": guest, "kind": kind, "message": message})

    def _note_session(self, name: str, error: str | None, tokens: int, elapsed_ns: int) -> None:
        self.sessions.append(
            {"name": name, "error": error, "tokens": tokens, "retrieve_ns": elapsed_ns}
        )

    def finish(self) -> dict[str, object]:
        """Return the preserved sets to the mechanism; the state is as before ``prepare``."""
        self._need("restored")
        problems: list[str] = []
        releases = [self.release, *(g.release for g in self._guests.values())]
        for release in (*releases, *(d.release for d in self.devices.values())):
            try:
                release()
            except OSError as err:
                problems.append(str(err))
        self.state = "idle"
        self.preserved_bytes = 0
        if problems:
            raise HandoverError("session", "; ".join(problems))
        return {"sessions": self.sessions}

    # --- outgoing

    def prepare(self) -> dict[str, object]:
        """Preserve the memory of running guests. May take long: this is the brownout.

        :raises HandoverError: also when a guest is lost, because an update without it would hide
            the loss.
        """
        self._need("idle")
        for guest in self._guests.values():
            if guest.error is not None:
                raise HandoverError("guest", f"guest '{guest.spec.name}' is lost: {guest.error}")
        self._reboot = _load_reboot()
        mechanism = self.open()
        done: dict[str, object] = {}
        try:
            self._session = mechanism.create(AGENT_SESSION)
            self._manifest = manifest.create(len(self._guests) + len(self.devices))
            self._session.preserve(self._manifest, TOKEN_MANIFEST)
            self._prepare_record(self._session)
            for guest in self._guests.values():
                done[guest.spec.name] = {
                    "preserve_ns": guest.prepare(),
                    "pages": guest.spec.pages,
                }
                self.preserved_bytes += guest.spec.memory_bytes
            for device in self._working():
                done[device.spec.name] = {"preserve_ns": device.prepare(mechanism)}
                self.preserved_bytes += device.preserved_bytes
        except (OSError, VmmError, MechanismError, ValueError) as err:
            self._give_up()
            raise HandoverError("preserve", f"{err}") from err
        self.preserved_bytes += os.fstat(self._manifest).st_size
        self.state = "prepared"
        return {"guests": done}

    def _prepare_record(self, session: PreservedSet) -> None:
        if self._update.lock is None:
            return
        size = self._update.log_bytes()
        self._record = os.memfd_create("lu-record", os.MFD_CLOEXEC)
        os.ftruncate(self._record, size)
        session.preserve(self._record, TOKEN_RECORD)
        self.preserved_bytes += size

    def abandon(self) -> dict[str, object]:
        """Drop what was preserved; the guests run on."""
        self._need("prepared", "failed")
        self._give_up()
        return {}

    def check_jump(self) -> None:
        """Refuse a jump that could not work, while the guests still run."""
        self._need("prepared")
        if read_text("/sys/kernel/kexec_loaded") != "1":
            raise HandoverError("not-loaded", "no kernel is loaded; call load_kernel first")

    def jump(self) -> None:
        """Freeze all guests and enter the loaded kernel. Returns only on failure."""
        guests = list(self._guests.values())
        for guest, message in self._freeze(guests):
            self._emit("freeze-failed", {"guest": guest, "message": message})
        self._thaw(guests)

    def _freeze(self, guests: list[Guest]) -> list[tuple[str, str]]:
        """Freeze and jump; return what failed: a guest's name or "", and a message."""
        errors = run_parallel([_bind(self._freeze_guest, guest) for guest in guests])
        failed = zip(guests, errors, strict=True)
        if any(errors):
            return [(guest.spec.name, str(error)) for guest, error in failed if error is not None]
        try:
            entries = [guest.entry() for guest in guests]
            specs = [device.spec.to_json() for device in self._working()]
            room = os.fstat(self._manifest).st_size
            os.pwrite(self._manifest, manifest.encode(boot_id(), entries, room, specs), 0)
        except (OSError, ValueError) as err:
            return [("", f"manifest: {err}")]
        # The VMMs stay: their vCPUs are stopped, the kexec ends them, and ending them here would be
        # time of the blackout. A refused reboot then finds the guests where they were.
        self._before_kexec()
        # Last, so that a ring goes unread for as short as possible.
        stopped = run_parallel([device.freeze for device in self._working()])
        for failure in filter(None, stopped):
            return [("", str(failure))]
        try:
            self._take_leave()
        except OSError as err:
            return [("", f"manifest: {err}")]
        self._drain(DRAIN_S)
        code = self._reboot(_REBOOT_KEXEC) if self._reboot else 0
        # Still here: liveupdate_reboot() refused.
        said = kernel_said("keep-dma: ") if self.devices else ""
        return [("", f"reboot(KEXEC): {os.strerror(code)}{said}")]

    def _take_leave(self) -> None:
        """Announce that the kernel is left, and seal the agent's own preserved set.

        An observer from outside may rely on it: after this event nothing is written to what is
        carried over. Only the record of an update comes later, as it has to contain the event
        itself.
        """
        if self._record < 0:
            self._seal()
        self._emit("jumping", {})
        if self._record >= 0:
            self._update.unwatch()
            self._update.save(self._record)
            self._seal()

    def _seal(self) -> None:
        # a fault may have closed it
        if self._session is not None and self._session.is_open:
            self._session.seal()

    def _freeze_guest(self, guest: Guest) -> None:
        guest.freeze(self._strike)

    def _thaw(self, guests: list[Guest]) -> None:
        self.state = "failed"
        if self._update.lock is not None:
            self._update.watch()
        for device in self._working():
            device.thaw()
        for guest, error in zip(guests, run_parallel([g.thaw for g in guests]), strict=True):
            if error is not None:
                guest.error = str(error)

    def _strike(self, guest: Guest, moment: str) -> None:
        if self.faults:
            from ..guest import fault_tools

            fault_tools.apply_at_freeze(guest, moment, self.faults)

    def _before_kexec(self) -> None:
        for fault in self.faults:
            kind = fault.get("fault")
            if kind == "close-session":
                if "guest" not in fault and self._session is not None:
                    self._session.close()
                for name, guest in self._guests.items():
                    if fault.get("guest", name) == name:
                        from ..guest.fault_tools import close_session

                        close_session(guest)
            elif kind == "spin-at-jump":
                from ..base import fault_tools

                fault_tools.spin("spin-at-jump", self._tell_struck)

    def _tell_struck(self, told: dict[str, object]) -> None:
        """Send the report of a fault, which is the last thing that leaves."""
        self._emit("struck", told)
        self._drain(DRAIN_S)

    # --- either

    def _need(self, *states: str) -> None:
        if self.state not in states:
            wanted = "' or '".join(states)
            raise HandoverError("state", f"state is '{self.state}', must be '{wanted}'")

    def _working(self) -> list[PciDevice]:
        """Return the devices that can go on a hop."""
        return [device for device in self.devices.values() if device.error is None]

    def release(self) -> None:
        """Close the agent's own preserved set, and what is in it."""
        session, self._session = self._session, None
        self._manifest = close_fd(self._manifest)
        self._record = close_fd(self._record)
        if session is not None:
            session.let_go()

    def _give_up(self) -> None:
        self.release()
        for guest in self._guests.values():
            guest.release()
            guest.faults = []
        for device in self.devices.values():
            device.abandon()
        self.faults.clear()
        self.preserved_bytes = 0
        self.state = "idle"


def _bind(func: Callable[[Any], None], argument: object) -> Callable[[], None]:
    return lambda: func(argument)


def _load_reboot() -> Callable[[int], int]:
    """Return a function that calls reboot(2) and returns errno, made ready in the brownout.

    The same as ``kexec -e -x``, without starting a process in the blackout.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def reboot(command: int) -> int:
        return ctypes.get_errno() if libc.reboot(ctypes.c_int(command)) else 0

    return reboot
