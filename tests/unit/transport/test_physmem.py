# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.core.units import PhysAddr
from liveupdate.transport.physmem import (
    MtreeError,
    NotRam,
    PhysMem,
    RamRange,
    digest_selected,
    parse_mtree,
)

PAGE = 4096
GAP_PAGES = 1000
LOW_PAGES, HIGH_PAGES = 300, 400

# Cut from `info mtree -f` of QEMU 10.0.2, q35, 6 GiB, after the firmware ran
MTREE = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): hostram
  00000000000c0000-00000000000cafff (prio 0, rom): hostram @00000000000c0000
  00000000000cb000-00000000000cdfff (prio 0, ram): hostram @00000000000cb000
  00000000000ce000-00000000000effff (prio 0, rom): hostram @00000000000ce000
  00000000000f0000-00000000000fffff (prio 0, rom): hostram @00000000000f0000
  0000000000100000-000000007fffffff (prio 0, ram): hostram @0000000000100000
  00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-00000001ffffffff (prio 0, ram): hostram @0000000080000000

"""


def test_shadow_regions_are_merged_and_high_memory_has_its_offset() -> None:
    assert parse_mtree(MTREE, "hostram") == (
        RamRange(start=PhysAddr(0), size_bytes=2 << 30, offset=0),
        RamRange(start=PhysAddr(4 << 30), size_bytes=4 << 30, offset=2 << 30),
    )


def test_another_view_is_not_taken() -> None:
    other = MTREE.replace('AS "memory"', 'AS "cpu-smm-0"')
    with pytest.raises(MtreeError, match="no view"):
        parse_mtree(other, "hostram")


def test_unknown_backend_names_what_there_is() -> None:
    with pytest.raises(MtreeError, match="pc.bios"):
        parse_mtree(MTREE, "mem0")


def test_overlap_is_refused() -> None:
    text = MTREE.replace("0000000100000000-00000001ffffffff", "0000000070000000-00000001ffffffff")
    with pytest.raises(MtreeError, match="overlaps"):
        parse_mtree(text, "hostram")


@given(st.integers(0, len(MTREE)))
def test_a_cut_answer_never_gives_more_than_the_whole(length: int) -> None:
    whole = sum(item.size_bytes for item in parse_mtree(MTREE, "hostram"))
    try:
        found = parse_mtree(MTREE[:length], "hostram")
    except MtreeError:
        return
    assert sum(item.size_bytes for item in found) <= whole


@given(st.text(max_size=300))
def test_nonsense_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(MtreeError):
        parse_mtree(
            'FlatView #0\n AS "memory", root: system\n' + text.replace("hostram", ""), "hostram"
        )


@pytest.fixture(scope="module")
def memory() -> Iterator[PhysMem]:
    """Low memory, a hole, high memory; page N of the memfd starts with N."""
    pages = LOW_PAGES + HIGH_PAGES
    descriptor = os.memfd_create("test")
    for page in range(pages):
        os.pwrite(descriptor, struct.pack("<Q", page) * (PAGE // 8), page * PAGE)
    ranges = (
        RamRange(start=PhysAddr(0), size_bytes=LOW_PAGES * PAGE, offset=0),
        RamRange(
            start=PhysAddr((LOW_PAGES + GAP_PAGES) * PAGE),
            size_bytes=HIGH_PAGES * PAGE,
            offset=LOW_PAGES * PAGE,
        ),
    )
    with PhysMem(descriptor, pages * PAGE, ranges) as memory:
        os.close(descriptor)
        yield memory


def page_of(pfn: int) -> bytes:
    """What is in a page, found without the class under test."""
    number = pfn if pfn < LOW_PAGES else pfn - GAP_PAGES
    return struct.pack("<Q", number) * (PAGE // 8)


def pack(pfns: list[int]) -> bytes:
    return struct.pack(f"<{len(pfns)}Q", *pfns)


def digests(memory: PhysMem, pfns: bytes) -> bytes:
    return digest_selected(memory.select_pages(pfns))


PFNS = st.one_of(
    st.integers(0, LOW_PAGES - 1),
    st.integers(LOW_PAGES + GAP_PAGES, LOW_PAGES + GAP_PAGES + HIGH_PAGES - 1),
)
ALL = [*range(LOW_PAGES), *range(LOW_PAGES + GAP_PAGES, LOW_PAGES + GAP_PAGES + HIGH_PAGES)]


@given(st.lists(PFNS, max_size=80))
def test_digests_of_scattered_pages(memory: PhysMem, pfns: list[int]) -> None:
    expected = [xxhash.xxh3_64_intdigest(page_of(pfn)) for pfn in pfns]
    assert digests(memory, pack(pfns)) == pack(expected)


@given(st.integers(0, len(ALL)), st.integers(0, len(ALL)), st.lists(PFNS, max_size=40))
def test_digests_of_runs_among_scattered_pages(
    memory: PhysMem, first: int, last: int, others: list[int]
) -> None:
    pfns = [*others, *ALL[first:last], *reversed(others), *ALL[first:last]]
    expected = [xxhash.xxh3_64_intdigest(page_of(pfn)) for pfn in pfns]
    assert digests(memory, pack(pfns)) == pack(expected)


@pytest.mark.parametrize("pfn", [LOW_PAGES, LOW_PAGES + GAP_PAGES + HIGH_PAGES, 2**52, 2**64 - 1])
def test_a_page_that_is_no_ram_is_refused(memory: PhysMem, pfn: int) -> None:
    for pfns in ([pfn], [0, pfn], [*range(40), pfn]):
        with pytest.raises(NotRam):
            digests(memory, pack(pfns))
    with pytest.raises(NotRam):
        memory.read(pfn * PAGE, PAGE)


def test_a_run_across_the_hole_is_refused(memory: PhysMem) -> None:
    with pytest.raises(NotRam):
        digests(memory, pack(list(range(LOW_PAGES - 16, LOW_PAGES + 16))))
    with pytest.raises(NotRam):
        memory.read((LOW_PAGES - 1) * PAGE, 2 * PAGE)


def test_half_a_frame_number_is_refused(memory: PhysMem) -> None:
    with pytest.raises(ValueError, match="whole number"):
        digests(memory, b"\0" * 7)


def test_one_flipped_bit_changes_that_digest_and_no_other(memory: PhysMem) -> None:
    before = digests(memory, pack(ALL))
    address = (LOW_PAGES + GAP_PAGES + 7) * PAGE + 123
    memory.flip_bit(address, 5)
    after = digests(memory, pack(ALL))
    memory.flip_bit(address, 5)
    changed = [
        at for at in range(len(ALL)) if before[at * 8 : at * 8 + 8] != after[at * 8 : at * 8 + 8]
    ]
    assert changed == [LOW_PAGES + 7]
    assert digests(memory, pack(ALL)) == before


def test_pages_are_live_views(memory: PhysMem) -> None:
    with memory.view(3 * PAGE, PAGE) as view:
        assert bytes(view) == page_of(3)
        memory.flip_bit(3 * PAGE, 0)
        assert view[0] == 3 ^ 1
        memory.flip_bit(3 * PAGE, 0)


def test_a_range_beyond_the_memfd_is_refused() -> None:
    descriptor = os.memfd_create("small")
    os.ftruncate(descriptor, PAGE)
    beyond = RamRange(start=PhysAddr(0), size_bytes=2 * PAGE, offset=0)
    with pytest.raises(MtreeError, match="beyond"):
        PhysMem(descriptor, PAGE, (beyond,))
    os.close(descriptor)


def test_pages_that_begin_with_a_word_are_found_and_holes_are_not_filled() -> None:
    size = 4096 * PAGE
    fd = os.memfd_create("t")
    try:
        os.ftruncate(fd, size)
        ranges = (
            RamRange(start=PhysAddr(0), size_bytes=size // 2, offset=0),
            RamRange(start=PhysAddr(4 << 30), size_bytes=size // 2, offset=size // 2),
        )
        word = 0x1122334455667788
        with PhysMem(fd, size, ranges) as ram:
            assert ram.find_pages(fd, word) == []
            ram.write(PhysAddr(7 * PAGE), struct.pack("<Q", word))
            ram.write(PhysAddr(9 * PAGE + 8), struct.pack("<Q", word))
            ram.write(PhysAddr((4 << 30) + 5 * PAGE), struct.pack("<Q", word))
            assert ram.find_pages(fd, word) == [7 * PAGE, (4 << 30) + 5 * PAGE]
        assert os.fstat(fd).st_blocks * 512 <= 3 * PAGE
    finally:
        os.close(fd)
