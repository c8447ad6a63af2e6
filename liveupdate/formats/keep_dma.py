# SPDX-License-Identifier: Apache-2.0
"""The header of the record that the patched kernels hand over for devices whose DMA continues.

And what they say when it is written.

Layout: ``struct keep_dma_header`` in include/linux/kho/abi/keep_dma.h of our series, little-endian.
The checksum is the CRC-32 of the whole record with its own field zero.
"""

from __future__ import annotations

import re
import struct
import zlib

from liveupdate.model.costs import KeptTables

#: "KEEPDMA1" in memory
MAGIC = 0x31414D445045454B
VERSION = 2
HEADER_BYTES = 96
#: a field that is only printed: the checksum covers it, and no code uses it
PRESERVE_NS_AT = 56
#: the kernel bounds a record; a larger one is not valid
MAX_BYTES = 64 << 20

_TOTAL = struct.Struct("<Q")
_TOTAL_AT = 16
_VERSION = struct.Struct("<I")
_VERSION_AT = 8
_CRC = struct.Struct("<I")
_CRC_AT = 24


#: keep_dma_freeze() in kernel/liveupdate/keep_dma.c of our series
_PRESERVED = re.compile(r"keep-dma: preserved (\d+) table pages of (\d+) devices in (\d+) us\b")


def parse_preserved(line: str) -> KeptTables | None:
    """Read the line that the outgoing kernel prints once; None: it is another."""
    match = _PRESERVED.search(line)
    if match is None:
        return None
    pages, devices, took_us = map(int, match.groups())
    return KeptTables(table_pages=pages, devices=devices, took_ns=took_us * 1000)


def record_bytes(header: bytes) -> int:
    """Return the size of a whole record.

    :raises ValueError: it is no header.
    """
    if len(header) < HEADER_BYTES or int.from_bytes(header[:8], "little") != MAGIC:
        raise ValueError("not the header of a record of kept DMA")
    total: int = _TOTAL.unpack_from(header, _TOTAL_AT)[0]
    if not HEADER_BYTES < total <= MAX_BYTES:
        raise ValueError(f"a record of {total} bytes cannot be")
    return total


def is_whole(record: bytes) -> bool:
    """Tell whether the checksum is right."""
    crc = _CRC.unpack_from(record, _CRC_AT)[0]
    return bool(crc == _checksum(record))


def with_version(record: bytes, version: int) -> bytes:
    """Return the record with another version and the checksum that belongs to it."""
    changed = bytearray(record)
    _VERSION.pack_into(changed, _VERSION_AT, version)
    _CRC.pack_into(changed, _CRC_AT, _checksum(bytes(changed)))
    return bytes(changed)


def _checksum(record: bytes) -> int:
    return zlib.crc32(record[:_CRC_AT] + bytes(_CRC.size) + record[_CRC_AT + _CRC.size :])
