# SPDX-License-Identifier: Apache-2.0
"""A receive ring with its buffers and the account of what came in, all in one memfd.

The memfd outlives the kexec, so a ring is found as the device left it, and the account goes on. No
device is known here: who owns the ring tells the device how far it may go.

Layout of the memfd, in bytes: 0 the account; 64 Ki the descriptors; 128 Ki the buffers of 2 KiB.
The device may reach all but the account. Layout of a frame: ``liveupdate/formats/frames.py``.
Descriptors: advanced receive, one buffer (Intel 82576 datasheet, 7.1.4.2).
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct

from ..base.fast_stdlib import TYPE_CHECKING

if TYPE_CHECKING:
    from mmap import mmap

RING_AT = 64 << 10
BUFFERS_AT = 128 << 10
BUFFER_BYTES = 2048
DESCRIPTOR_BYTES = 16
ENTRIES_MAX = (BUFFERS_AT - RING_AT) // DESCRIPTOR_BYTES
#: gaps that are remembered one by one; what is missing is counted beyond them, too
GAPS_MAX = 32

#: descriptor done, in the upper half of a descriptor that was written back
_DONE = 1
#: error bits of the extended error field: bits 20 to 31 of the same word
_ERRORS = 0xFFF00000
_LENGTH_SHIFT = 32

_ETHERTYPE = b"\x88\xb5"
_FRAME_MAGIC = b"LUFR"
_NUMBERS = Struct("<QQ")
_NUMBERS_AT = 18
_CRC = Struct("<I")
_FRAME_LEAST = _NUMBERS_AT + _NUMBERS.size + _CRC.size
#: of frames that are made here or on the control host; others may be longer
FRAME_BYTES = 128

_MAGIC = b"LURING01"
_HEADER = Struct("<8sI")
_FIELDS = Struct("<II9QI")
_GAP = Struct("<QQ")


class RingError(ValueError):
    """A ring whose content is not valid, with the reason."""


def make_frame(stream: int, number: int) -> bytes:
    """Make a frame of the host itself, for a device that copies memory."""
    start = bytes(12) + _ETHERTYPE + _FRAME_MAGIC + _NUMBERS.pack(stream, number)
    padded = start.ljust(FRAME_BYTES - _CRC.size, b"\0")
    return padded + _CRC.pack(crc32(padded))


def size_for(entries: int) -> int:
    """Return the size of the memfd in bytes, whole pages."""
    return -(-(BUFFERS_AT + entries * BUFFER_BYTES) // 4096) * 4096


class Account:
    """The frames received since the beginning. Numbers count from 0; each must arrive once.

    ``received`` counts good frames, repeats left out; ``expected`` is the next number in order.
    """

    COUNTS = ("received", "missing", "duplicate", "reordered", "damaged", "foreign")
    #: what is kept as one u64 each, in this order
    NUMBERS = (*COUNTS, "first", "expected")

    def __init__(self, entries: int, stream: int) -> None:
        self.entries = entries
        self.stream = stream
        #: descriptor that is looked at next
        self.next = 0
        self.received = self.missing = self.duplicate = 0
        self.reordered = self.damaged = self.foreign = 0
        self.first = self.expected = 0
        #: numbers that were skipped, first and last of each run; at most GAPS_MAX of them
        self.gaps: list[tuple[int, int]] = []

    def encode(self) -> bytes:
        """Return the account as bytes, with magic and checksum."""
        numbers = (getattr(self, name) for name in self.NUMBERS)
        body = _FIELDS.pack(self.entries, self.next, self.stream, *numbers, len(self.gaps))
        body += b"".join(_GAP.pack(*gap) for gap in self.gaps)
        return _HEADER.pack(_MAGIC, crc32(body)) + body

    def to_json(self) -> dict[str, object]:
        """Return the fields that the control host needs."""
        counts: dict[str, object] = {name: getattr(self, name) for name in self.COUNTS}
        gaps = [list(gap) for gap in self.gaps]
        return {**counts, "first": self.first, "expected": self.expected, "gaps": gaps}

    def take(self, frame: bytes, *, is_flawed: bool = False) -> None:
        """Enter one frame, as it was in its buffer."""
        number = self.check(frame, is_flawed=is_flawed)
        if number is not None:
            self.enter(number)

    def check(self, frame: bytes, *, is_flawed: bool = False) -> int | None:
        """Return the number of a good frame; count any other, and return None."""
        if frame[12:14] != _ETHERTYPE:
            self.foreign += 1
            return None
        if (
            is_flawed
            or len(frame) < _FRAME_LEAST
            or _CRC.unpack_from(frame, len(frame) - 4)[0] != crc32(frame[:-4])
            or frame[14:18] != _FRAME_MAGIC
        ):
            self.damaged += 1
            return None
        stream, number = _NUMBERS.unpack_from(frame, _NUMBERS_AT)
        if stream != self.stream:
            self.foreign += 1
            return None
        return int(number)

    def enter(self, number: int) -> None:
        """Enter the number of a good frame."""
        if number >= self.expected:
            if number > self.expected:
                self.missing += number - self.expected
                if len(self.gaps) < GAPS_MAX:
                    self.gaps.append((self.expected, number - 1))
            if not self.received:
                self.first = number
            self.received += 1
            self.expected = number + 1
        elif any(low <= number <= high for low, high in self.gaps):
            self.reordered += 1
        else:
            self.duplicate += 1


def decode_account(data: bytes) -> Account:
    """Decode an account.

    :raises RingError: :meth:`Account.encode` did not write it.
    """
    magic, crc = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise RingError(f"magic of the account is {magic!r}, expected {_MAGIC!r}")
    entries, index, stream, *numbers, gaps = _FIELDS.unpack_from(data, _HEADER.size)
    length = _FIELDS.size + min(gaps, GAPS_MAX) * _GAP.size
    body = data[_HEADER.size : _HEADER.size + length]
    if gaps > GAPS_MAX or crc32(body) != crc:
        raise RingError("checksum of the account does not match")
    if not 0 < entries <= ENTRIES_MAX or index >= entries:
        raise RingError(f"descriptor {index} of {entries} cannot be")
    account = Account(entries, stream)
    account.next = index
    for name, value in zip(Account.NUMBERS, numbers, strict=True):
        setattr(account, name, value)
    account.gaps = [_GAP.unpack_from(body, _FIELDS.size + i * _GAP.size) for i in range(gaps)]
    return account


class Landed:
    """What was finished in a ring before this kernel touched its device."""

    def __init__(self) -> None:
        self.found = 0
        self.first: int | None = None
        self.last: int | None = None
        self.is_full = False


class Ring:
    """The ring in mapped memory. One thread at a time."""

    def __init__(self, memory: mmap, account: Account, iova: int) -> None:
        """:param iova: where the device would see offset 0; its mapping begins at RING_AT."""
        self.account = account
        self._memory = memory
        self._iova = iova
        end = RING_AT + account.entries * DESCRIPTOR_BYTES
        self._view = memoryview(memory)
        self._words = self._view[RING_AT:end].cast("Q")

    @classmethod
    def create(cls, memory: mmap, entries: int, stream: int, iova: int) -> Ring:
        """Lay out a new ring: every descriptor has a buffer and waits for a frame."""
        ring = cls(memory, Account(entries, stream), iova)
        for index in range(entries):
            ring._arm(index)
        ring.store()
        return ring

    @classmethod
    def find(cls, memory: mmap, iova: int) -> Ring:
        """Take over the existing ring.

        :raises RingError: there is none, or none that fits.
        """
        account = decode_account(memory[:RING_AT])
        if size_for(account.entries) != len(memory):
            raise RingError(f"{len(memory)} bytes do not hold {account.entries} descriptors")
        return cls(memory, account, iova)

    @property
    def tail(self) -> int:
        """The value for the device's tail register: it may fill all descriptors but this one."""
        return (self.account.next - 1) % self.account.entries

    def close(self) -> None:
        """Release the memory, so that it can be unmapped."""
        self._words.release()
        self._view.release()

    def rewind(self) -> None:
        """Start at the first descriptor again, as a device that was reset does."""
        self.account.next = 0
        for index in range(self.account.entries):
            self._arm(index)
        self.store()

    def store(self) -> None:
        """Write the account into the memory."""
        data = self.account.encode()
        self._memory[: len(data)] = data

    def landed(self) -> Landed:
        """Return what the device has finished; change nothing."""
        found = Landed()
        account = self.account
        index = account.next
        for _ in range(account.entries):
            status = self._words[2 * index + 1]
            if not status & _DONE:
                break
            found.found += 1
            frame = self._frame(index, status)
            if frame[12:18] == _ETHERTYPE + _FRAME_MAGIC and len(frame) >= _FRAME_LEAST:
                number = _NUMBERS.unpack_from(frame, _NUMBERS_AT)[1]
                found.first = number if found.first is None else found.first
                found.last = number
            index = (index + 1) % account.entries
        found.is_full = found.found >= account.entries - 1
        return found

    def poll(self, limit: int = 1024) -> int:
        """Enter finished frames and arm their descriptors again; return how many.

        The device must be told the new :attr:`tail` when there were any.
        """
        account, words = self.account, self._words
        done = 0
        while done < limit:
            index = account.next
            status = words[2 * index + 1]
            if not status & _DONE:
                break
            account.take(self._frame(index, status), is_flawed=bool(status & _ERRORS))
            self._arm(index)
            account.next = (index + 1) % account.entries
            done += 1
        if done:
            self.store()
        return done

    def _frame(self, index: int, status: int) -> bytes:
        at = BUFFERS_AT + index * BUFFER_BYTES
        return self._memory[at : at + min(status >> _LENGTH_SHIFT & 0xFFFF, BUFFER_BYTES)]

    def _arm(self, index: int) -> None:
        # the header address of a one-buffer descriptor is 0, which also clears "done"
        self._words[2 * index] = self._iova + BUFFERS_AT + index * BUFFER_BYTES
        self._words[2 * index + 1] = 0
