# SPDX-License-Identifier: Apache-2.0
"""Decode what QEMU's monitor prints for ``xp /Nwx ADDRESS`` (physical memory, registers included).

Each line is a 16-digit address, a colon, and up to 16 bytes as ``0x`` numbers of one width: two
digits for ``b``, four for ``h``, eight for ``w``, sixteen for ``g``. Memory that is not there reads
``Cannot access memory`` in place of the numbers. Format: QEMU ``monitor/hmp-cmds-target.c``,
``memory_dump``.
"""

from __future__ import annotations

import re

from liveupdate.core.units import format_addr
from liveupdate.formats.malformed import MalformedError

_LINE = re.compile(r"([0-9a-f]{8,16}):((?: 0x[0-9a-f]+)+)", re.IGNORECASE)
_BYTES_OF_DIGITS = {2: 1, 4: 2, 8: 4, 16: 8}
#: more than any register block; a reply is untrusted input
_MAX_BYTES = 1 << 20


class MemoryDumpError(MalformedError):
    """The monitor's reply is not a dump, or says that there is no memory."""


def parse_xp(text: str, *, size: int | None = None) -> bytes:
    """Return the bytes of a whole reply, as they lie in memory (little-endian numbers undone).

    :param size: bytes that were asked for.
    :raises MemoryDumpError: naming the line, if one is cut off, out of order or of another width;
        or if there are not ``size`` bytes.
    """
    data = bytearray()
    start = width = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line:
            continue
        where = f"line {number}"
        match = _LINE.fullmatch(line)
        if not match:
            raise MemoryDumpError(f"'{line[:80]}' is not a line of a memory dump", where=where)
        address = int(match[1], 16)
        if not data:
            start = address
        if address != start + len(data):
            expected = format_addr(start + len(data))
            raise MemoryDumpError(f"address {match[1]} where {expected} belongs", where=where)
        for item in match[2].split():
            digits = len(item) - 2
            width = width or digits
            if digits != width or digits not in _BYTES_OF_DIGITS:
                raise MemoryDumpError(f"'{item}' has another width", where=where)
            data += int(item, 16).to_bytes(_BYTES_OF_DIGITS[digits], "little")
        if len(data) > _MAX_BYTES:
            raise MemoryDumpError(f"more than {_MAX_BYTES} bytes", where=where)
    if not data:
        raise MemoryDumpError("the reply is empty", where="reply")
    if size is not None and len(data) != size:
        raise MemoryDumpError(f"{len(data)} bytes instead of {size}", where="reply")
    return bytes(data)
