# SPDX-License-Identifier: Apache-2.0
"""Digests of a guest's pages, taken by the host itself: the inside view, where there is no other.

BLAKE2b with 8 bytes is fast, wide enough, and in the standard library. These digests are compared
with each other only, never with those that are taken from outside.
"""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    from ..mechanisms.base import Ram

PAGE_BYTES = 4096
#: in one event: 64 MiB of RAM, some 700 KB of text at worst
PAGES_PER_EVENT = 1 << 14


def pages(ram: Ram) -> Iterator[tuple[int, str]]:
    """Yield (number of the first page, base64 of the zlib-compressed digests) for all of RAM.

    The memory must not change meanwhile.
    """
    from base64 import b64encode
    from mmap import MAP_SHARED, PROT_READ, mmap
    from zlib import compress

    count = ram.size // PAGE_BYTES
    with mmap(ram.fd, ram.size, MAP_SHARED, PROT_READ, offset=ram.offset) as area:
        for first in range(0, count, PAGES_PER_EVENT):
            digests = of_range(area, first, min(PAGES_PER_EVENT, count - first))
            yield first, b64encode(compress(digests, 1)).decode("ascii")


def of_range(area: mmap, first: int, count: int) -> bytes:
    """Return 8 bytes for each page."""
    from hashlib import blake2b

    zero = bytes(PAGE_BYTES)
    of_zero = blake2b(zero, digest_size=8).digest()
    found: list[bytes] = []
    for at in range(first * PAGE_BYTES, (first + count) * PAGE_BYTES, PAGE_BYTES):
        page = area[at : at + PAGE_BYTES]
        # most of a guest's memory was never touched
        found.append(of_zero if page == zero else blake2b(page, digest_size=8).digest())
    return b"".join(found)
