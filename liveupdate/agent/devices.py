# SPDX-License-Identifier: Apache-2.0
"""A passed-through network device whose frames are received here, through the kexec and beyond.

::

    start            bind vfio-pci, open, map the ring's memfd, start the receiver
    prepare          preserve the memfd, select the device to be kept
    freeze           look no more; the device goes on receiving into the ring
                     --- kexec ---
    restore          count what has landed, open without a reset, map the same, adopt, go on

A thread of its own takes frames out of the ring. The ring's memory, account included, is a memfd.
"""

from __future__ import annotations

import _thread
import os
import time
from mmap import mmap

from .host import last_messages, mapping_start
from .igb import Igb, IgbError
from .lean import Task, now_ns
from .pin import KINDS, Pin, PinError, find
from .ring import BUFFERS_AT, DESCRIPTOR_BYTES, ENTRIES_MAX, RING_AT, Ring, RingError, size_for
from .spec import SpecError, check_name
from .vfio import ACCESS, Mapping, VfioDevice, VfioError, open_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .carrier import Bundle, Carrier
    from .guests import Emit

TOKEN_RING = 1
#: where devices see offset 0 of their ring's memfd; anywhere below 4 GiB and off the MSI window
IOVA = 0x1000_0000
#: of a mapping that a fault makes
STRAY_IOVA = 0x2000_0000
PAGE_BYTES = 4096
#: between two looks into a ring
POLL_S = 0.01
#: a poll thread that does not stop
STOP_S = 5.0

#: what the steps of a device fail with
ERRORS = (PinError, VfioError, IgbError, RingError, OSError)


class DeviceSpec:
    """Validated description of one device; comes from the control host, and out of the manifest."""

    __slots__ = ("access", "bdf", "entries", "fault", "kind", "name", "stream")

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, dict):
            raise SpecError("device: must be an object")
        self.name = check_name(raw.get("name"))
        self.kind = str(raw.get("kind"))
        self.access = str(raw.get("access", ACCESS[0]))
        if self.kind not in KINDS or self.access not in ACCESS:
            raise SpecError(f"device: no kind '{self.kind}' with access '{self.access}'")
        #: "" means the first of its kind that is free
        self.bdf = str(raw.get("bdf") or "")
        if not set("0123456789abcdef:.").issuperset(self.bdf):  # becomes part of a path
            raise SpecError(f"device: 'bdf' is {self.bdf!r}")
        entries = raw.get("entries")
        if not isinstance(entries, int) or not 8 <= entries <= ENTRIES_MAX or entries % 8:
            raise SpecError(f"device: 'entries' is {entries!r}, 8 to {ENTRIES_MAX} in eights")
        self.entries = entries
        #: what a test wants to go wrong in the incoming kernel
        self.fault = str(raw.get("fault") or "")
        stream = raw.get("stream")
        if not isinstance(stream, str) or not stream.isdecimal() or int(stream) >= 1 << 64:
            raise SpecError("device: 'stream' must be a u64 as decimal text")
        self.stream = int(stream)

    def to_json(self) -> dict[str, object]:
        fields = {key: getattr(self, key) for key in self.__slots__}
        return {**fields, "stream": str(self.stream)}

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
        self._ring: Ring | None = None
        self._vfio: VfioDevice | None = None
        self._bar: mmap | None = None
        self._igb: Igb | None = None
        self._stray: mmap | None = None
        self.session: Bundle | None = None
        #: why it does not work; None: it does
        self.error: str | None = None
        #: why its DMA will not go on through the next kexec; None: it will, or nobody asked yet
        self.not_kept: str | None = None
        self._stopping = False
        self._idle = _thread.allocate_lock()
        self._poller: Task | None = None

    def tell(self, event: str, **data: object) -> None:
        self._emit(event, {"device": self.spec.name, **data})

    @property
    def preserved_bytes(self) -> int:
        return size_for(self.spec.entries) if self.session is not None else 0

    # --- first start

    def start(self, taken: set[str]) -> None:
        """Take the device and receive.

        :param taken: addresses of other entries.
        :raises: one of :data:`ERRORS`; the device has its driver again then.
        """
        if not self.spec.bdf:
            self.spec.bdf = find(self.spec.kind, taken)
        self._pin = Pin(self.spec.bdf)
        try:
            self._fd = os.memfd_create(f"lu-ring-{self.spec.name}", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, size_for(self.spec.entries))
            self._memory = mmap(self._fd, size_for(self.spec.entries))
            self._ring = Ring.create(self._memory, self.spec.entries, self.spec.stream, IOVA)
            igb = self._open(self._pin.take())
            if self._vfio is not None:
                self._vfio.enable()
            igb.start(IOVA + RING_AT, self.spec.entries * DESCRIPTOR_BYTES, self._ring.tail)
        except BaseException:
            self.stop()
            raise
        self._poll()

    def _open(self, group: str) -> Igb:
        """Open it with its ring mapped, and map its registers."""
        size = size_for(self.spec.entries)
        address = mapping_start(self._fd, size)
        mapping = Mapping(address + RING_AT, IOVA + RING_AT, size - RING_AT)
        self._vfio = open_device(self.spec.access, self._pin, group, mapping)
        if self._pin.keep_state() == "incoming":
            self._pin.set_keep("adopt")
        self._bar = self._vfio.map_bar()
        self._igb = Igb(self._bar)
        return self._igb

    def stop(self) -> str | None:
        """Stop it, close it, and give it back; return the driver that it has then."""
        self._halt()
        if self._igb is not None and self.error is None:
            self._igb.stop()
        for part in (self._igb, self._bar, self._vfio, self._ring, self._memory):
            if part is not None:
                part.close()
        self._igb = self._bar = self._vfio = self._ring = self._memory = None
        self.release()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return self._pin.give_back() if self.spec.bdf else None

    # --- the thread that empties the ring

    def _poll(self) -> None:
        if self._poller is None:
            self._stopping = False
            self._poller = Task(self._run)

    def _run(self) -> None:
        with self._idle:
            try:
                while not self._stopping:
                    ring, igb = self._ring, self._igb
                    if ring is None or igb is None:
                        return
                    while ring.poll():
                        igb.set_tail(ring.tail)
                    time.sleep(POLL_S)
            except Exception as err:
                self.error = f"receiver: {err!r}"
                self.tell("device-failed", message=self.error)

    def _halt(self) -> None:
        """Stop the thread; the account does not change any more.

        :raises VfioError: it does not stop.
        """
        self._stopping = True
        if not self._idle.acquire(timeout=STOP_S):
            raise VfioError(f"the receiver of '{self.spec.name}' does not stop")
        self._idle.release()
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.join()

    # --- outgoing

    def prepare(self, luo: Carrier) -> int:
        """Preserve the ring, and select the device; return how long the kernel took, ns.

        A kernel that cannot keep DMA is no reason not to go on: what comes of it is observed.

        :raises: one of :data:`ERRORS`.
        """
        began = now_ns()
        self.session = luo.create(self.spec.session)
        self.session.preserve(self._fd, TOKEN_RING)
        self.not_kept = None
        try:
            self._pin.set_keep("keep")
        except PinError as err:
            self.not_kept = str(err)
            self.tell("device-not-kept", message=self.not_kept)
        return now_ns() - began

    def freeze(self) -> None:
        """Look no more. The device goes on: what it receives from now on has landed by itself."""
        self._halt()
        if self._ring is not None:
            self.tell("device-frozen", account=self._ring.account.to_json())

    def thaw(self) -> None:
        """Undo ``freeze``."""
        self._poll()

    def abandon(self) -> None:
        """Undo ``prepare``."""
        if self._pin.keep_state() == "kept":
            self._pin.set_keep("none")
        self.release()

    # --- incoming

    def restore(self, luo: Carrier) -> tuple[int, int]:
        """Take it over from the previous kernel; return tokens retrieved and the time it took, ns.

        :raises: one of :data:`ERRORS`; nothing is undone, as what is left is evidence.
        """
        began = now_ns()
        self.session = luo.retrieve(self.spec.session)
        self._fd = self.session.retrieve(TOKEN_RING)
        elapsed = now_ns() - began
        size = os.fstat(self._fd).st_size
        if size != size_for(self.spec.entries):
            raise RingError(f"the ring's memory has {size} bytes")
        self._memory = mmap(self._fd, size)
        self._ring = Ring.find(self._memory, IOVA)
        if self.spec.fault == "reset-device":
            self.spec.fault = ""
            self._pin.reset()
        # Before anything of this kernel touches the device: nobody but the device did this.
        landed = self._ring.landed()
        self.tell(
            "device-landed",
            found=landed.found,
            first=landed.first,
            last=landed.last,
            is_full=landed.is_full,
            keep=self._pin.keep_state(),
            command=self._read_command(),
        )
        if self._pin.keep_state() != "incoming":
            said = last_messages("keep-dma: ")
            raise PinError(
                f"device {self.spec.bdf} did not come through the kexec: its state is"
                f" '{self._pin.keep_state() or 'unknown to this kernel'}'"
                + (f" ({said})" if said else "")
            )
        igb = self._open(self._pin.take())
        if not igb.is_receiving():
            raise IgbError("receiver or link is off")
        # Always: frames that found no room wait for it, and so does a device that was told nothing.
        igb.set_tail(self._ring.tail)
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
        """Close the session: an outgoing one is given up, an incoming one finished."""
        session, self.session = self.session, None
        if session is not None:
            session.let_go()

    # --- faults

    def map_unpreserved(self) -> None:
        """Map memory that will not outlive this kernel."""
        if self._vfio is None:
            raise VfioError(f"device '{self.spec.name}' is not open")
        fd = os.memfd_create("lu-unpreserved", os.MFD_CLOEXEC)
        os.ftruncate(fd, PAGE_BYTES)
        self._stray = mmap(fd, PAGE_BYTES)
        mapping = Mapping(mapping_start(fd, PAGE_BYTES), STRAY_IOVA, PAGE_BYTES)
        os.close(fd)
        self._vfio.map_memory(mapping)

    def release_page(self) -> None:
        """Take a page out of the ring's memory that the device is allowed to write to."""
        from .faults import punch_hole

        punch_hole(self._fd, BUFFERS_AT, PAGE_BYTES)

    def status(self) -> dict[str, object]:
        """Tell how it is. ``account`` is None when there is no ring."""
        return {
            "bdf": self.spec.bdf,
            "driver": self._pin.driver,
            "keep": self._pin.keep_state(),
            "error": self.error,
            "account": self._ring.account.to_json() if self._ring is not None else None,
        }


def start_devices(raw: object, emit: Emit) -> dict[str, Device]:
    """Start all devices of a list of specs.

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
            device.start({other.spec.bdf for other in started.values()})
            started[spec.name] = device
    except BaseException:
        stop_devices(started)
        raise
    return started


def stop_devices(devices: dict[str, Device]) -> dict[str, object]:
    """Give all back; say which driver each has, or what went wrong."""
    said: dict[str, object] = {}
    for name, device in devices.items():
        try:
            said[name] = {"driver": device.stop(), "error": None}
        except ERRORS as err:
            said[name] = {"driver": None, "error": str(err)}
    devices.clear()
    return said
