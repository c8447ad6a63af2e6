# SPDX-License-Identifier: Apache-2.0
"""The guests on this host: their memory, their VMM, and starting, freezing and restoring one.

A mechanism provides a guest's RAM and the agent holds it; VMMs come and go around it.
"""

from __future__ import annotations

import _thread
import os

from ..base.fast_stdlib import TYPE_CHECKING, close_fd, now_ns
from ..base.host import disk_serial, find_disk
from ..mechanisms.base import TOKEN_STATE, MechanismError
from .net import Network
from .spec import GuestEntry, GuestSpec
from .state import StateSum, say_places, sum_up
from .vmm_qemu import SLEEP_S, QemuVmm, VmmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..base.framing import Emit
    from ..mechanisms.base import Mechanism, PreservedSet, Ram
    from .kvm_clock import SavedClock

    Watch = Callable[["Guest"], None]
    #: called with a moment of the freeze: "paused", "saved"
    Strike = Callable[["Guest", str], None]

PAGE_BYTES = 4096
QUIT_S = 10.0
#: between two attempts to be heard by a guest that is waking up
REOPEN_S = 0.5
#: the payload's word that a guest which slept is awake
AWAKE = '{"ev":"done","cmd":"sleep"}'


class Guest:
    """One guest. Methods block; at most one thread at a time works on a guest."""

    def __init__(
        self, spec: GuestSpec, mechanism: Mechanism, network: Network, emit: Emit, watch: Watch
    ) -> None:
        self.spec = spec
        self._mechanism = mechanism
        self._network = network
        self._emit = emit
        self._watch = watch
        self.vmm = QemuVmm(spec)
        self.ram: Ram | None = None
        #: how long allocating its RAM took; None: it came from the previous kernel
        self.allocate_ns: int | None = None
        self.state = -1
        #: what is in ``state``, or ought to be in it when it has come over
        self.saved: StateSum | None = None
        #: its clock when it was paused; None: it is to stand still meanwhile
        self.clock: SavedClock | None = None
        #: what it goes out with, or came in with until ``finish``
        self.session: PreservedSet | None = None
        #: why it is not running; None: it should run
        self.error: str | None = None
        #: its vCPUs run, as far as we have let them
        self.running = False
        #: faults to apply on the incoming side
        self.faults: list[dict[str, object]] = []
        #: it was sent to sleep and has not been woken
        self._sleeps = False
        #: the newest line of its payload
        self._said = "nothing"
        #: held until the payload says that it is awake
        self._waking = _thread.allocate_lock()

    def tell(self, event: str, **data: object) -> None:
        """Send an event about this guest, with its name."""
        self._emit(event, {"guest": self.spec.name, **data})

    # --- first start

    def start(self) -> None:
        """Boot it for the first time, on fresh memory.

        :raises VmmError, MechanismError, OSError: it cannot be started; nothing of it is left then.
        """
        try:
            disk = find_disk(self.spec.disk)
            # /dev names do not survive a kexec, serials do; this is what the manifest carries
            self.spec.disk = disk_serial(disk) or self.spec.disk
            began = now_ns()
            self.ram = self._mechanism.allocate_ram(self.spec.name, self.spec.memory_bytes)
            self.allocate_ns = now_ns() - began
            for device in self.spec.devices:
                device.pin.take()
            self._spawn(disk, incoming=False)
            self.vmm.greet()
            self._watch(self)
            self.running = True
        except BaseException:
            self.discard()
            raise

    def _spawn(self, disk: str, *, incoming: bool) -> None:
        if self.ram is None:
            raise VmmError("memory", f"guest '{self.spec.name}' has no memory")
        tap = self._network.open_tap(self.spec.tap)
        try:
            self.vmm.spawn(self.ram, tap, disk, incoming=incoming)
        finally:
            os.close(tap)  # the VMM's copy keeps the tap alive, and no longer than the VMM

    def discard(self) -> dict[str, str | None]:
        """Kill the guest and forget it; return the driver of each of its devices after that."""
        self.vmm.ending = True
        self.vmm.kill()
        self.vmm.wait_end(QUIT_S)
        self.vmm.close()
        self.release()
        self._free_ram()
        return {each.name: each.pin.give_back() for each in self.spec.devices}

    def heard(self, line: str) -> None:
        """Process a line of the payload; called by the thread that reads them."""
        self._said = line
        if line == AWAKE and self._waking.locked():
            self._waking.release()
        self.tell("guest-line", line=line)

    # --- outgoing

    def prepare(self) -> int:
        """Preserve RAM while the guest runs; return how long the kernel took, ns."""
        self.vmm.arm()
        self._load_reader()
        if self.ram is None:
            raise VmmError("memory", f"guest '{self.spec.name}' has no memory")
        self.session = self._mechanism.create(self.spec.session)
        began = now_ns()
        try:
            self.session.preserve_ram(self.ram)
        except OSError as err:
            err.filename = self.spec.name  # "Cannot allocate memory" alone does not say for whom
            raise
        finally:
            if self.session.refusals:
                self.tell("preserve-refused", times=self.session.refusals)
        elapsed = now_ns() - began
        self.state = os.memfd_create(f"lu-state-{self.spec.name}", os.MFD_CLOEXEC)
        sum_up(self.state)  # of nothing yet: brings in the code that the blackout needs
        return elapsed

    def freeze(self, strike: Strike) -> None:
        """Pause it, save and preserve its state.

        :param strike: for faults.
        """
        session = self.session
        if session is None:
            raise VmmError("state", f"guest '{self.spec.name}' is not prepared")
        if self.spec.devices:
            self._send_to_sleep()
        self.vmm.stop()
        self.running = False
        self.tell("paused")
        self._save_clock()
        self._tell_digests("freeze")
        self._tell_vcpus("before")
        strike(self, "paused")
        size = self.vmm.save(self.state)
        # PRESERVE_FD takes whole pages and fixes the size
        os.ftruncate(self.state, -(-size // PAGE_BYTES) * PAGE_BYTES)
        self.saved = sum_up(self.state)
        self.tell("saved", bytes=size, **self.saved.to_json())
        strike(self, "saved")
        session.preserve(self.state, TOKEN_STATE)
        session.seal()
        self.tell("preserved", **say_places(session, TOKEN_STATE, self.state))

    def _send_to_sleep(self) -> None:
        """Suspend the guest, so that its drivers stop their devices. After an error it may still
        happen later.
        """
        self._waking.acquire(blocking=False)
        self._sleeps, self._said = True, "nothing"
        self.tell("falling-asleep")
        try:
            self.vmm.send_to_sleep()
        except VmmError as err:
            raise VmmError(err.kind, f"{err}; it said {self._said}") from err
        self.tell("asleep")

    def _wake(self) -> None:
        """Wake the guest, and wait for its report.

        :raises VmmError: it does not wake up.
        """
        self._waking.acquire(blocking=False)
        self.vmm.wake()
        # Linux 7.3 asks for the state of a port's other end before it has given the host a buffer
        # for the answer (virtcons_restore() in drivers/char/virtio_console.c), and takes it for
        # closed from then on: until it is opened anew.
        for _ in range(round(SLEEP_S / REOPEN_S)):
            if self._waking.acquire(timeout=REOPEN_S):
                break
            self.vmm.reopen_payload()
            self._watch(self)
        else:
            raise VmmError("wake", f"guest '{self.spec.name}' does not wake up in {SLEEP_S:g} s")
        self._waking.release()
        self.tell("awake")

    def thaw(self) -> None:
        """Undo ``freeze``: the guest continues in the VMM that it never left."""
        self.vmm.cont()
        if self._sleeps and self.vmm.query_status() == "suspended":
            self._wake()
        self._sleeps = False
        self.running = True
        self.tell("resumed", rolled_back=True)

    def entry(self) -> GuestEntry:
        """Return the guest's entry in the manifest.

        :raises ValueError: its state was not saved.
        """
        if self.saved is None:
            raise ValueError(f"the state of guest '{self.spec.name}' was not saved")
        return GuestEntry(self.spec, self.saved, self.faults, self.clock)

    # --- incoming

    def retrieve(self) -> int:
        """Take RAM and state over from the previous kernel; return how long it took, ns."""
        began = now_ns()
        self.session = self._mechanism.retrieve(self.spec.session)
        try:
            self.ram = self.session.retrieve_ram(self.spec.memory_bytes)
        except MechanismError as err:
            raise VmmError("memory", str(err)) from err
        self.state = self.session.retrieve(TOKEN_STATE)
        return now_ns() - began

    def resume(self) -> None:
        """Start a VMM around the retrieved memory and let the guest run."""
        self._tell_digests("boot")
        self._run_saved()
        self.tell("resumed")

    def _run_saved(self) -> None:
        for device in self.spec.devices:
            device.pin.take()
        self._spawn(find_disk(self.spec.disk), incoming=True)
        self._watch(self)
        # while the VMM starts, which takes longer
        self._check_state()
        self._load_reader()
        self.vmm.greet()
        self.tell("vmm-up")
        self.vmm.load(self.state)
        self.tell("loaded")
        if self.faults:
            from . import vcpu_faults

            vcpu_faults.apply(self)
        self._tell_vcpus("after")
        self._go_on()
        self.running = True
        if self.spec.devices:
            self._wake()

    def _save_clock(self) -> None:
        """Keep the guest's clock, if it is to go on.

        :raises VmmError: ``clock``.
        """
        if not self.spec.has_continuous_clock:
            return
        from ..base.host import tsc_khz
        from . import kvm_clock

        try:
            self.clock = kvm_clock.read_clock(self.vmm.pid, tsc_khz())
        except (OSError, ValueError) as err:
            raise VmmError("clock", f"guest '{self.spec.name}': its clock: {err}") from err

    def _go_on(self) -> None:
        """Let the vCPUs run; a clock that is to go on does so, or that it does not is told."""
        if self.clock is None:
            self.vmm.cont()
            return
        from . import kvm_clock

        try:
            self.tell("clock-carried", ahead_ns=kvm_clock.continue_with(self.vmm, self.clock))
        except OSError as err:
            self.tell("clock-carried", error=str(err))
            # it may not have come to that, such as when ptrace(2) is refused; twice does no harm
            self.vmm.cont()

    def _check_state(self) -> None:
        """Refuse to load a state that is not what was saved; its VMM is ended then.

        :raises VmmError: ``state``.
        """
        found = sum_up(self.state)
        self.tell("state-read", **found.to_json())
        differs = None if self.saved is None else self.saved.compare(found)
        if differs is not None:
            self.vmm.ending = True
            self.vmm.kill()
            self.vmm.wait_end(QUIT_S)
            raise VmmError("state", f"{differs}; it was not loaded")

    # --- either

    def _tell_digests(self, moment: str) -> None:
        if not self.spec.digest or self.ram is None:
            return
        from . import digest

        for first, text in digest.pages(self.ram):
            self.tell("digests", moment=moment, first=first, digests=text)

    def _load_reader(self) -> None:
        """Import what reads vCPUs, which takes longer than it has in the blackout: before that, or
        while a VMM starts.
        """
        if self.spec.vcpu_state:
            from . import vcpu_state  # noqa: F401
        if self.spec.has_continuous_clock:
            from . import kvm_clock  # noqa: F401

    def _tell_vcpus(self, moment: str) -> None:
        """Send what KVM knows of each vCPU; that it cannot be read is sent as well."""
        if not self.spec.vcpu_state:
            return
        from . import vcpu_state

        try:
            for vcpu in vcpu_state.read_vcpus(self.vmm.pid):
                self.tell("vcpu-state", moment=moment, **vcpu)
        except OSError as err:
            self.tell("vcpu-state", moment=moment, error=str(err))

    def release(self) -> None:
        """Close the preserved set: an outgoing one is dropped, an incoming one finished."""
        session, self.session = self.session, None
        if session is not None:
            session.let_go()
        self.state = close_fd(self.state)
        if self.error is not None:
            self._free_ram()  # lost: its memory is of no more use

    def _free_ram(self) -> None:
        ram, self.ram = self.ram, None
        if ram is not None:
            self._mechanism.free_ram(self.spec.name, ram)
