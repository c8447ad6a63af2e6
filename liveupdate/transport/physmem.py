# SPDX-License-Identifier: Apache-2.0
"""The RAM of the host under update, read from outside through a mapping of its memfd.

The ranges of ``info mtree -f`` translate physical addresses into offsets. The host writes at the
same time; data that must be consistent is read under a seqlock. Must not know whose pages they are.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

from liveupdate.core.units import PAGE_BYTES, PhysAddr, format_addr

# "  0000000100000000-000000017fffffff (prio 0, ram): hostram @0000000080000000 KVM"
_RANGE = re.compile(
    r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|rom|romd|nv-ram)\): "
    r"(\S+)(?: @([0-9a-f]{16}))?"
)
# "  00000000fed90000-00000000fed9022f (prio 0, i/o): intel_iommu"
_REGION = re.compile(r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, i/o\): (\S+)")
_ADDRESS_SPACE = re.compile(r'^ AS "([^"]+)"')


Page = ctypes.Array[ctypes.c_char]
"""One page of live memory, not a copy."""


class MtreeError(ValueError):
    """``info mtree -f`` does not say where RAM is."""


class NotRam(ValueError):
    """An address is not (wholly) in the RAM of the host under update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RamRange:
    """``size_bytes`` of RAM at a physical address, at ``offset`` of the memfd."""

    start: PhysAddr
    size_bytes: int
    offset: int

    @property
    def end(self) -> int:
        """The first physical address behind the range."""
        return self.start + self.size_bytes


def parse_mtree(text: str, backend: str) -> tuple[RamRange, ...]:
    """Find where a memory backend lies in the CPUs' physical address space.

    :param text: output of ``info mtree -f``; the view is the one used as address space "memory".
    :param backend: id of the memory backend, which is the name of its region.
    :raises MtreeError: no such view, no such region, or overlapping ranges.
    """
    ranges: list[RamRange] = []
    names: set[str] = set()
    for line in _flat_view(text, "memory"):
        match = _RANGE.match(line)
        if not match:
            continue
        first, last, _kind, name, offset = match.groups()
        names.add(name)
        if name != backend:
            continue
        start, end, at = int(first, 16), int(last, 16) + 1, int(offset or "0", 16)
        if end <= start:
            raise MtreeError(f"'{line.strip()}' ends before it begins")
        if ranges and start < ranges[-1].end:
            raise MtreeError(f"'{line.strip()}' overlaps the range before it")
        previous = ranges[-1] if ranges else None
        if previous and previous.end == start and previous.offset + previous.size_bytes == at:
            # The firmware's shadow regions below 1 MiB cut one range into many.
            ranges[-1] = RamRange(
                start=previous.start, size_bytes=end - previous.start, offset=previous.offset
            )
        else:
            ranges.append(RamRange(start=PhysAddr(start), size_bytes=end - start, offset=at))
    if not ranges:
        seen = ", ".join(sorted(names)) or "none"
        raise MtreeError(f"no RAM named '{backend}' in 'info mtree -f', only {seen}")
    return tuple(ranges)


def find_region(text: str, name: str) -> tuple[PhysAddr, int] | None:
    """Find where a region of registers lies in the CPUs' physical address space.

    :param text: output of ``info mtree -f``.
    :param name: the region's, such as ``intel_iommu``.
    :return: (address, bytes) of its first part, or None.
    :raises MtreeError: there is no view of the CPUs' memory.
    """
    for line in _flat_view(text, "memory"):
        match = _REGION.match(line)
        if match and match[3] == name:
            first, last = int(match[1], 16), int(match[2], 16)
            return PhysAddr(first), last + 1 - first
    return None


def _flat_view(text: str, address_space: str) -> list[str]:
    """Return the lines of the flat view that serves an address space."""
    for view in re.split(r"^FlatView #\d+\s*$", text, flags=re.MULTILINE):
        lines = view.splitlines()
        if any((m := _ADDRESS_SPACE.match(line)) and m[1] == address_space for line in lines):
            return lines
    raise MtreeError(f"no view of address space '{address_space}' in 'info mtree -f'")


class PhysMem:
    """RAM by physical address. A context manager; no view may be held when it ends."""

    def __init__(self, descriptor: int, size_bytes: int, ranges: Sequence[RamRange]) -> None:
        """
        :param descriptor: the memfd; the mapping keeps it alive, the caller may close it.
        :param ranges: of :func:`parse_mtree`, ascending.
        :raises MtreeError: a range reaches beyond the memfd.
        """
        for item in ranges:
            if item.offset + item.size_bytes > size_bytes:
                raise MtreeError(f"RAM at {format_addr(item.start)} reaches beyond the memfd")
        self.ranges = tuple(ranges)
        self._starts = [item.start for item in self.ranges]
        self._map = mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED)
        self._view = memoryview(self._map)
        # An array of pages: taking an element costs a third of what slicing a memoryview costs.
        count = size_bytes // PAGE_BYTES
        self._pages = (ctypes.c_char * PAGE_BYTES * count).from_buffer(self._map)

    def __enter__(self) -> PhysMem:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap. Idempotent. :raises BufferError: views of it are still held."""
        # the array's hold on the mapping ends with its last reference
        self._pages = (ctypes.c_char * PAGE_BYTES * 0)()
        self._view.release()
        self._map.close()

    def offset_of(self, address: PhysAddr | int, size_bytes: int = 1) -> int:
        """Translate a physical address. :raises NotRam: the bytes are not all in one range."""
        found = self._range_of(address)
        if address + size_bytes > found.end:
            raise NotRam(f"{size_bytes} bytes at {format_addr(address)} are not all RAM")
        return found.offset + address - found.start

    def view(self, address: PhysAddr | int, size_bytes: int) -> memoryview:
        """Return live memory, no copy. :raises NotRam:"""
        offset = self.offset_of(address, size_bytes)
        return self._view[offset : offset + size_bytes]

    def read(self, address: PhysAddr | int, size_bytes: int) -> bytes:
        """Copy memory out. :raises NotRam:"""
        with self.view(address, size_bytes) as view:
            return bytes(view)

    def flip_bit(self, address: PhysAddr | int, bit: int) -> None:
        """Flip one bit of one byte; the fault ``flip-bit``. :raises NotRam:"""
        if not 0 <= bit < 8:
            raise ValueError(f"a byte has no bit {bit}")
        with self.view(address, 1) as view:
            view[0] ^= 1 << bit

    def write(self, address: PhysAddr | int, data: bytes) -> None:
        """Overwrite memory; for faults. :raises NotRam:"""
        with self.view(address, len(data)) as view:
            view[:] = data

    def digest(self, pieces: Iterable[tuple[int, int]]) -> str:
        """Return BLAKE2b (16 bytes, hex) of pieces: address and bytes of each. :raises NotRam:"""
        digest = hashlib.blake2b(digest_size=16)
        for address, size_bytes in pieces:
            with self.view(address, size_bytes) as view:
                digest.update(view)
        return digest.hexdigest()

    def find_pages(self, descriptor: int, first_word: int) -> list[PhysAddr]:
        """Find the pages that begin with a u64; pages that were never written are not touched.

        :param descriptor: the memfd.
        """
        found: list[PhysAddr] = []
        for item in self.ranges:
            at, end = item.offset, item.offset + item.size_bytes
            while at < end:
                try:
                    data = os.lseek(descriptor, at, os.SEEK_DATA)
                except OSError:  # ENXIO: nothing but a hole
                    break
                stop = min(end, os.lseek(descriptor, data, os.SEEK_HOLE))
                with self._view[data:stop] as view, view.cast("Q") as words:
                    for page, word in enumerate(words[:: PAGE_BYTES // 8].tolist()):
                        if word == first_word:
                            address = item.start + data - item.offset + page * PAGE_BYTES
                            found.append(PhysAddr(address))
                at = max(stop, at + PAGE_BYTES)
        return found

    def select_pages(self, pfns: bytes) -> list[Page]:
        """Look pages up once, so that :func:`digest_selected` is fast in the blackout.

        About 140 bytes of memory per page. Drop the list before this object is closed.

        :param pfns: u64 LE each.

        :raises NotRam: one of the pages is not RAM of this host.
        """
        if not pfns:
            return []
        return list(map(self._pages.__getitem__, self._page_indexes(_decode_pfns(pfns).tolist())))

    def _page_indexes(self, numbers: list[int]) -> list[int]:
        """Translate frame numbers into page numbers of the memfd. :raises NotRam:"""
        low, high = min(numbers), max(numbers)
        below, above = self._range_of(low * PAGE_BYTES), self._range_of(high * PAGE_BYTES)
        shift = (below.offset - below.start) // PAGE_BYTES
        if below is above:
            # A search for each page would take as long as its digest.
            return numbers if shift == 0 else [number + shift for number in numbers]
        if self.ranges.index(above) - self.ranges.index(below) > 1:
            return [self.offset_of(number * PAGE_BYTES) // PAGE_BYTES for number in numbers]
        last, first = below.end // PAGE_BYTES - 1, above.start // PAGE_BYTES
        if any(last < number < first for number in numbers):
            raise NotRam(f"a page between {format_addr(below.end)} and {format_addr(above.start)}")
        shift_above = (above.offset - above.start) // PAGE_BYTES
        return [number + shift if number <= last else number + shift_above for number in numbers]

    def _range_of(self, address: int) -> RamRange:
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self.ranges[index].end:
            raise NotRam(f"{format_addr(address)} is not RAM of this host")
        return self.ranges[index]


def digest_selected(pages: Iterable[Page]) -> bytes:
    """Return XXH3-64 (seed 0) of each page as u64 LE. Not a line of Python per page."""
    digests: array[int] = array("Q")
    digests.frombytes(b"".join(map(xxhash.xxh3_64_digest, pages)))
    # from xxhash's canonical form, which is big-endian, whatever this host is
    digests.byteswap()
    return digests.tobytes()


def _decode_pfns(pfns: bytes) -> array[int]:
    if len(pfns) % 8:
        raise ValueError(f"{len(pfns)} bytes are not a whole number of 64-bit frame numbers")
    numbers: array[int] = array("Q")
    numbers.frombytes(pfns)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
