# SPDX-License-Identifier: Apache-2.0
"""Builders of synthetic IOMMU tables: the writing side, kept apart from the decoders under test.

Written from the specifications' entry layouts, not with the decoders' constants, so that a wrong
constant there shows. :class:`Memory` is a sparse RAM with a page allocator; a builder gives the
addresses that a register would hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from liveupdate.formats.iommu import READ, SUPERVISOR, WRITE, Run

PAGE = 4096
RAM_BYTES = 1 << 32


@dataclass
class Memory:
    """RAM of ``size`` bytes; pages never written read as zeros."""

    size: int = RAM_BYTES
    pages: dict[int, bytearray] = field(default_factory=dict)
    next_page: int = 0x10_0000
    reads: int = 0

    def read(self, phys_addr: int, size: int) -> bytes:
        if phys_addr < 0 or phys_addr + size > self.size:
            raise ValueError(f"{phys_addr:#x} is not in RAM")
        self.reads += 1
        page, offset = phys_addr & -PAGE, phys_addr & PAGE - 1
        if offset + size <= PAGE:
            stored = self.pages.get(page)
            return bytes(stored[offset : offset + size]) if stored else bytes(size)
        first = PAGE - offset
        return self.read(phys_addr, first) + self.read(phys_addr + first, size - first)

    def alloc(self, count: int = 1) -> int:
        """Give the address of ``count`` pages in a row."""
        address = self.next_page
        self.next_page += count * PAGE
        return address

    def put(self, address: int, *words: int) -> None:
        """Write u64s; they must not cross a page."""
        page = self.pages.setdefault(address & -PAGE, bytearray(PAGE))
        struct.pack_into(f"<{len(words)}Q", page, address & PAGE - 1, *words)

    def get(self, address: int) -> int:
        """Read a u64."""
        value: int = struct.unpack("<Q", self.read(address, 8))[0]
        return value


# ---------------------------------------------------------------- VT-d page tables


def second_stage_bits(access: int) -> int:
    return (1 if access & READ else 0) | (2 if access & WRITE else 0)


def first_stage_bits(access: int) -> int:
    return 1 | (2 if access & WRITE else 0) | (0 if access & SUPERVISOR else 4)


@dataclass
class VtdPageTable:
    """A second-stage or first-stage table being built."""

    memory: Memory
    levels: int = 4
    is_first_stage: bool = False
    top: int = 0

    def __post_init__(self) -> None:
        self.top = self.memory.alloc()

    def slot(self, iova: int, level: int) -> int:
        """Give the address of the entry for ``iova`` at ``level``, making tables on the way."""
        table = self.top
        for current in range(self.levels, level, -1):
            address = table + 8 * (iova >> 12 + 9 * (current - 1) & 511)
            entry = self.memory.get(address)
            if not entry & 1:
                entry = self.memory.alloc() | (7 if self.is_first_stage else 3)
                self.memory.put(address, entry)
            table = entry & ~0xFFF & (1 << 52) - 1
        return table + 8 * (iova >> 12 + 9 * (level - 1) & 511)

    def map_page(self, iova: int, phys: int, access: int, page: int) -> None:
        level = {1 << 12: 1, 1 << 21: 2, 1 << 30: 3}[page]
        bits = first_stage_bits(access) if self.is_first_stage else second_stage_bits(access)
        large = 1 << 7 if level > 1 else 0
        self.memory.put(self.slot(iova, level), phys | bits | large)

    def map_pages(self, pages: Iterable[Page]) -> None:
        for page in pages:
            self.map_page(page.iova, page.phys, page.access, page.size)


# ---------------------------------------------------------------- VT-d device tables


@dataclass
class VtdUnit:
    """Root table and below; ``rtaddr`` is the register's value."""

    memory: Memory
    is_scalable: bool = False
    root: int = 0

    def __post_init__(self) -> None:
        self.root = self.memory.alloc()

    @property
    def rtaddr(self) -> int:
        return self.root | (1 << 10 if self.is_scalable else 0)

    def context_address(self, bus: int, devfn: int) -> int:
        word = self.root + 16 * bus
        if self.is_scalable:
            word += 8 * (devfn >> 7)
        entry = self.memory.get(word)
        if not entry & 1:
            entry = self.memory.alloc() | 1
            self.memory.put(word, entry)
        table = entry & ~0xFFF
        return table + (32 * (devfn & 127) if self.is_scalable else 16 * devfn)

    def set_legacy(
        self, bus: int, devfn: int, *, top: int = 0, levels: int = 4, domain: int = 7, kind: int = 0
    ) -> int:
        address = self.context_address(bus, devfn)
        width = levels - 2
        self.memory.put(address, top | kind << 2 | 1, width | domain << 8)
        return address

    def set_directory(self, bus: int, devfn: int, *, size_code: int = 0, rid_pasid: int = 0) -> int:
        """Write a scalable-mode context entry; give the address of its PASID directory."""
        entries = 1 << size_code + 7
        directory = self.memory.alloc(-(-entries * 8 // PAGE))
        address = self.context_address(bus, devfn)
        self.memory.put(address, directory | size_code << 9 | 1, rid_pasid, 0, 0)
        return directory

    def pasid_address(self, directory: int, pasid: int) -> int:
        address = directory + 8 * (pasid >> 6)
        entry = self.memory.get(address)
        if not entry & 1:
            entry = self.memory.alloc() | 1
            self.memory.put(address, entry)
        return (entry & ~0xFFF) + 64 * (pasid & 63)

    def set_pasid(
        self,
        directory: int,
        pasid: int,
        *,
        kind: int = 2,
        top: int = 0,
        levels: int = 4,
        first_top: int = 0,
        first_levels: int = 4,
        domain: int = 9,
    ) -> int:
        address = self.pasid_address(directory, pasid)
        word0 = top | kind << 6 | levels - 2 << 2 | 1
        word2 = first_top | first_levels - 4 << 2
        self.memory.put(address, word0, domain, word2, 0, 0, 0, 0, 0)
        return address


# ---------------------------------------------------------------- AMD-Vi


@dataclass
class AmdPageTable:
    """I/O page tables for host translations; ``is_skipping`` leaves out middle levels."""

    memory: Memory
    mode: int = 4
    is_skipping: bool = False
    top: int = 0

    def __post_init__(self) -> None:
        self.top = self.memory.alloc()

    def slot(self, iova: int, level: int) -> int:
        table, current = self.top, self.mode
        while current > level:
            address = table + 8 * (iova >> 12 + 9 * (current - 1) & 511)
            entry = self.memory.get(address)
            if not entry & 1:
                below = current - 1
                # a level may be skipped if its address bits are zero
                while self.is_skipping and below > level and not iova >> 3 + 9 * below & 511:
                    below -= 1
                entry = self.memory.alloc() | 3 << 61 | below << 9 | 1
                self.memory.put(address, entry)
            table, current = entry & ~0xFFF & (1 << 52) - 1, entry >> 9 & 7
        return table + 8 * (iova >> 12 + 9 * (current - 1) & 511)

    def map_page(self, iova: int, phys: int, access: int, page: int) -> None:
        """Map one page of any power of two; sizes that are no level's own are encoded."""
        shift = page.bit_length() - 1
        level = (shift - 12) // 9 + 1
        slot_bytes = 1 << 12 + 9 * (level - 1)
        entry = phys | access << 61 | 1
        if page != slot_bytes:
            entry |= 7 << 9 | (page >> 1) - PAGE
        for offset in range(0, page, slot_bytes):
            self.memory.put(self.slot(iova + offset, level), entry)

    def map_pages(self, pages: Iterable[Page]) -> None:
        for page in pages:
            self.map_page(page.iova, page.phys, page.access, page.size)


@dataclass
class AmdDeviceTable:
    """A device table for all of a segment; ``base`` is the register's value."""

    memory: Memory
    pages: int = 512
    address: int = 0

    def __post_init__(self) -> None:
        self.address = self.memory.alloc(self.pages)

    @property
    def base(self) -> int:
        return self.address | self.pages - 1

    def set_entry(
        self,
        source_id: int,
        *,
        top: int = 0,
        mode: int = 4,
        access: int = READ | WRITE,
        domain: int = 5,
        flags: int = 3,
    ) -> int:
        address = self.address + 32 * source_id
        self.memory.put(address, top | mode << 9 | access << 61 | flags, domain, 0, 0)
        return address


# ---------------------------------------------------------------- what to map


@dataclass(frozen=True)
class Page:
    """One translation."""

    iova: int
    phys: int
    access: int
    size: int


def merge_pages(pages: Iterable[Page]) -> tuple[Run, ...]:
    """Merge ascending pages into runs, written apart from the decoders' own merging."""
    runs: list[Run] = []
    for page in pages:
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.iova + last.size == page.iova
            and last.phys + last.size == page.phys
            and (last.access, last.page) == (page.access, page.size)
        ):
            runs[-1] = last._replace(size=last.size + page.size)
        else:
            runs.append(Run(page.iova, page.phys, page.size, page.access, page.size))
    return tuple(runs)


@st.composite
def page_lists(
    draw: st.DrawFn,
    *,
    sizes: tuple[int, ...] = (1 << 12, 1 << 21, 1 << 30),
    accesses: tuple[int, ...] = (READ, WRITE, READ | WRITE),
    address_bits: int = 48,
    max_pages: int = 24,
) -> list[Page]:
    """Draw pages in ascending order; some neighbours merge, some do not."""
    pages: list[Page] = []
    end = phys_end = 0
    jumps = (0, 1 << 20, 1 << 21, 1 << 30, 1 << 38, 1 << address_bits - 1)
    for _ in range(draw(st.integers(0, max_pages))):
        size = draw(st.sampled_from(sizes))
        iova = max(end + draw(st.integers(0, 2)) * size, draw(st.sampled_from(jumps)))
        iova = -(-iova // size) * size
        if iova + size > 1 << address_bits:
            break
        phys = phys_end
        if draw(st.booleans()) or phys % size:
            phys = draw(st.integers(0, (1 << 52) // size - 1)) * size
        if phys + size > 1 << 52:
            phys = 0
        access = draw(st.sampled_from(accesses))
        pages.append(Page(iova, phys, access, size))
        end, phys_end = iova + size, phys + size
    return pages
