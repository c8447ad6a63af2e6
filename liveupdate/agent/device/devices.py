# SPDX-License-Identifier: Apache-2.0
"""A passed-through device that is at work here, through the kexec and beyond.

::

    start            bind vfio-pci, open, map its memfd, set it to work
    prepare          preserve the memfd, select the device to be kept
    freeze           stop reading the ring; the device continues
                     --- kexec ---
    restore          count what has landed, open without a reset, map the same, adopt

In tier quiesce ``freeze`` releases it (stop, unmap, close), and ``restore`` starts it again with
the same memory at the same addresses. What its work is depends on its kind (:mod:`.jobs`). A thread
looks after it; its memory, account included, is a memfd.
"""

from __future__ import annotations

import _thread
import os
import time
from math import gcd
from mmap import MADV_NOHUGEPAGE, mmap

from ..base.fast_stdlib import TYPE_CHECKING, Task, close_fd, now_ns
from ..base.host import kernel_said, mapping_start, page_frames
from ..base.names import SpecError, check_name
from .driver_binding import KINDS, Pin, PinError, find
from .jobs import ERRORS as JOB_ERRORS
from .jobs import make_job
from .ring import ENTRIES_MAX, RING_AT, RingError
from .vfio import ACCESS, Mapping, VfioDevice, VfioError, open_device

if TYPE_CHECKING:
    from ..base.framing import Emit
    from ..mechanisms.base import Mechanism, PreservedSet
    from .jobs import Job

TOKEN_RING = 1
#: where devices see offset 0 of their ring's memfd; anywhere below 4 GiB and off the MSI window
IOVA = 0x1000_0000
#: of a mapping that a fault makes
STRAY_IOVA = 0xA000_0000
PAGE_BYTES = 4096
#: of memory that is mapped beside what the device works on; ends below the stray
EXTRA_MAX = 2 << 30
#: pages are touched so far apart that neighbours in the file are none in memory
_STRIDE = 40503
#: seconds between two polls of a device
POLL_S = 0.01
#: a poll thread that does not stop
STOP_S = 5.0

TIERS = ("continuous", "quiesce")

#: exceptions of the steps of a device
ERRORS = (PinError, VfioError, *JOB_ERRORS, OSError)


class DeviceSpec:
    """Validated description of one device; comes from the control host, and out of the manifest."""

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, dict):
            raise SpecError("device: must be an object")
        self.name = check_name(raw.get("name"))
        self.kind = str(raw.get("kind"))
        self.access = str(raw.get("access", ACCESS[0]))
        if self.kind not in KINDS or self.access not in ACCESS:
            raise SpecError(f"device: no kind '{self.kind}' with access '{self.access}'")
        self.tier = str(raw.get("tier", TIERS[0]))
        if self.tier not in TIERS:
            raise SpecError(f"device: no tier '{self.tier}'")
        #: "" means the first of its kind that is free
        self.bdf = str(raw.get("bdf") or "")
        if not set("0123456789abcdef:.").issuperset(self.bdf):  # becomes part of a path
            raise SpecError(f"device: 'bdf' is {self.bdf!r}")
        entries = raw.get("entries")
        if not isinstance(entries, int) or not 8 <= entries <= ENTRIES_MAX or entries % 8:
            raise SpecError(f"device: 'entries' is {entries!r}, 8 to {ENTRIES_MAX} in eights")
        self.entries = entries
        extra = raw.get("extra", 0)
        if not isinstance(extra, int) or not 0 <= extra <= EXTRA_MAX or extra % PAGE_BYTES:
            raise SpecError(f"device: 'extra' is {extra!r}, whole pages, at most {EXTRA_MAX} bytes")
        #: bytes that are mapped for it and that it never touches
        self.extra = extra
        #: fault to apply in the incoming kernel, for tests
        self.fault = str(raw.get("fault") or "")
        stream = raw.get("stream")
        if not isinstance(stream, str) or not stream.isdecimal() or int(stream) >= 1 << 64:
            raise SpecError("device: 'stream' must be a u64 as decimal text")
        self.stream = int(stream)

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON, for the manifest."""
        return {**vars(self), "stream": str(self.stream)}

    @property
    def session(self) -> str:
        """Name of the LUO session that carries its ring."""
        return f"lu.device.{self.name}"


class Device:
    """One device. Its methods are called by one thread at a time."""

    def __init__(self, spec: DeviceSpec, emit: Emit) -> None:
        self.spec = spec
        self._emit = emit
        self._pin = Pin(spec.bdf)
        self._fd = -1
        self._memory: mmap | None = None
        self._job: Job = make_job(spec, IOVA)
        self._vfio: VfioDevice | None = None
        self._bar: mmap | None = None
        self._stray: mmap | None = None
        self.session: PreservedSet | None = None
        #: why it does not work; None: it works
        self.error: str | None = None
        self._stopping = False
        self._idle = _thread.allocate_lock()
        self._poller: Task | None = None

    def tell(self, event: str, **data: object) -> None:
        """Send an event about this device, with its name."""
        self._emit(event, {"device": self.spec.name, **data})

    @property
    def size(self) -> int:
        """Bytes of its memfd."""
        return self._job.size + self.spec.extra

    @property
    def preserved_bytes(self) -> int:
        """Bytes of its memory that are in a preserved set now."""
        return self.size if self.session is not None else 0

    # --- first start

    def start(self, taken: set[str]) -> None:
        """Take the device and set it to work.

        :param taken: addresses of other entries.
        :raises: one of :data:`ERRORS`; the device has its driver again then.
        """
        if not self.spec.bdf:
            self.spec.bdf = find(self.spec.kind, taken)
        self._pin = Pin(self.spec.bdf)
        try:
            self._fd = os.memfd_create(f"lu-ring-{self.spec.name}", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, self.size)
            self._memory = mmap(self._fd, self.size)
            if self.spec.extra:
                _scatter(self._memory, self._job.size)
            self._job.lay_out(self._memory)
            self._job.start(self._open_enabled())
        except BaseException:
            self.stop()
            raise
        self._poll()

    def _open(self, group: str) -> mmap:
        """Open it with its memory mapped; return its registers."""
        address = mapping_start(self._fd, self.size)
        mapping = Mapping(address + RING_AT, IOVA + RING_AT, self.size - RING_AT)
        self._vfio = open_device(self.spec.access, self._pin, group, mapping)
        if self._pin.keep_state() == "incoming":
            self._pin.set_keep("adopt")
        self._bar = self._vfio.map_bar()
        return self._bar

    def _open_enabled(self) -> mmap:
        """The same for a device that was reset, which answers to nothing yet."""
        bar = self._open(self._pin.take())
        if self._vfio is not None:
            self._vfio.enable()
        return bar

    def stop(self) -> str | None:
        """Stop it, close it, and give it back; return its driver after that."""
        self._halt()
        try:
            if self.error is None:
                self._job.stop()
        finally:
            self._close()
        return self._pin.give_back() if self.spec.bdf else None

    def _close(self) -> None:
        self._let_go()
        if self._memory is not None:
            self._memory.close()
        self._memory = None
        self.release()
        self._fd = close_fd(self._fd)

    # --- the thread that looks after it

    def _poll(self) -> None:
        if self._poller is None:
            self._stopping = False
            self._poller = Task(self._run)

    def _run(self) -> None:
        with self._idle:
            try:
                while not self._stopping:
                    self._job.poll()
                    time.sleep(POLL_S)
            except Exception as err:
                self.error = f"at work: {err!r}"
                self.tell("device-failed", message=self.error)

    def _halt(self) -> None:
        """Stop the thread; the account does not change any more.

        :raises VfioError: it does not stop.
        """
        self._stopping = True
        if not self._idle.acquire(timeout=STOP_S):
            raise VfioError(f"the thread of '{self.spec.name}' does not stop")
        self._idle.release()
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.join()

    # --- outgoing

    def prepare(self, luo: Mechanism) -> int:
        """Preserve the ring, and select the device; return how long the kernel took, ns.

        The hop continues with a kernel that cannot keep DMA: the result is observed.

        :raises: one of :data:`ERRORS`.
        """
        began = now_ns()
        self.session = luo.create(self.spec.session)
        self.session.preserve(self._fd, TOKEN_RING)
        if self.spec.tier == "quiesce":
            return now_ns() - began
        try:
            self._pin.set_keep("keep")
        except PinError as err:
            self.tell("device-not-kept", message=str(err))
        return now_ns() - began

    def freeze(self) -> None:
        """Stop reading the ring. The device continues: what it does from now on lands without the
        agent.

        :raises: one of :data:`ERRORS`.
        """
        self._halt()
        if self.spec.tier == "quiesce":
            self._job.rest()
        else:
            self._job.leave()
        if self._job.account is not None:
            self.tell("device-frozen", account=self._job.account.to_json())
        if self.spec.tier == "quiesce":
            self._let_go()

    def thaw(self) -> None:
        """Undo ``freeze``."""
        if self._vfio is None:
            try:
                self._resume()
            except ERRORS as err:
                self.error = f"does not continue: {err}"
                self.tell("device-failed", message=self.error)
                return
        self._poll()

    def _let_go(self) -> None:
        """Close the device, which unmaps everything and resets it; its memory stays."""
        self._job.close()
        for part in (self._bar, self._vfio):
            if part is not None:
                part.close()
        self._bar = self._vfio = None

    def _resume(self) -> None:
        """Start it again with the content of its memory."""
        assert self._memory is not None
        self._job.find(self._memory)
        self._job.resume(self._open_enabled())

    def abandon(self) -> None:
        """Undo ``prepare``."""
        if self._pin.keep_state() == "kept":
            self._pin.set_keep("none")
        self.release()

    # --- incoming

    def restore(self, luo: Mechanism) -> tuple[int, int]:
        """Take it over from the previous kernel; return tokens retrieved and the time it took, ns.

        :raises: one of :data:`ERRORS`; nothing is undone, because the state is evidence.
        """
        began = now_ns()
        self.session = luo.retrieve(self.spec.session)
        self._fd = self.session.retrieve(TOKEN_RING)
        elapsed = now_ns() - began
        size = os.fstat(self._fd).st_size
        if size != self.size:
            raise RingError(f"the device's memory has {size} bytes")
        self._memory = mmap(self._fd, size)
        if self.spec.tier == "quiesce":
            self._resume()
            self.tell("device-adopted", keep=None)
            self._poll()
            return self.session.tokens, elapsed
        self._job.find(self._memory)
        if self.spec.fault == "reset-device":
            self.spec.fault = ""
            from .fault_tools import reset

            reset(self, self._pin)
        # Before this kernel touches the device: only the device itself did this.
        landed = self._job.landed()
        self.tell(
            "device-landed",
            **vars(landed),
            keep=self._pin.keep_state(),
            command=self._read_command(),
        )
        if self._pin.keep_state() != "incoming":
            state = self._pin.keep_state() or "unknown to this kernel"
            raise PinError(
                f"device {self.spec.bdf} did not come through the kexec: its state is"
                f" '{state}'{kernel_said('keep-dma: ')}"
            )
        self._job.adopt(self._open(self._pin.take()))
        self.tell("device-adopted", keep=self._pin.keep_state())
        self._poll()
        return self.session.tokens, elapsed

    def _read_command(self) -> int | None:
        """Read the PCI command register through sysfs, which touches nothing."""
        try:
            with open(f"/sys/bus/pci/devices/{self.spec.bdf}/config", "rb") as file:
                return int.from_bytes(file.read(6)[4:6], "little")
        except OSError:
            return None

    # --- either

    def release(self) -> None:
        """Close the session: an outgoing one is dropped, an incoming one finished."""
        session, self.session = self.session, None
        if session is not None:
            session.let_go()

    def frames(self) -> tuple[int, list[int]]:
        """Return this host's view of its mappings: the first IOVA, and the frame of each page.

        :raises OSError: pagemap cannot be read.
        """
        return IOVA + RING_AT, page_frames(self._fd, self.size)[RING_AT // PAGE_BYTES :]

    # --- faults

    def map_unpreserved(self) -> None:
        """Map memory that this kernel does not preserve; for a fault."""
        if self._vfio is None:
            raise VfioError(f"device '{self.spec.name}' is not open")
        fd = os.memfd_create("lu-unpreserved", os.MFD_CLOEXEC)
        os.ftruncate(fd, PAGE_BYTES)
        self._stray = mmap(fd, PAGE_BYTES)
        mapping = Mapping(mapping_start(fd, PAGE_BYTES), STRAY_IOVA, PAGE_BYTES)
        os.close(fd)
        self._vfio.map_memory(mapping)

    def release_page(self) -> None:
        """Free a page of the memory that the device may write to; for a fault."""
        from ..base.fault_tools import punch_hole, report

        offset = self._job.size - PAGE_BYTES
        before = os.fstat(self._fd).st_blocks
        punch_hole(self._fd, offset, PAGE_BYTES)
        after = os.fstat(self._fd).st_blocks
        where = f"offset {offset:#x} of the device's memory"
        told = report(
            "release-page", "blocks of 512 bytes that are allocated", where, before, after
        )
        self.tell("struck", **told)

    def status(self) -> dict[str, object]:
        """Return its state. ``account`` is None when there is no memory."""
        account = self._job.account
        return {
            "bdf": self.spec.bdf,
            "driver": self._pin.driver,
            "keep": self._pin.keep_state(),
            "error": self.error,
            "account": account.to_json() if account is not None else None,
        }


def _scatter(memory: mmap, first: int) -> None:
    """Have pages from ``first`` on allocated in an order that leaves no two of them together."""
    # of the whole: a mapping that is cut in two is not found in /proc/self/maps
    memory.madvise(MADV_NOHUGEPAGE)
    pages = (len(memory) - first) // PAGE_BYTES
    stride = _STRIDE
    while gcd(stride, pages) > 1:
        stride += 1
    for count in range(pages):
        memory[first + count * stride % pages * PAGE_BYTES] = 0


def start_devices(raw: object, emit: Emit, taken: set[str]) -> dict[str, Device]:
    """Start all devices of a list of specs.

    :param taken: addresses of devices that guests have.
    :raises SpecError: a spec is wrong; or one of :data:`ERRORS`: nothing is left started then.
    """
    if not isinstance(raw, list):
        raise SpecError("'devices' must be a list")
    specs = [DeviceSpec(item) for item in raw]
    started: dict[str, Device] = {}
    try:
        for spec in specs:
            if spec.name in started:
                raise SpecError(f"two devices are named '{spec.name}'")
            device = Device(spec, emit)
            device.start(taken | {other.spec.bdf for other in started.values()})
            started[spec.name] = device
    except BaseException:
        stop_devices(started)
        raise
    return started


def stop_devices(devices: dict[str, Device]) -> dict[str, object]:
    """Give all back; return the driver of each, or what went wrong."""
    said: dict[str, object] = {}
    for name, device in devices.items():
        try:
            said[name] = {"driver": device.stop(), "error": None}
        except ERRORS as err:
            said[name] = {"driver": None, "error": str(err)}
    devices.clear()
    return said
