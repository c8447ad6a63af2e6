# SPDX-License-Identifier: Apache-2.0
"""The work of a device in its memory, one kind of job per kind of device.

All keep their account in the first 64 KiB of their memory, which the device cannot reach, so that
the next kernel's agent continues the count.
"""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING
from .nic import REGISTERS, Nic
from .ring import DESCRIPTOR_BYTES, RING_AT, Account, Landed, Ring, RingError, size_for
from .vfio import JobError

if TYPE_CHECKING:
    from mmap import mmap

    from .devices import DeviceSpec
    from .vfio import Bar

#: exceptions of a job
ERRORS = (JobError, RingError)


class Job:
    """One device's work. Called by one thread at a time."""

    #: what it was given by ``lay_out`` or ``find``
    _memory: mmap
    _registers: Bar | None = None
    #: the account of its frames; None: there is no memory
    account: Account | None = None

    def __init__(self, spec: DeviceSpec, iova: int, entries: int, size: int) -> None:
        """:param entries: of the account.
        :param size: bytes of memory it needs, whole pages.
        """
        self._spec = spec
        self._iova = iova
        self._entries = entries
        self.size = size

    def lay_out(self, memory: mmap) -> None:
        """Begin with memory that is all zeros."""
        self._memory = memory
        self.account = Account(self._entries, self._spec.stream)
        self._store()

    def _store(self) -> None:
        """Write the account into the memory."""
        assert self.account is not None
        data = self.account.encode()
        self._memory[: len(data)] = data

    def find(self, memory: mmap) -> None:
        """Take over the memory that the previous kernel's agent left.

        :raises RingError: its content is not valid.
        """
        raise NotImplementedError

    def start(self, bar: mmap) -> None:
        """Reset the device and set it to work.

        :raises JobError: it does not start.
        """
        raise NotImplementedError

    def adopt(self, bar: mmap) -> None:
        """Continue with a device that has been at work all the time.

        :raises JobError: it has not.
        """
        raise NotImplementedError

    def poll(self) -> None:
        """Enter what the device has done since the last time, and give it more to do."""
        raise NotImplementedError

    def leave(self) -> None:
        """Do the last work before the ring goes unread."""

    def rest(self) -> None:
        """Stop the device so that :meth:`resume` can continue from its state."""
        raise NotImplementedError

    def resume(self, bar: mmap) -> None:
        """Set a device to work again that was at rest and was reset since.

        :raises JobError: it does not start.
        """
        raise NotImplementedError

    def landed(self) -> Landed:
        """Return what the device has finished and what was not entered yet; change nothing."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop the device."""

    def close(self) -> None:
        """Release memory and registers, so that they can be unmapped."""
        if self._registers is not None:
            self._registers.close()
        self._registers = self.account = None


class Receive(Job):
    """A network card that receives frames into a ring."""

    _ring: Ring | None = None
    _registers: Nic | None = None

    def __init__(self, spec: DeviceSpec, iova: int) -> None:
        super().__init__(spec, iova, spec.entries, size_for(spec.entries))

    def lay_out(self, memory: mmap) -> None:
        """Make a new ring."""
        self._ring = Ring.create(memory, self._entries, self._spec.stream, self._iova)
        self.account = self._ring.account

    def find(self, memory: mmap) -> None:
        """Take the ring over.

        :raises RingError: there is none with this number of descriptors.
        """
        self._ring = Ring.find(memory, self._iova)
        self.account = self._ring.account
        if self.account.entries != self._entries:
            raise RingError(f"a ring of {self.account.entries} descriptors")

    def start(self, bar: mmap) -> None:
        """Reset the card and let it receive into the ring."""
        assert self._ring is not None
        self._registers = Nic(self._spec.kind, bar)
        length = self._entries * DESCRIPTOR_BYTES
        self._registers.start(self._iova + RING_AT, length, self._ring.tail)

    def adopt(self, bar: mmap) -> None:
        """Continue with a card that has been receiving.

        :raises JobError: its receiver or its link is off.
        """
        assert self._ring is not None
        self._registers = Nic(self._spec.kind, bar)
        if not self._registers.is_receiving():
            raise JobError("receiver or link is off")
        # Always: frames without room wait for it, and so does a device that has no new tail.
        self._registers.set_tail(self._ring.tail)

    def rest(self) -> None:
        """Stop the card and enter what had arrived."""
        self.stop()
        self.poll()  # what had arrived by then

    def resume(self, bar: mmap) -> None:
        """Start at the first descriptor, as the reset card does."""
        assert self._ring is not None
        self._ring.rewind()
        self.start(bar)

    def poll(self) -> None:
        """Enter the frames that arrived, and return their descriptors to the card."""
        ring, nic = self._ring, self._registers
        while ring is not None and nic is not None and ring.poll():
            nic.set_tail(ring.tail)

    def landed(self) -> Landed:
        """Return the frames in the ring that were not entered yet."""
        assert self._ring is not None
        return self._ring.landed()

    def stop(self) -> None:
        """Stop receiving."""
        if self._registers is not None:
            self._registers.stop()

    def close(self) -> None:
        """Release registers and ring."""
        super().close()
        if self._ring is not None:
            self._ring.close()
        self._ring = None


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
