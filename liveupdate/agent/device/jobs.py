# SPDX-License-Identifier: Apache-2.0
"""What a device is made to do with its memory, one kind of job per kind of device.

All keep their account in the first 64 KiB of their memory, which the device cannot reach, so that
the next kernel's agent goes on counting where this one stopped.
"""

from __future__ import annotations

from .nic import REGISTERS, Nic, NicError
from .ring import DESCRIPTOR_BYTES, RING_AT, Account, Landed, Ring, RingError, size_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap

    from .devices import DeviceSpec


class JobError(Exception):
    """The device does not do as it is told."""


#: what a job fails with
ERRORS = (JobError, NicError, RingError)


class Job:
    """One device's work. Called by one thread at a time."""

    #: bytes of memory it needs, whole pages
    size: int

    def lay_out(self, memory: mmap) -> None:
        """Begin with memory that is all zeros."""
        raise NotImplementedError

    def find(self, memory: mmap) -> None:
        """Take over what the previous kernel's agent left in memory.

        :raises RingError: it cannot be what it is said to be.
        """
        raise NotImplementedError

    def start(self, bar: mmap) -> None:
        """Reset the device and set it to work.

        :raises JobError, NicError: it does not come up.
        """
        raise NotImplementedError

    def adopt(self, bar: mmap) -> None:
        """Go on with a device that has been at work all the time.

        :raises JobError, NicError: it has not.
        """
        raise NotImplementedError

    def poll(self) -> None:
        """Enter what the device has done since the last time, and give it more to do."""
        raise NotImplementedError

    def leave(self) -> None:
        """Do what has to be done before nobody looks any more."""

    def rest(self) -> None:
        """Make the device stop so that :meth:`resume` can go on where it was."""
        raise NotImplementedError

    def resume(self, bar: mmap) -> None:
        """Set a device to work again that has rested, and was reset since.

        :raises JobError, NicError: it does not come up.
        """
        raise NotImplementedError

    def landed(self) -> Landed:
        """Look at what the device has done that was not entered yet, and change nothing."""
        raise NotImplementedError

    @property
    def account(self) -> Account | None:
        raise NotImplementedError

    def stop(self) -> None:
        """Make the device stop."""

    def close(self) -> None:
        """Let go of memory and registers, so that they can be unmapped."""
        raise NotImplementedError


class Receive(Job):
    """A network card that receives frames into a ring."""

    def __init__(self, spec: DeviceSpec, iova: int) -> None:
        self.size = size_for(spec.entries)
        self._spec = spec
        self._iova = iova
        self._ring: Ring | None = None
        self._nic: Nic | None = None

    def lay_out(self, memory: mmap) -> None:
        self._ring = Ring.create(memory, self._spec.entries, self._spec.stream, self._iova)

    def find(self, memory: mmap) -> None:
        self._ring = Ring.find(memory, self._iova)
        if self._ring.account.entries != self._spec.entries:
            raise RingError(f"a ring of {self._ring.account.entries} descriptors")

    def start(self, bar: mmap) -> None:
        assert self._ring is not None
        self._nic = Nic(self._spec.kind, bar)
        length = self._spec.entries * DESCRIPTOR_BYTES
        self._nic.start(self._iova + RING_AT, length, self._ring.tail)

    def adopt(self, bar: mmap) -> None:
        assert self._ring is not None
        self._nic = Nic(self._spec.kind, bar)
        if not self._nic.is_receiving():
            raise NicError("receiver or link is off")
        # Always: frames that found no room wait for it, and so does a device that was told nothing.
        self._nic.set_tail(self._ring.tail)

    def rest(self) -> None:
        self.stop()
        self.poll()  # what had come in by then

    def resume(self, bar: mmap) -> None:
        assert self._ring is not None
        self._ring.rewind()
        self.start(bar)

    def poll(self) -> None:
        ring, nic = self._ring, self._nic
        while ring is not None and nic is not None and ring.poll():
            nic.set_tail(ring.tail)

    def landed(self) -> Landed:
        assert self._ring is not None
        return self._ring.landed()

    @property
    def account(self) -> Account | None:
        return self._ring.account if self._ring is not None else None

    def stop(self) -> None:
        if self._nic is not None:
            self._nic.stop()

    def close(self) -> None:
        for part in (self._nic, self._ring):
            if part is not None:
                part.close()
        self._nic = self._ring = None


def make_job(spec: DeviceSpec, iova: int) -> Job:
    """Make the job of a device's kind.

    :param iova: where the device sees offset 0 of its memory.
    """
    if spec.kind in REGISTERS:
        return Receive(spec, iova)
    if spec.kind == "edu":
        from .edu import Copy

        return Copy(spec, iova)
    from .nvme import Read

    return Read(spec, iova)
