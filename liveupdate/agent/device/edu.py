# SPDX-License-Identifier: Apache-2.0
"""QEMU's edu device, made to copy numbered frames through its buffer and back into memory.

Registers: docs/specs/edu.rst of QEMU. One transfer takes it 100 ms, and it does one at a time.
"""

from __future__ import annotations

import time

from .jobs import Job, JobError
from .ring import FRAME_BYTES, RING_AT, Account, Landed, RingError, decode_account, make_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap

    from .devices import DeviceSpec

_ID = 0x00
_SOURCE = 0x80
_TARGET = 0x88
_COUNT = 0x90
_COMMAND = 0x98
#: where its own buffer lies in its address space
_BUFFER = 0x40000
_RUN = 1
_TO_MEMORY = 2

#: where the frames that it fetches lie, and where it puts them, one page for each
SOURCE_AT = RING_AT
TARGET_AT = RING_AT + 4096
#: a frame that did not come back leaves an old one in its place, and is noticed by its number
SLOTS = 8
SLOT_BYTES = 4096
#: a transfer takes 100 ms of the machine's time
TRANSFER_S = 5.0
_WAIT_S = 0.005


class Edu:
    """The registers in a mapped BAR 0."""

    def __init__(self, bar: mmap) -> None:
        self._view = memoryview(bar)
        self._registers = self._view.cast("I")
        if self._registers[_ID] & 0xFFFF != 0x00ED:
            found = self._registers[_ID]
            self.close()
            raise JobError(f"identification {found:#x} is not an edu's")

    def close(self) -> None:
        """Release the registers, so that they can be unmapped."""
        self._registers.release()
        self._view.release()

    @property
    def is_busy(self) -> bool:
        """Whether a transfer is in progress."""
        return bool(self._registers[_COMMAND >> 2] & _RUN)

    def wait(self) -> None:
        """Wait for the end of a transfer.

        :raises JobError: it does not end.
        """
        end = time.monotonic() + TRANSFER_S
        while self.is_busy:
            if time.monotonic() > end:
                raise JobError(f"waited {TRANSFER_S:g} s for a transfer to end")
            time.sleep(_WAIT_S)

    def fetch(self, iova: int) -> None:
        """Start to copy a frame from memory."""
        self._start(iova, _BUFFER, 0)

    def put(self, iova: int) -> None:
        """Start to copy it to memory."""
        self._start(_BUFFER, iova, _TO_MEMORY)

    def _start(self, source: int, target: int, direction: int) -> None:
        self._registers[_SOURCE >> 2] = source
        self._registers[_TARGET >> 2] = target
        self._registers[_COUNT >> 2] = FRAME_BYTES
        self._registers[_COMMAND >> 2] = _RUN | direction


class Copy(Job):
    """Sends frame after frame through the device. Over the kexec one frame is on its way to memory.

    ``Account.next`` is 1 while the device writes the expected frame to memory, else it fetches it.
    """

    size = TARGET_AT + SLOTS * SLOT_BYTES

    def __init__(self, spec: DeviceSpec, iova: int) -> None:
        self._spec = spec
        self._iova = iova
        self._memory: mmap | None = None
        self._account: Account | None = None
        self._edu: Edu | None = None

    @property
    def account(self) -> Account | None:
        """The account of the frames that came back; None: there is no memory."""
        return self._account

    def lay_out(self, memory: mmap) -> None:
        """Begin with memory that is all zeros."""
        self._memory = memory
        self._account = Account(SLOTS, self._spec.stream)
        self._store()

    def find(self, memory: mmap) -> None:
        """Take the account over.

        :raises RingError: no frame was on its way, or the account is damaged.
        """
        self._memory = memory
        self._account = decode_account(memory[:RING_AT])
        if (self._account.entries, self._account.next) != (SLOTS, 1):
            raise RingError("no frame was left on its way")

    def start(self, bar: mmap) -> None:
        """Start with the first frame."""
        self._edu = Edu(bar)
        self._fetch()

    def adopt(self, bar: mmap) -> None:
        """Wait for the transfer that the previous kernel's agent started."""
        self._edu = Edu(bar)
        self._edu.wait()

    def poll(self) -> None:
        """Enter a frame that came back, and start the next transfer."""
        edu, account = self._edu, self._account
        if edu is None or account is None or edu.is_busy:
            return
        if not account.next:
            self._put()
            return
        account.take(self._frame())
        self._fetch()

    def leave(self) -> None:
        """Start the transfer of one frame to memory and leave it in progress."""
        edu, account = self._edu, self._account
        assert edu is not None
        assert account is not None
        edu.wait()
        if account.next:
            account.take(self._frame())
            self._fetch()
            edu.wait()
        self._put()

    def rest(self) -> None:
        """Let the last frame come back, then stop."""
        self.leave()
        self.stop()

    def resume(self, bar: mmap) -> None:
        """Use the device again; the last frame has come back and is entered by the next poll."""
        # the last frame has come back and is not entered yet
        self._edu = Edu(bar)

    def landed(self) -> Landed:
        """Return whether the frame that was on its way is in memory."""
        assert self._account is not None
        found = Landed()
        probe = Account(SLOTS, self._spec.stream)
        probe.expected = self._account.expected
        probe.take(self._frame())
        if probe.received and not probe.missing:
            found.found = 1
            found.first = found.last = self._account.expected
        return found

    def stop(self) -> None:
        """Wait for the end of the transfer in progress."""
        if self._edu is not None:
            self._edu.wait()

    def close(self) -> None:
        """Release registers and memory."""
        if self._edu is not None:
            self._edu.close()
        self._edu = self._account = self._memory = None

    def _store(self) -> None:
        assert self._memory is not None
        assert self._account is not None
        data = self._account.encode()
        self._memory[: len(data)] = data

    def _slot(self) -> int:
        assert self._account is not None
        return TARGET_AT + self._account.expected % SLOTS * SLOT_BYTES

    def _frame(self) -> bytes:
        assert self._memory is not None
        at = self._slot()
        return self._memory[at : at + FRAME_BYTES]

    def _fetch(self) -> None:
        assert self._memory is not None
        assert self._account is not None
        assert self._edu is not None
        frame = make_frame(self._spec.stream, self._account.expected)
        self._memory[SOURCE_AT : SOURCE_AT + FRAME_BYTES] = frame
        self._account.next = 0
        self._store()
        self._edu.fetch(self._iova + SOURCE_AT)

    def _put(self) -> None:
        assert self._account is not None
        assert self._edu is not None
        self._account.next = 1
        self._store()
        self._edu.put(self._iova + self._slot())
