# SPDX-License-Identifier: Apache-2.0
"""Decode the journal that the guest payload keeps on its disk, from the disk's bytes.

One record per 512-byte sector, record ``seq`` (from 1) at sector ``(seq - 1) % sectors``, each
with the checksum of the one before, which makes a chain: two writers on one disk break it, though
each of their records is whole. Layout: ``struct lu_journal`` in guest-images/guest/payload_abi.h.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from liveupdate.formats.malformed import MalformedError
from liveupdate.model.evidence import JournalSample
from liveupdate.model.guest_device_use import JournalFacts

MAGIC = b"LUJRNL01"
SECTOR_BYTES = 512

#: struct format and the names of its fields, in order; compared with the C header by a test
LAYOUT = struct.Struct("<8sQQQQI464sI")
FIELDS = (
    "magic", "boot", "seq", "monotonic_ns", "realtime_ns", "prev_crc", "zero", "crc32",
)  # fmt: skip

_ZERO = bytes(SECTOR_BYTES)
_CRC_OFFSET = 508
_CRC = struct.Struct("<I")
_CHUNK_SECTORS = 2048
#: sectors looked at beyond a known record; a hole shorter than this is stepped over
_WINDOW_SECTORS = 64


class JournalError(MalformedError):
    """A sector is not a valid record, or a disk cannot hold a journal."""


class DiskReader(Protocol):
    """Bytes of a disk, or of a copy of one."""

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Read; fewer bytes than asked for only at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesReader:
    """A disk that is in memory."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return len(self.data)

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Slice."""
        return self.data[offset : offset + size_bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecord:
    """One valid record."""

    boot: int
    seq: int
    monotonic_ns: int
    realtime_ns: int
    prev_crc: int
    crc32: int

    def to_sample(self, host_ns: int) -> JournalSample:
        """The record as evidence of what was durable at ``host_ns`` of the control host."""
        return JournalSample(host_ns=host_ns, seq=self.seq)


def decode_record(data: bytes, *, sector: int, sectors: int) -> JournalRecord:
    """Decode one sector.

    :param sector: where it was read, :param sectors: of the whole disk.
    :raises JournalError: not a record, damaged, or a record that belongs elsewhere.
    """
    where = f"sector {sector}"
    if len(data) != SECTOR_BYTES:
        raise JournalError(f"{len(data)} bytes, expected {SECTOR_BYTES}", where=where)
    magic, *values, _zero, crc = LAYOUT.unpack(data)
    record = JournalRecord(**dict(zip(FIELDS[1:6], values, strict=True)), crc32=crc)
    if magic != MAGIC:
        raise JournalError(f"magic is {magic!r}, expected {MAGIC!r}", where=where)
    computed = zlib.crc32(data[:_CRC_OFFSET])
    if crc != computed:
        raise JournalError(f"crc32 is 0x{crc:08x}, the bytes give 0x{computed:08x}", where=where)
    if record.seq == 0 or (record.seq - 1) % sectors != sector:
        raise JournalError(f"record {record.seq} does not belong here", where=where)
    return record


def encode_record(
    *, boot: int, seq: int, monotonic_ns: int = 0, realtime_ns: int = 0, prev_crc: int = 0
) -> bytes:
    """The 512 bytes a guest would write; for fakes and tests."""
    body = LAYOUT.pack(
        MAGIC, boot, seq, monotonic_ns, realtime_ns, prev_crc, b"", 0
    )[:_CRC_OFFSET]  # fmt: skip
    return body + _CRC.pack(zlib.crc32(body))


def scan_journal(disk: DiskReader | bytes, *, boot: int | None = None) -> JournalFacts:
    """Look at every sector.

    ``corrupt`` counts sectors that are neither empty nor a valid record, and records that do not
    carry on from the one before. ``missing`` are the numbers between the first and the last
    record, as far as the ring reaches back, that have no valid record. ``foreign`` counts records
    of other boots. A disk without a record gives zeros, which is a fact and not an error.

    :param boot: whose records to report; without it the boot that wrote the highest number.
    :raises JournalError: the disk is empty or its size is no multiple of a sector.
    """
    reader = _as_reader(disk)
    sectors = _count_sectors(reader)
    records: dict[int, JournalRecord] = {}
    corrupt = 0
    for sector, data in _read_sectors(reader, 0, sectors):
        if data == _ZERO:
            continue
        try:
            record = decode_record(data, sector=sector, sectors=sectors)
        except JournalError:
            corrupt += 1
        else:
            records[record.seq] = record
    corrupt += sum(
        1
        for seq, record in records.items()
        if seq - 1 in records and records[seq - 1].crc32 != record.prev_crc
    )
    if boot is None and records:
        boot = records[max(records)].boot
    ours = [seq for seq, record in records.items() if record.boot == boot]
    last = max(ours, default=0)
    # A record from further back than one lap should have been overwritten: its successor is lost.
    first = max(min(ours, default=0), last - sectors + 1) if ours else 0
    return JournalFacts(
        boot=boot or 0,
        first_seq=first,
        last_seq=last,
        records=len(ours),
        missing=tuple(sorted(set(range(first, last + 1)).difference(ours, {0}))),
        corrupt=corrupt,
        foreign=len(records) - len(ours),
    )


def newest_record(disk: DiskReader | bytes, hint: int = 0) -> JournalRecord | None:
    """Find the valid record with the highest number; None when there is none.

    :param hint: number found last time: the search then reads on from there, a few KiB, and not
        the whole disk. 0, or one that is no longer on the disk, costs a whole scan.
    :raises JournalError: the disk is empty or its size is no multiple of a sector.
    """
    reader = _as_reader(disk)
    sectors = _count_sectors(reader)
    if hint > 0:
        newest = _decode_at(reader, hint, sectors)
        while newest is not None:
            further = _newest_within(reader, newest.seq, sectors)
            if further is None:
                return newest
            newest = further
    found: JournalRecord | None = None
    for sector, data in _read_sectors(reader, 0, sectors):
        if data.startswith(MAGIC):
            record = _decode_or_none(data, sector, sectors)
            if record and (found is None or record.seq > found.seq):
                found = record
    return found


def _newest_within(reader: DiskReader, seq: int, sectors: int) -> JournalRecord | None:
    """Highest record of the window behind ``seq``; None when nothing newer is in it."""
    found: JournalRecord | None = None
    start = seq % sectors
    count = min(_WINDOW_SECTORS, sectors)
    ahead = min(count, sectors - start)
    for first, length in ((start, ahead), (0, count - ahead)):
        for sector, data in _read_sectors(reader, first, first + length):
            record = _decode_or_none(data, sector, sectors)
            if record and record.seq > (found.seq if found else seq):
                found = record
    return found


def _decode_at(reader: DiskReader, seq: int, sectors: int) -> JournalRecord | None:
    """The record with this number, or a newer one of a later lap in its place."""
    sector = (seq - 1) % sectors
    data = reader.read_at(sector * SECTOR_BYTES, SECTOR_BYTES)
    record = _decode_or_none(data, sector, sectors)
    return record if record and record.seq >= seq else None


def _decode_or_none(data: bytes, sector: int, sectors: int) -> JournalRecord | None:
    try:
        return decode_record(data, sector=sector, sectors=sectors)
    except JournalError:
        return None


def _read_sectors(reader: DiskReader, first: int, end: int) -> Iterator[tuple[int, bytes]]:
    for base in range(first, end, _CHUNK_SECTORS):
        count = min(_CHUNK_SECTORS, end - base)
        data = reader.read_at(base * SECTOR_BYTES, count * SECTOR_BYTES)
        for i in range(count):
            yield base + i, data[i * SECTOR_BYTES : (i + 1) * SECTOR_BYTES]


def _as_reader(disk: DiskReader | bytes) -> DiskReader:
    return BytesReader(data=disk) if isinstance(disk, bytes) else disk


def _count_sectors(reader: DiskReader) -> int:
    size = reader.size_bytes
    if size == 0 or size % SECTOR_BYTES:
        raise JournalError(
            f"size is {size} bytes, expected a multiple of {SECTOR_BYTES}", where="disk"
        )
    return size // SECTOR_BYTES
