# SPDX-License-Identifier: Apache-2.0
"""Numbered, checksummed frames that the control host sends to a passed-through device.

Ethernet header, EtherType 0x88B5 (IEEE 802, local experiments); then little-endian: u32 magic, u64
stream (random for each run, so that nothing old is taken for new), u64 number, zeros; the last four
bytes are the CRC-32 of all before them. The receiver is ``liveupdate/agent/device/ring.py``.
"""

from __future__ import annotations

import struct
import zlib

ETHERTYPE = 0x88B5
#: "LUFR" in memory
MAGIC = 0x5246554C
FRAME_BYTES = 128

_HEADER = struct.Struct(">6s6sH")
_BODY = struct.Struct("<IQQ")
_CRC = struct.Struct("<I")


def build_frame(*, destination: str, source: str, stream: int, number: int) -> bytes:
    """Build one frame; addresses as ``52:54:00:40:00:00``.

    :raises ValueError: an address is not hexadecimal octets.
    """
    addresses = (bytes.fromhex(mac.replace(":", "")) for mac in (destination, source))
    start = _HEADER.pack(*addresses, ETHERTYPE) + _BODY.pack(MAGIC, stream, number)
    padded = start.ljust(FRAME_BYTES - _CRC.size, b"\0")
    return padded + _CRC.pack(zlib.crc32(padded))
