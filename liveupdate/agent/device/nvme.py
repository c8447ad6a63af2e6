# SPDX-License-Identifier: Apache-2.0
"""Just enough of a driver for an NVMe controller to have many reads in flight, by polling.

Block n of the namespace holds frame n of the control host, which also limits how fast they can be
read; so reads that were submitted before a kexec complete all the way through it. Registers,
commands and completions: NVM Express base specification 1.4, chapters 3 to 6.
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct

from ..base.fast_stdlib import TYPE_CHECKING
from .jobs import Job
from .ring import FRAME_BYTES, RING_AT, Landed, RingError, decode_account
from .vfio import Bar, JobError, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    from .devices import DeviceSpec

_CC = 0x14
_CSTS = 0x1C
_AQA = 0x24
_ASQ = 0x28
_ACQ = 0x30
#: submission queue n at twice n, its completion queue behind it; stride 0, as CAP.DSTRD says
_DOORBELLS = 0x1000
_CAP_HIGH = 0x04
_STRIDE = 0xF
#: enabled; entries of 64 and 16 bytes
_CC_ON = 1 | 6 << 16 | 4 << 20
_READY = 1
_FATAL = 2

_CREATE_SQ = 0x01
_CREATE_CQ = 0x05
_READ = 0x02
_CONTIGUOUS = 1
_NAMESPACE = 1

#: dwords 0, 1, 2-3 (reserved), 4-5 (metadata), 6-7 and 8-9 (PRP), 10 to 15
_COMMAND = Struct("<IIQQQQ6I")
_COMMAND_BYTES = 64
_COMPLETION_BYTES = 16
#: command identifier, and status with the phase in bit 0
_OUTCOME = Struct("<HH")
_OUTCOME_AT = 12

#: queues and buffers in memory
_ADMIN_ENTRIES = 64
_ADMIN_SQ_AT = RING_AT
_ADMIN_CQ_AT = RING_AT + 4096
_SQ_AT = RING_AT + 8192
ENTRIES_MAX = 1024
_CQ_AT = _SQ_AT + ENTRIES_MAX * _COMMAND_BYTES
_DATA_AT = _CQ_AT + ENTRIES_MAX * _COMPLETION_BYTES
_DATA_BYTES = 512
#: blocks of the namespace that hold a frame, read round and round
BLOCKS = 4096

#: not in the account: reads submitted, completed and entered; and which slots are done
_STATE_AT = 4096
_STATE = Struct("<QQQI")
_COUNTS = Struct("<QQQ")
_DONE_AT = 8192
_DONE, _FAILED = 1, 2

READY_S = 5.0


class Nvme(Bar):
    """The registers of a controller."""

    def __init__(self, bar: mmap) -> None:
        super().__init__(bar)
        if self.read(_CAP_HIGH) & _STRIDE:
            self.close()
            raise JobError("doorbells with a stride of their own")

    @property
    def is_ready(self) -> bool:
        """Whether the controller is ready (CSTS.RDY)."""
        return self.read(_CSTS) & (_READY | _FATAL) == _READY

    def _wait(self, wanted: int) -> None:
        what = f"the controller to be ready: {wanted}"
        wait_for(what, lambda: self.read(_CSTS) & _READY == wanted, READY_S)

    def start(self, iova: int) -> None:
        """Reset it and give it its admin queues.

        :raises JobError: it does not become ready.
        """
        self.stop()
        self.write(_AQA, _ADMIN_ENTRIES - 1 << 16 | _ADMIN_ENTRIES - 1)
        for register, at in ((_ASQ, _ADMIN_SQ_AT), (_ACQ, _ADMIN_CQ_AT)):
            self.write(register, iova + at & 0xFFFFFFFF)
            self.write(register + 4, iova + at >> 32)
        self.write(_CC, _CC_ON)
        self._wait(_READY)

    def ring(self, queue: int, tail: int) -> None:
        """Ring the doorbell of a submission queue: commands up to ``tail`` are there."""
        self.write(_DOORBELLS + 8 * queue, tail)

    def take(self, queue: int, head: int) -> None:
        """Ring the doorbell of a completion queue: completions up to ``head`` were taken."""
        self.write(_DOORBELLS + 8 * queue + 4, head)

    def stop(self) -> None:
        """Disable it, which ends all commands."""
        self.write(_CC, 0)
        self._wait(0)


class Read(Job):
    """Keeps as many reads in flight as the queue holds.

    Read n asks for block n modulo :data:`BLOCKS`, into slot n modulo the queue's size, which is
    also its command identifier. Completions may overtake each other; they are entered in order.
    """

    _registers: Nvme | None = None

    def __init__(self, spec: DeviceSpec, iova: int) -> None:
        entries = min(spec.entries, ENTRIES_MAX)
        super().__init__(spec, iova, entries, -(-(_DATA_AT + entries * _DATA_BYTES) // 4096) * 4096)
        self._issued = self._completed = self._entered = 0

    def find(self, memory: mmap) -> None:
        """Take account and reads in flight over.

        :raises RingError: their checksum or their number does not match.
        """
        self._memory = memory
        self.account = decode_account(memory[:RING_AT])
        issued, completed, entered, crc = _STATE.unpack_from(memory, _STATE_AT)
        done = memory[_DONE_AT : _DONE_AT + self._entries]
        if crc != _checksum((issued, completed, entered), done):
            raise RingError("checksum of the reads in flight does not match")
        if self.account.entries != self._entries:
            raise RingError(f"a queue of {self.account.entries} entries")
        self._issued, self._completed, self._entered = issued, completed, entered

    def start(self, bar: mmap) -> None:
        """Reset the controller, create its queues and submit the first reads."""
        self._registers = Nvme(bar)
        self._registers.start(self._iova)
        size = self._entries - 1 << 16 | 1
        self._admin(0, _CREATE_CQ, _CQ_AT, size, _CONTIGUOUS)
        self._admin(1, _CREATE_SQ, _SQ_AT, size, 1 << 16 | _CONTIGUOUS)
        self._issue()

    def adopt(self, bar: mmap) -> None:
        """Continue with a controller that has been at work.

        :raises JobError: it is not ready.
        """
        self._registers = Nvme(bar)
        if not self._registers.is_ready:
            raise JobError("the controller is not ready any more")

    def _admin(self, index: int, opcode: int, at: int, size: int, flags: int) -> None:
        """Carry out one of the first admin commands."""
        assert self._registers is not None
        self._put(_ADMIN_SQ_AT, index, opcode, at, size, flags, 0)
        self._registers.ring(0, index + 1)
        where = _ADMIN_CQ_AT + index * _COMPLETION_BYTES + _OUTCOME_AT

        def status() -> int:
            return int(_OUTCOME.unpack_from(self._memory, where)[1])

        wait_for(f"admin command {opcode:#x}", lambda: bool(status() & 1), READY_S)
        self._registers.take(0, index + 1)
        if status() >> 1:
            raise JobError(f"admin command {opcode:#x} ended with status {status() >> 1:#x}")

    def _put(
        self, queue_at: int, index: int, opcode: int, at: int, dword10: int, dword11: int, nsid: int
    ) -> None:
        # dword 12 of a read: one block, which is written as 0
        _COMMAND.pack_into(
            self._memory,
            queue_at + index * _COMMAND_BYTES,
            *(opcode | index << 16, nsid, 0, 0, self._iova + at, 0),
            *(dword10, dword11, 0, 0, 0, 0),
        )

    # --- reads

    def poll(self) -> None:
        """Take completions, enter frames in order, and submit more reads."""
        nvme = self._registers
        if nvme is None:
            return
        seen = self._completed
        for cid, status in self._completions():
            # a read that failed has left no new frame in its slot
            self._memory[_DONE_AT + cid] = _FAILED if status else _DONE
            seen += 1
        if seen == self._completed:
            return
        self._completed = seen
        nvme.take(1, seen % self._entries)
        self._enter()
        self._issue()

    def landed(self) -> Landed:
        """Return the completions that were not taken yet."""
        found = Landed()
        numbers = [self._number(cid) for cid, _status in self._completions()]
        found.found = len(numbers)
        if numbers:
            found.first, found.last = min(numbers), max(numbers)
        found.is_full = self._completed + found.found == self._issued
        return found

    def _completions(self) -> Iterator[tuple[int, int]]:
        """Yield identifier and status of each completion that was not taken yet."""
        for count in range(self._completed, self._issued):
            index, turn = count % self._entries, count // self._entries
            at = _CQ_AT + index * _COMPLETION_BYTES + _OUTCOME_AT
            cid, status = _OUTCOME.unpack_from(self._memory, at)
            # the phase is inverted with each turn
            if status & 1 == turn & 1:
                return
            if cid >= self._entries:
                raise JobError(f"command {cid:#x} was completed and never submitted")
            yield cid, status >> 1

    def _number(self, cid: int) -> int:
        """Return the number of the newest read with that identifier."""
        last = self._issued - 1
        return last - (last - cid) % self._entries

    def _enter(self) -> None:
        """Enter all reads up to the first that is still in flight."""
        assert self.account is not None
        while self._entered < self._issued:
            slot = self._entered % self._entries
            outcome = self._memory[_DONE_AT + slot]
            if not outcome:
                break
            at = _DATA_AT + slot * _DATA_BYTES
            frame = self._memory[at : at + FRAME_BYTES]
            number = self.account.check(frame, is_flawed=outcome == _FAILED)
            if number == self._entered % BLOCKS:
                self.account.enter(self._entered)
            elif number is not None:
                self.account.damaged += 1  # a whole frame, of another block
            self._memory[_DONE_AT + slot] = 0
            self._entered += 1

    def _issue(self) -> None:
        """Submit as many reads as there is room for."""
        assert self._registers is not None
        # a queue that is full would look empty
        while self._issued - self._entered < self._entries - 1:
            slot = self._issued % self._entries
            at = _DATA_AT + slot * _DATA_BYTES
            self._put(_SQ_AT, slot, _READ, at, self._issued % BLOCKS, 0, _NAMESPACE)
            self._issued += 1
        self._store()
        self._registers.ring(1, self._issued % self._entries)

    def _store(self) -> None:
        super()._store()
        done = self._memory[_DONE_AT : _DONE_AT + self._entries]
        counts = (self._issued, self._completed, self._entered)
        _STATE.pack_into(self._memory, _STATE_AT, *counts, _checksum(counts, done))

    def rest(self) -> None:
        """Refuse: reads in flight are not repeated.

        :raises JobError: always.
        """
        raise JobError("reads in flight cannot be given back and repeated")

    def resume(self, bar: mmap) -> None:
        """Refuse: reads in flight are not repeated.

        :raises JobError: always.
        """
        raise JobError("reads in flight cannot be repeated")

    def stop(self) -> None:
        """Disable the controller, which ends all commands."""
        if self._registers is not None:
            self._registers.stop()


def _checksum(counts: tuple[int, int, int], done: bytes) -> int:
    return crc32(_COUNTS.pack(*counts) + done)
