# SPDX-License-Identifier: Apache-2.0
"""QEMU's edu device, made to copy numbered frames through its buffer and back into memory.

Registers: docs/specs/edu.rst of QEMU. One transfer takes it 100 ms, and it does one at a time.
"""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING
from .jobs import Job
from .ring import FRAME_BYTES, RING_AT, Account, Landed, RingError, decode_account, make_frame
from .vfio import Bar, JobError, wait_for

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


class Edu(Bar):
    """The registers of an edu."""

    def __init__(self, bar: mmap) -> None:
        super().__init__(bar)
        found = self.read(_ID)
        if found & 0xFFFF != 0x00ED:
            self.close()
            raise JobError(f"identification {found:#x} is not an edu's")

    @property
    def is_busy(self) -> bool:
        """Whether a transfer is in progress."""
        return bool(self.read(_COMMAND) & _RUN)

    def wait(self) -> None:
        """Wait for the end of a transfer.

        :raises JobError: it does not end.
        """
        wait_for("a transfer to end", lambda: not self.is_busy, TRANSFER_S)

    def copy(self, source: int, target: int, direction: int = 0) -> None:
        """Start to copy a frame; ``direction`` is 0 from memory, or _TO_MEMORY."""
        self.write(_SOURCE, source)
        self.write(_TARGET, target)
        self.write(_COUNT, FRAME_BYTES)
        self.write(_COMMAND, _RUN | direction)


class Copy(Job):
    """Sends frame after frame through the device. Over the kexec one frame is on its way to memory.

    ``Account.next`` is 1 while the device writes the expected frame to memory, else it fetches it.
    """

    _registers: Edu | None = None

    def __init__(self, spec: DeviceSpec, iova: int) -> None:
        super().__init__(spec, iova, SLOTS, TARGET_AT + SLOTS * SLOT_BYTES)

    def find(self, memory: mmap) -> None:
        """Take the account over.

        :raises RingError: no frame was on its way, or the account is damaged.
        """
        self._memory = memory
        self.account = decode_account(memory[:RING_AT])
        if (self.account.entries, self.account.next) != (SLOTS, 1):
            raise RingError("no frame was left on its way")

    def start(self, bar: mmap) -> None:
        """Start with the first frame."""
        self._registers = Edu(bar)
        self._fetch()

    def adopt(self, bar: mmap) -> None:
        """Wait for the transfer that the previous kernel's agent started."""
        self._registers = Edu(bar)
        self._registers.wait()

    def poll(self) -> None:
        """Enter a frame that came back, and start the next transfer."""
        edu, account = self._registers, self.account
        if edu is None or account is None or edu.is_busy:
            return
        if not account.next:
            self._put()
            return
        account.take(self._frame())
        self._fetch()

    def leave(self) -> None:
        """Start the transfer of one frame to memory and leave it in progress."""
        edu, account = self._registers, self.account
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
        self._registers = Edu(bar)

    def landed(self) -> Landed:
        """Return whether the frame that was on its way is in memory."""
        assert self.account is not None
        found = Landed()
        probe = Account(SLOTS, self._spec.stream)
        probe.expected = self.account.expected
        probe.take(self._frame())
        if probe.received and not probe.missing:
            found.found = 1
            found.first = found.last = self.account.expected
        return found

    def stop(self) -> None:
        """Wait for the end of the transfer in progress."""
        if self._registers is not None:
            self._registers.wait()

    def _slot(self) -> int:
        assert self.account is not None
        return TARGET_AT + self.account.expected % SLOTS * SLOT_BYTES

    def _frame(self) -> bytes:
        at = self._slot()
        return self._memory[at : at + FRAME_BYTES]

    def _fetch(self) -> None:
        assert self.account is not None
        assert self._registers is not None
        frame = make_frame(self._spec.stream, self.account.expected)
        self._memory[SOURCE_AT : SOURCE_AT + FRAME_BYTES] = frame
        self.account.next = 0
        self._store()
        self._registers.copy(self._iova + SOURCE_AT, _BUFFER)

    def _put(self) -> None:
        assert self.account is not None
        assert self._registers is not None
        self.account.next = 1
        self._store()
        self._registers.copy(_BUFFER, self._iova + self._slot(), _TO_MEMORY)
