# SPDX-License-Identifier: Apache-2.0
"""Records of kept DMA, as the kernel writes them."""

from __future__ import annotations

import struct
import zlib

from liveupdate.formats import keep_dma


def make_record(total: int = 160, version: int = keep_dma.VERSION) -> bytes:
    header = struct.pack("<QIIQII", keep_dma.MAGIC, version, 96, total, 0, 12)
    record = header.ljust(total, b"\x5a")
    crc = zlib.crc32(record)
    return record[:24] + struct.pack("<I", crc) + record[28:]
