# SPDX-License-Identifier: Apache-2.0
"""What the agent can tell of costs, and the fragmenter's arithmetic."""

from __future__ import annotations

import itertools
import os
from array import array
from mmap import PROT_READ, mmap
from pathlib import Path

import pytest

from liveupdate.agent.base.page_pins import PIPE_PAGES, Pins, address_of
from liveupdate.agent.mechanisms.base import Ram, populate
from liveupdate.agent.update import costs, fragment
from liveupdate.core.units import MIB, PAGE_BYTES

BUDDYINFO = """\
Node 0, zone      DMA      1      0      0      1      2      1      1      0      1      1      2
Node 0, zone    DMA32      4      3      9     12      5      2      1      3      2      0    100
"""


def kvm(root: Path, name: str, small: object, huge: object) -> None:
    (root / name).mkdir()
    for size, pages in (("4k", small), ("2m", huge), ("1g", 0)):
        (root / name / f"pages_{size}").write_text(f"{pages}\n")


def test_pages_are_those_of_the_vmm_asked_for(tmp_path: Path) -> None:
    kvm(tmp_path, "123-11", 7, 3)
    kvm(tmp_path, "1234-11", 1000, 1000)
    assert costs.mapped_pages(123, str(tmp_path)) == {"pages_4k": 7, "pages_2m": 3, "pages_1g": 0}


def test_without_a_vm_or_debugfs_nothing_is_told(tmp_path: Path) -> None:
    assert costs.mapped_pages(123, str(tmp_path)) == {}
    assert costs.mapped_pages(123, str(tmp_path / "none")) == {}
    kvm(tmp_path, "123-11", "?", 3)
    assert costs.mapped_pages(123, str(tmp_path)) == {}


def test_memory_exists_after_populate_and_keeps_its_content() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 4 * MIB)
    os.pwrite(fd, b"kept", MIB)
    populate(Ram(fd, 4 * MIB))
    assert os.fstat(fd).st_blocks * 512 == 4 * MIB
    assert os.pread(fd, 4, MIB) == b"kept"
    os.close(fd)


def test_ordinary_memory_can_be_pinned() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, PAGE_BYTES)
    assert costs.can_pin(Ram(fd, PAGE_BYTES)) is True
    os.close(fd)


def test_pins_hold_many_pages_and_let_them_go() -> None:
    pages = PIPE_PAGES + 3
    pins = Pins()
    with mmap(-1, pages * PAGE_BYTES) as area:
        start = address_of(area)
        pins.add([start + page * PAGE_BYTES for page in range(pages)])
        assert pins.count == pages
        pins.close()
    assert pins.count == 0


def test_what_is_not_mapped_cannot_be_pinned() -> None:
    with mmap(-1, PAGE_BYTES) as area:
        start = address_of(area)
    pins = Pins()
    with pytest.raises(OSError, match="vmsplice"):
        pins.add([start])
    pins.close()


def test_free_blocks_of_huge_size_are_counted_over_zones() -> None:
    assert fragment.whole_blocks(BUDDYINFO) == 1 + 2 * 2 + 100 * 2
    assert fragment.whole_blocks("") == 0


def frames(*pfns: int) -> memoryview:
    return memoryview(array("Q", [1 << 63 | pfn if pfn else 0 for pfn in pfns]))


def test_one_page_of_each_block_is_chosen() -> None:
    found = fragment.choose(frames(512, 513, 1024, 0, 1025, 2048), 1.0)
    assert found == [0, 2, 5]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_share_of_blocks_is_spoilt_evenly(share: float) -> None:
    found = fragment.choose(frames(*(512 * block for block in range(1, 1001))), share)
    assert len(found) == pytest.approx(1000 * share, abs=1)
    assert max(b - a for a, b in itertools.pairwise(found)) <= 1 / share + 1


def test_memory_that_stays_whole_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: pages that are let go again spoil nothing."""
    texts = {
        "/proc/buddyinfo": BUDDYINFO,
        "/proc/meminfo": "MemFree: 65536 kB\n",
        "/proc/sys/vm/min_free_kbytes": "45056\n",
    }
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(fragment, "read_text", texts.__getitem__)
    monkeypatch.setattr(fragment, "write_text", lambda *what: written.append(what))
    monkeypatch.setattr(fragment, "TOLERANCE_BYTES", 0)
    monkeypatch.setattr(fragment, "read_pagemap", lambda _start, _size: frames())
    with pytest.raises(fragment.FragmentError, match="205 of 205"):
        fragment.fragment(0.8)
    # what the kernel keeps back is what it was, whatever became of it
    assert [text for _, text in written] == ["8192", "45056\n"]


def test_what_the_kernel_can_use_for_itself_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    free_kb = [200 << 10]

    def meminfo(_path: str) -> str:
        free_kb[0] -= 16 << 10
        return f"MemFree: {free_kb[0]} kB\nCmaFree: {40 << 10} kB\n"

    monkeypatch.setattr(fragment, "read_text", meminfo)
    size = 256 << 20
    with mmap(-1, size) as area:
        taken = fragment._populate(area, size)
    # 200 MiB - 16 each time it is asked - 40 of CMA have to stay above 32 + 4
    assert taken == 7 * (4 << 20)
    assert fragment.spare_bytes("MemFree: 8 kB\n") == 8192


def test_host_without_free_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/buddyinfo": BUDDYINFO, "/proc/meminfo": "MemFree: 1024 kB\n"}
    monkeypatch.setattr(fragment, "read_text", texts.__getitem__)
    with pytest.raises(fragment.FragmentError, match="free"):
        fragment.fragment(0.8)


def test_read_only_probe_does_not_write(tmp_path: Path) -> None:
    fd = os.memfd_create("test")
    os.pwrite(fd, b"guest" + bytes(PAGE_BYTES - 5), 0)
    costs.can_pin(Ram(fd, PAGE_BYTES))
    with mmap(fd, PAGE_BYTES, prot=PROT_READ) as area:
        assert area[:5] == b"guest"
    os.close(fd)


def test_hugetlbfs_that_has_too_few_pages_is_not_timed_and_gets_them_back(tmp_path: Path) -> None:
    """A plain file takes any number: what the kernel gave is read back and does not fit."""
    counter = tmp_path / "nr_hugepages"
    counter.write_text("7\n")
    said = iter(["7", "9"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "read_text", lambda _path: next(said))
        found = costs.try_hugetlb(4 << 21, str(tmp_path))
    assert found == {"wanted_pages": 4, "got_pages": 2, "allocate_ns": None}
    assert counter.read_text() == "7\n"


def test_kernel_without_hugetlbfs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        costs.try_hugetlb(2 << 20, str(tmp_path / "none"))
