# SPDX-License-Identifier: Apache-2.0
"""KHO's map of preserved memory: built as the kernel does, read back, and hostile ones refused."""

from __future__ import annotations

import struct

import pytest

from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats.kho_map import KhoMapError, Preserved, find_map, walk

ROOT = 0x10000


def make_fdt(compatible: bytes = b"kho-v4\0", value: bytes = ROOT.to_bytes(8, "little")) -> bytes:
    """A devicetree as fdt_create() of kho_out_fdt_setup() makes it, with a child node."""
    strings = b"compatible\0preserved-memory-map\0preserved-data\0"

    def prop(name: bytes, data: bytes) -> bytes:
        padded = data + bytes(-len(data) % 4)
        return struct.pack(">3I", 3, len(data), strings.index(name)) + padded

    body = struct.pack(">2I", 1, 0) + prop(b"compatible", compatible)
    body += prop(b"preserved-memory-map", value)
    body += struct.pack(">I", 1) + b"LUO\0" + prop(b"preserved-data", bytes(8))
    body += struct.pack(">I", 2) + struct.pack(">2I", 2, 9)
    head, reserve = 40, bytes(16)
    at = head + len(reserve)
    total = at + len(body) + len(strings)
    header = struct.pack(
        ">10I", 0xD00DFEED, total, at, at + len(body), head, 17, 16, 0, len(strings), len(body)
    )
    return header + reserve + body + strings


class Memory:
    """Pages of a map, filled by the rule of kho_radix_add_key()."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {ROOT: bytearray(PAGE_BYTES)}

    def preserve(self, address: int, order: int) -> None:
        key = 1 << 52 - order | address >> 12 + order
        node = ROOT
        for level in range(5, 0, -1):
            index = key >> (level - 1) * 9 + 15 & 511
            (following,) = struct.unpack_from("<Q", self.pages[node], index * 8)
            if not following:
                following = ROOT + len(self.pages) * PAGE_BYTES
                self.pages[following] = bytearray(PAGE_BYTES)
                struct.pack_into("<Q", self.pages[node], index * 8, following)
            node = following
        self.pages[node][key % 32768 // 8] |= 1 << key % 8

    def read(self, address: int) -> bytes:
        return bytes(self.pages[address])


def test_root_of_the_map_is_found() -> None:
    assert find_map(make_fdt()) == ROOT


def test_pages_of_all_orders_are_counted() -> None:
    memory = Memory()
    for page in range(40):
        memory.preserve(0x1_2345_0000 + page * PAGE_BYTES, 0)
    for block in range(7):
        memory.preserve((5 << 30) + (block << 21), 9)
    memory.preserve(0, 0)
    memory.preserve(1 << 33, 10)
    found = walk(ROOT, memory.read)
    assert found.folios == ((0, 41), (9, 7), (10, 1))
    assert found.size_bytes == 41 * PAGE_BYTES + (7 << 21) + (1 << 22)
    assert found.nodes == len(memory.pages)


def test_empty_map_holds_nothing() -> None:
    assert walk(ROOT, Memory().read) == Preserved(nodes=1, folios=())


@pytest.mark.parametrize(
    ("fdt", "said"),
    [
        (b"", "no devicetree"),
        (bytes(64), "no devicetree"),
        (make_fdt(compatible=b"kho-v5\0"), "no property of the root is 'kho-v4'"),
        (make_fdt(value=bytes(4)), "0 properties"),
        (make_fdt()[:60], "no end"),
        (make_fdt()[:80], "leads out"),
    ],
)
def test_other_devicetrees_are_refused(fdt: bytes, said: str) -> None:
    with pytest.raises(KhoMapError, match=said):
        find_map(fdt)


def test_devicetree_that_is_cut_behind_its_root_is_enough() -> None:
    """debugfs cuts it off where it ended before the subtrees were added."""
    fdt = make_fdt()
    assert find_map(fdt[: fdt.index(b"LUO")]) == ROOT


def test_other_tokens_are_refused() -> None:
    fdt = make_fdt()
    with pytest.raises(KhoMapError, match="token 7"):
        find_map(fdt.replace(struct.pack(">2I", 1, 0), struct.pack(">2I", 7, 0), 1))


def test_map_that_leads_in_circles_is_refused() -> None:
    memory = Memory()
    struct.pack_into("<Q", memory.pages[ROOT], 8, ROOT)
    with pytest.raises(KhoMapError, match="no node"):
        walk(ROOT, memory.read)


def test_key_that_no_page_has_is_refused() -> None:
    memory = Memory()
    node = ROOT
    for level in range(5):
        following = ROOT + (level + 1) * PAGE_BYTES
        memory.pages[following] = bytearray(PAGE_BYTES)
        struct.pack_into("<Q", memory.pages[node], 511 * 8 if level == 0 else 0, following)
        node = following
    memory.pages[node][0] = 1
    with pytest.raises(KhoMapError, match="no page"):
        walk(ROOT, memory.read)
