# SPDX-License-Identifier: Apache-2.0
"""The stream of records that the mechanism ``breadcrumb`` leaves for the incoming kernel's agent.

The format is ``guest-images/modules/include/uapi/linux/lu_stream.h``: from LU_VERSION to LU_END,
little endian, each record padded to 8 bytes. The input is untrusted: it is checked
as a whole, once, before any of it is used. Pure.
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct

VERSION = 1
#: types: four characters each; a reader skips what it does not know only with LU_OPTIONAL
LU_VERSION = int.from_bytes(b"LU-V", "little")
LU_BUNDLE = int.from_bytes(b"LU-B", "little")
LU_RAM = int.from_bytes(b"LU-R", "little")
LU_DATA = int.from_bytes(b"LU-D", "little")
LU_END = int.from_bytes(b"LU-E", "little")
LU_OPTIONAL = 1 << 31
NAME_MAX = 63
RECORDS_MAX = 4096
PAGE_BYTES = 4096
PHYS_MAX = 1 << 52

#: type, bytes of the body
RECORD = Struct("<II")
#: record; version, reserved, bytes of the whole stream
HEAD = Struct("<IIIIQ")
#: physical address, bytes
RAM = Struct("<QQ")
#: token; the content follows
DATA = Struct("<Q")
#: record; records before it, CRC-32 of all bytes before it
END = Struct("<IIII")


class StreamError(ValueError):
    """A stream that is not valid, with the reason."""


class Parts:
    """A preserved set: where its guest's RAM is, and contents by token."""

    def __init__(
        self, ram: tuple[int, int] | None = None, data: dict[int, bytes] | None = None
    ) -> None:
        #: physical address, bytes
        self.ram = ram
        self.data = data or {}


def encode(sets: dict[str, Parts]) -> bytes:
    """Return the stream.

    :raises StreamError: a name is not one, or there is too much for :func:`decode`.
    """
    pieces = [b""]
    for name, parts in sets.items():
        raw = name.encode()
        if not _is_name(raw):
            raise StreamError(f"{name!r} is no name of a preserved set")
        pieces.append(_record(LU_BUNDLE, raw))
        if parts.ram is not None:
            pieces.append(_record(LU_RAM, RAM.pack(*parts.ram)))
        pieces += [
            _record(LU_DATA, DATA.pack(token) + parts.data[token]) for token in sorted(parts.data)
        ]
    if len(pieces) > RECORDS_MAX:
        raise StreamError(f"{len(pieces)} records, at most {RECORDS_MAX}")
    total = HEAD.size + sum(map(len, pieces)) + END.size
    pieces[0] = HEAD.pack(LU_VERSION, HEAD.size - RECORD.size, VERSION, 0, total)
    body = b"".join(pieces)
    return body + END.pack(LU_END, END.size - RECORD.size, len(pieces), crc32(body))


def offset_of(sets: dict[str, Parts], name: str, token: int) -> int:
    """Return where in the stream of :func:`encode` the content of a token begins.

    Sets that come later do not move it.
    """
    before = dict(sets)
    while before.popitem()[0] != name:
        pass
    parts = sets[name]
    before[name] = Parts(parts.ram, {k: v for k, v in parts.data.items() if k < token})
    return len(encode(before)) - END.size + RECORD.size + DATA.size


def read_head(head: bytes, room: int) -> int:
    """Return how many bytes a stream has, from its first :data:`HEAD` bytes.

    :param room: so many there can be.
    :raises StreamError: it does not begin as one.
    """
    if len(head) < HEAD.size:
        raise StreamError(f"{len(head)} bytes are too short for a stream")
    kind, length, version, reserved, total = HEAD.unpack_from(head)
    if kind != LU_VERSION or length != HEAD.size - RECORD.size:
        raise StreamError("it does not begin with LU_VERSION")
    if version != VERSION:
        raise StreamError(f"version {version}, this agent reads {VERSION}")
    if reserved:
        raise StreamError("LU_VERSION has fields of another version")
    if not HEAD.size + END.size <= total <= room or total % 8:
        raise StreamError(f"it says {total} bytes, there is room for {room}")
    return int(total)


def decode(data: bytes) -> dict[str, Parts]:
    """Return the preserved sets of a whole stream, in their order.

    :raises StreamError: when anything about it is not as the format says.
    """
    total = read_head(data, len(data))
    if total != len(data):
        raise StreamError(f"it says {total} bytes, there are {len(data)}")
    end = total - END.size
    kind, length, count, crc = END.unpack_from(data, end)
    if kind != LU_END or length != END.size - RECORD.size:
        raise StreamError("it does not end with LU_END")
    if crc32(memoryview(data)[:end]) != crc:
        raise StreamError("its checksum is wrong")
    if count > RECORDS_MAX:
        raise StreamError(f"{count} records, at most {RECORDS_MAX}")
    reader = _Reader()
    at, seen = HEAD.size, 1
    while at < end:
        seen += 1
        if seen > count:
            raise StreamError(f"it has more than the {count} records that LU_END counts")
        at = _decode_record(reader, data, at, end)
    if seen != count:
        raise StreamError(f"it has {seen} records, LU_END counts {count}")
    return reader.sets


def _decode_record(reader: _Reader, data: bytes, at: int, end: int) -> int:
    """Give one record to the reader and return where the next one begins."""
    kind: int
    length: int
    kind, length = RECORD.unpack_from(data, at)
    begin = at + RECORD.size
    after = begin + -(-length // 8) * 8
    if after > end:
        raise StreamError(f"the record at {at} reaches beyond LU_END")
    if any(data[begin + length : after]):
        raise StreamError(f"the record at {at} is not padded with zeroes")
    try:
        reader.take(kind, data[begin : begin + length])
    except StreamError as err:
        raise StreamError(f"the record at {at}: {err}") from None
    return after


class _Reader:
    """What was read so far; knows which record may follow which."""

    def __init__(self) -> None:
        self.sets: dict[str, Parts] = {}
        self._parts: Parts | None = None
        self._rams: list[tuple[int, int]] = []

    def take(self, kind: int, body: bytes) -> None:
        if kind == LU_BUNDLE:
            self._begin(body)
        elif kind == LU_RAM:
            self._take_ram(body)
        elif kind == LU_DATA:
            self._take_data(body)
        elif not kind & LU_OPTIONAL:
            raise StreamError(f"type {kind:#x} is not known and not optional")

    def _begin(self, body: bytes) -> None:
        if not _is_name(body):
            raise StreamError(f"{body[: NAME_MAX + 1]!r} is no name of a preserved set")
        name = body.decode("ascii")
        if name in self.sets:
            raise StreamError(f"two preserved sets are called '{name}'")
        self._parts = self.sets[name] = Parts()

    def _take_ram(self, body: bytes) -> None:
        parts = self._need_parts("LU_RAM")
        if len(body) != RAM.size:
            raise StreamError(f"LU_RAM of {len(body)} bytes")
        if parts.ram is not None or parts.data:
            raise StreamError("LU_RAM must come once, before LU_DATA")
        start, size = RAM.unpack(body)
        if start % PAGE_BYTES or size % PAGE_BYTES or not size or start + size > PHYS_MAX:
            raise StreamError(f"{size} bytes at {start:#x} are no RAM")
        if any(start < low + held and low < start + size for low, held in self._rams):
            raise StreamError(f"RAM at {start:#x} belongs to two preserved sets")
        self._rams.append((start, size))
        parts.ram = (start, size)

    def _take_data(self, body: bytes) -> None:
        parts = self._need_parts("LU_DATA")
        if len(body) < DATA.size:
            raise StreamError(f"LU_DATA of {len(body)} bytes")
        (token,) = DATA.unpack_from(body)
        if parts.data and token <= max(parts.data):
            raise StreamError(f"token {token} is not above the one before")
        parts.data[token] = body[DATA.size :]

    def _need_parts(self, what: str) -> Parts:
        if self._parts is None:
            raise StreamError(f"{what} comes before any LU_BUNDLE")
        return self._parts


def _record(kind: int, body: bytes) -> bytes:
    return RECORD.pack(kind, len(body)) + body + bytes(-len(body) % 8)


def _is_name(raw: bytes) -> bool:
    return 0 < len(raw) <= NAME_MAX and all(0x21 <= byte <= 0x7E for byte in raw)
