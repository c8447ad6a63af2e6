# SPDX-License-Identifier: Apache-2.0
"""The map of preserved memory that KHO hands over: which pages, of which order, in how many nodes.

Implements include/linux/kho/abi/kexec_handover.h ("kho-v4") and what of the flattened devicetree
(devicetree specification 0.4, chapter 5) its root node needs. Everything read is checked: the
memory is that of a machine under test.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from liveupdate.core.units import PAGE_BYTES

COMPATIBLE = b"kho-v4\0"
_FDT_MAGIC = 0xD00DFEED
_HEADER = struct.Struct(">10I")
_BEGIN_NODE, _END_NODE, _PROP, _NOP = 1, 2, 3, 4
_MAX_FDT_BYTES = 1 << 20
#: levels of tables above the bitmaps
_LEVELS = 5
_TABLE = struct.Struct("<512Q")
_TABLE_BITS = 9
_BITMAP_BITS = 15
_KEY_BITS = 53
#: of 16 TiB in single pages; more is no map
_MAX_NODES = 1 << 17


class KhoMapError(ValueError):
    """What was read is no map of preserved memory; says what is wrong."""


@dataclass(frozen=True, slots=True)
class Preserved:
    """What a map holds.

    :ivar nodes: pages that the map itself takes.
    :ivar folios: (order, how many), by order.
    """

    nodes: int
    folios: tuple[tuple[int, int], ...]

    @property
    def size_bytes(self) -> int:
        """Memory that is preserved, without the map's own."""
        return sum(count * (PAGE_BYTES << order) for order, count in self.folios)


def find_map(fdt: bytes) -> int:
    """Return the physical address of the map's root, out of KHO's root devicetree.

    debugfs shows as much of it as it had when it was made, and names of properties come last: so
    the two properties of the root node, which come first, are told by their values.

    :raises KhoMapError: it is none, or of another version.
    """
    values = _root_values(fdt)
    if COMPATIBLE not in values:
        raise KhoMapError(f"no property of the root is '{COMPATIBLE.decode().rstrip(chr(0))}'")
    addresses = [value for value in values if len(value) == 8]
    if len(addresses) != 1:
        raise KhoMapError(f"{len(addresses)} properties of the root may be the map's address")
    return int.from_bytes(addresses[0], "little")


def _root_values(fdt: bytes) -> list[bytes]:
    """Return the values of the root node's properties, up to its first child."""
    if len(fdt) < _HEADER.size:
        raise KhoMapError(f"{len(fdt)} bytes are no devicetree")
    magic, total, at, *_ = _HEADER.unpack_from(fdt)
    if magic != _FDT_MAGIC or not _HEADER.size <= total <= _MAX_FDT_BYTES:
        raise KhoMapError(f"magic {magic:#x} and {total} bytes are no devicetree")
    end, found, in_root = min(total, len(fdt)), [], False
    while at + 4 <= end:
        (token,) = struct.unpack_from(">I", fdt, at)
        at += 4
        if token == _BEGIN_NODE and not in_root:
            at, in_root = at + 4, True  # the root's name is empty
        elif token == _PROP and in_root and at + 8 <= end:
            (length,) = struct.unpack_from(">I", fdt, at)
            if at + 8 + length > end:
                raise KhoMapError("a property leads out of the devicetree")
            found.append(fdt[at + 8 : at + 8 + length])
            at += 8 + (length + 3 & ~3)
        elif token in (_BEGIN_NODE, _END_NODE) and in_root:
            return found
        elif token != _NOP:
            raise KhoMapError(f"token {token} in the devicetree")
    raise KhoMapError("the devicetree has no end")


def walk(root: int, read_page: Callable[[int], bytes]) -> Preserved:
    """Walk a map.

    :param read_page: returns the page at a physical address.
    :raises KhoMapError: it leads in circles, or holds what no map can.
    :raises ValueError: a table leads out of memory.
    """
    folios: Counter[int] = Counter()
    seen: set[int] = set()

    def visit(address: int, level: int, prefix: int) -> None:
        if address % PAGE_BYTES or address in seen or len(seen) >= _MAX_NODES:
            raise KhoMapError(f"no node can be at {address:#x}")
        seen.add(address)
        page = read_page(address)
        if level == 0:
            _count(page, prefix, folios)
            return
        shift = (level - 1) * _TABLE_BITS + _BITMAP_BITS
        for index, entry in enumerate(_TABLE.unpack(page)):
            if entry:
                visit(entry, level - 1, prefix | index << shift)

    visit(root, _LEVELS, 0)
    return Preserved(nodes=len(seen), folios=tuple(sorted(folios.items())))


def _count(page: bytes, prefix: int, folios: Counter[int]) -> None:
    """Count the keys of one bitmap; those of one order lie close, but zero lies among them."""
    bits = int.from_bytes(page, "little")
    if not bits:
        return
    if prefix:
        # the bit that tells the order is above the bitmap: all keys in it are of one order
        folios[_order_of(prefix)] += bits.bit_count()
        return
    while bits:
        low = bits & -bits
        folios[_order_of(low.bit_length() - 1)] += 1
        bits ^= low


def _order_of(key: int) -> int:
    if not 0 < key < 1 << _KEY_BITS:
        raise KhoMapError(f"no page has the key {key:#x}")
    return _KEY_BITS - key.bit_length()
