# SPDX-License-Identifier: Apache-2.0
"""A bzImage packed with LZ4 whose strings are edited: another ABI, without compiling a kernel."""

from __future__ import annotations

import struct

import lz4.block

from liveupdate.formats.kernelimage import LZ4_BLOCK_BYTES, parse_setup_header, unpack

MAGIC = b"\x02\x21\x4c\x18"


def edit_image(image: bytes, old: bytes, new: bytes) -> bytes:
    """Return ``image`` with ``old`` replaced by ``new``, of the same length, in its vmlinux.

    What the payload gets shorter is filled with zeros: unlz4() ends at a block of no bytes
    (lib/decompress_unlz4.c).

    :raises ValueError: the string is not there, or the payload would get longer.
    """
    header = parse_setup_header(image)
    start, end = header.payload_offset, header.payload_offset + header.payload_bytes
    _, _, vmlinux = unpack(image)
    if old not in vmlinux or len(old) != len(new):
        raise ValueError(f"{old!r} cannot become {new!r}")
    edited = vmlinux.replace(old, new)
    parts = (edited[at : at + LZ4_BLOCK_BYTES] for at in range(0, len(edited), LZ4_BLOCK_BYTES))
    payload = MAGIC + b"".join(map(_pack, parts))
    room = end - 4 - start - len(payload)
    if room < 4:
        raise ValueError(f"the payload is too long by {4 - room} bytes")
    return image[:start] + payload + bytes(room) + image[end - 4 :]


def _pack(part: bytes) -> bytes:
    block: bytes = lz4.block.compress(part, "high_compression", compression=12, store_size=False)
    return struct.pack("<I", len(block)) + block
