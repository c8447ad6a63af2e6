# SPDX-License-Identifier: Apache-2.0
"""Decoder of LZ4's legacy frame, which is what ``lz4 -l`` and CONFIG_KERNEL_LZ4 write.

Implements doc/lz4_Frame_format.md ("Legacy frame") and doc/lz4_Block_format.md of the LZ4
project. Pure Python: it runs once per kernel image, and its result is kept.
"""

from __future__ import annotations

import struct

MAGIC = b"\x02\x21\x4c\x18"
#: a block unpacks to at most this much, and all but the last to exactly this much
BLOCK_BYTES = 8 << 20
_MIN_MATCH = 4


class Lz4Error(ValueError):
    """The data is damaged; says at which byte."""


def decode_block(block: bytes, *, limit_bytes: int = BLOCK_BYTES) -> bytes:
    """Decode one block.

    :raises Lz4Error: a length or an offset leads out of the data, or more comes out than allowed.
    """
    out = bytearray()
    at = 0
    end = len(block)
    try:
        while True:
            token = block[at]
            at += 1
            literals = token >> 4
            if literals == 15:
                while (more := block[at]) == 255:
                    literals += 255
                    at += 1
                literals += more
                at += 1
            if literals:
                if at + literals > end:
                    raise Lz4Error(f"literals lead out of the block at byte {at}")
                out += block[at : at + literals]
                at += literals
            if at == end:
                # Only the last sequence has no match.
                break
            offset = block[at] | block[at + 1] << 8
            at += 2
            length = (token & 15) + _MIN_MATCH
            if token & 15 == 15:
                while (more := block[at]) == 255:
                    length += 255
                    at += 1
                length += more
                at += 1
            begin = len(out) - offset
            if offset == 0 or begin < 0:
                raise Lz4Error(f"match offset {offset} leads out of the output at byte {at}")
            if offset >= length:
                out += out[begin : begin + length]
            else:
                # The match overlaps what it makes: the last `offset` bytes repeat.
                pattern = bytes(out[begin:])
                out += (pattern * (length // offset + 1))[:length]
            if len(out) > limit_bytes:
                raise Lz4Error(f"a block unpacks to more than {limit_bytes} bytes")
    except IndexError:
        raise Lz4Error(f"the block ends in the middle of a sequence, at byte {at}") from None
    if len(out) > limit_bytes:
        raise Lz4Error(f"a block unpacks to more than {limit_bytes} bytes")
    return bytes(out)


def decode(frame: bytes, *, limit_bytes: int) -> bytes:
    """Decode a legacy frame: the magic, then blocks each behind its length.

    :raises Lz4Error: wrong magic, damaged blocks, or more output than ``limit_bytes``.
    """
    if frame[:4] != MAGIC:
        raise Lz4Error("no legacy LZ4 frame: wrong magic")
    parts: list[bytes] = []
    total = 0
    at = 4
    while at < len(frame):
        if at + 4 > len(frame):
            raise Lz4Error(f"the frame ends in the middle of a block length, at byte {at}")
        (size,) = struct.unpack_from("<I", frame, at)
        at += 4
        if size > len(frame) - at:
            raise Lz4Error(f"block of {size} bytes at byte {at} leads out of the frame")
        part = decode_block(frame[at : at + size])
        at += size
        total += len(part)
        if total > limit_bytes:
            raise Lz4Error(f"the frame unpacks to more than {limit_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
