# SPDX-License-Identifier: Apache-2.0
"""What an IOMMU does to a device's addresses, as a value: one form for VT-d, AMD-Vi and debugfs.

A :class:`MappingSet` says for one requester (BDF, and PASID where there is one) which ranges of
IOVA reach which physical ranges with which access. Sets made from physical memory and from the
kernel's own debugfs text are equal when both saw the same translation, whatever hardware has
set in accessed and dirty bits. Knows no table layout.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from liveupdate.core.errors import LiveUpdateError
from liveupdate.core.units import PAGE_BYTES, format_addr
from liveupdate.formats.malformed import MalformedError

#: access bits of a run; SUPERVISOR: first-stage pages closed to requests of user privilege
READ = 1
WRITE = 2
SUPERVISOR = 4

#: bits of a table entry that hold a physical address (VT-d and AMD-Vi alike)
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000

_PACKED_RUN = struct.Struct("<QQQQ")
_BDF = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


#: what a reader may raise for an address it does not have
UNREADABLE = (ValueError, LookupError, OSError, LiveUpdateError)


class ByteReader(Protocol):
    """Physical memory of the host under update."""

    def read(self, phys_addr: int, size: int, /) -> bytes:
        """Copy ``size`` bytes.

        :raises ValueError, LookupError, OSError or LiveUpdateError: outside RAM.
        """
        ...


class IommuFormatError(MalformedError):
    """Text or a fixed-size structure that cannot be decoded at all."""


class Translation(StrEnum):
    """How a requester's addresses are treated."""

    SECOND_STAGE = "second-stage"
    FIRST_STAGE = "first-stage"
    #: first-stage output goes through a second stage; runs are those of the second
    NESTED = "nested"
    #: AMD-Vi I/O page tables for host translations
    HOST = "host"
    PASS_THROUGH = "pass-through"
    BLOCKED = "blocked"
    #: an encoding that is reserved or not decoded here; a fault names it
    UNKNOWN = "unknown"


class FaultKind(StrEnum):
    """Why a part of the tables could not be followed."""

    UNREADABLE = "unreadable"
    SHORT_READ = "short-read"
    RESERVED = "reserved-bits"
    LEVELS = "bad-level"
    LOOP = "loop"
    INCONSISTENT = "inconsistent"
    UNSUPPORTED = "unsupported"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """A source of DMA; ``devfn`` is device << 3 | function, ``pasid`` None: requests carry none."""

    segment: int = 0
    bus: int
    devfn: int
    pasid: int | None = None

    @property
    def source_id(self) -> int:
        """Bus and devfn in 16 bits, as tables and fault records carry them."""
        return self.bus << 8 | self.devfn

    @property
    def bdf(self) -> str:
        """``0000:01:00.0``."""
        return f"{self.segment:04x}:{format_source_id(self.source_id)}"

    def sort_key(self) -> tuple[int, int, int]:
        """Order by segment, source id and PASID, none first."""
        return self.segment, self.source_id, -1 if self.pasid is None else self.pasid

    def __str__(self) -> str:
        return self.bdf if self.pasid is None else f"{self.bdf} pasid {self.pasid:#x}"


def format_source_id(source_id: int) -> str:
    """Format 16 bits of bus, device and function as ``01:00.0``."""
    return f"{source_id >> 8:02x}:{source_id >> 3 & 31:02x}.{source_id & 7}"


def parse_bdf(text: str, *, pasid: int | None = None) -> Requester:
    """Parse ``0000:01:00.0`` or ``01:00.0``.

    :raises IommuFormatError: for anything else.
    """
    match = _BDF.fullmatch(text.strip())
    if not match:
        raise IommuFormatError(f"'{text}' is not a PCI address like 0000:01:00.0", where="bdf")
    devfn = int(match[3], 16) << 3 | int(match[4])
    segment = int(match[1] or "0", 16)
    return Requester(segment=segment, bus=int(match[2], 16), devfn=devfn, pasid=pasid)


class Run(NamedTuple):
    """IOVAs [iova, iova + size) reach [phys, phys + size); all in bytes.

    ``page`` is the size of the translations the run is made of: a run never mixes two.
    """

    iova: int
    phys: int
    size: int
    access: int
    page: int

    def __str__(self) -> str:
        return (
            f"{format_addr(self.iova)}+{self.size:#x} -> {format_addr(self.phys)} "
            f"{format_access(self.access)}"
        )


def format_access(access: int) -> str:
    """Format access bits as ``rw``, ``r-``, ``-w``; ``s`` at the end: supervisor only."""
    text = ("r" if access & READ else "-") + ("w" if access & WRITE else "-")
    return text + "s" if access & SUPERVISOR else text


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFault:
    """A part of the tables that could not be followed.

    :ivar address: physical address of the entry or table at fault.
    :ivar level: paging level, 1 is the leaf table; 0: not in the paging structures.
    """

    kind: FaultKind
    address: int
    level: int
    detail: str

    def __str__(self) -> str:
        level = f" level {self.level}" if self.level else ""
        return f"{self.kind} at {format_addr(self.address)}{level}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a requester is attached to.

    :ivar domain_id: tag of its cached translations; None: the entry carries none.
    :ivar top: physical address of the top table the runs come from; 0: none.
    :ivar levels: paging levels below ``top``; 0: none.
    :ivar access: access the entry itself allows, before any page table.
    :ivar first_top: top of the first stage of a nested translation, in its guest's addresses.
    """

    requester: Requester
    translation: Translation
    domain_id: int | None = None
    top: int = 0
    levels: int = 0
    access: int = READ | WRITE
    first_top: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingSet:
    """The translation of one requester: ``runs`` ascend by IOVA, as large as they can be.

    A set with ``faults`` is incomplete: what it lacks is unknown, not unmapped.
    """

    binding: Binding
    runs: tuple[Run, ...] = ()
    faults: tuple[TableFault, ...] = ()

    @property
    def requester(self) -> Requester:
        """Whose translation this is."""
        return self.binding.requester

    @property
    def mapped_bytes(self) -> int:
        """Bytes of IOVA that reach memory."""
        return sum(run.size for run in self.runs)


class RunBuilder:
    """Merge translations that arrive in ascending IOVA order into runs."""

    __slots__ = ("_access", "_end", "_iova", "_page", "_phys", "_phys_end", "runs")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._iova = self._end = self._phys = self._phys_end = self._access = self._page = 0

    def add(self, iova: int, phys: int, size: int, access: int, page: int) -> None:
        """Append one translation; ``iova`` must not lie below an earlier one's end."""
        if (
            iova == self._end
            and phys == self._phys_end
            and access == self._access
            and page == self._page
        ):
            self._end += size
            self._phys_end += size
            return
        self._flush()
        self._iova, self._end = iova, iova + size
        self._phys, self._phys_end = phys, phys + size
        self._access, self._page = access, page

    def add_pages(
        self, entries: Iterable[int], iova: int, address_mask: int, access: tuple[int, ...]
    ) -> None:
        """Append a table of 4 KiB leaves whose access is in the low bits of each entry.

        This is the inner loop of every walk, hence written out.

        :param access: of each value of the entry's low bits, 0 where nothing is mapped; its
            length is a power of two.
        """
        low_bits = len(access) - 1
        if self._page != PAGE_BYTES:
            self._flush()
            self._page = PAGE_BYTES
        end, phys_end, current = self._end, self._phys_end, self._access
        for entry in entries:
            granted = access[entry & low_bits]
            if granted:
                phys = entry & address_mask
                if phys == phys_end and iova == end and granted == current:
                    end += PAGE_BYTES
                    phys_end += PAGE_BYTES
                else:
                    self._end = end
                    self._flush()
                    self._iova, self._phys, self._access = iova, phys, granted
                    end, phys_end, current = iova + PAGE_BYTES, phys + PAGE_BYTES, granted
            iova += PAGE_BYTES
        self._end, self._phys_end = end, phys_end

    def finish(self) -> tuple[Run, ...]:
        """Close the last run and give them all."""
        self._flush()
        return tuple(self.runs)

    def _flush(self) -> None:
        size = self._end - self._iova
        if size:
            self.runs.append(Run(self._iova, self._phys, size, self._access, self._page))
        self._iova = self._end = self._phys = self._phys_end = self._access = 0


def pack_runs(runs: Iterable[Run]) -> bytes:
    """Pack runs into 32 bytes each, for evidence files: u64 LE iova, phys, size, access|page<<8."""
    return b"".join(
        _PACKED_RUN.pack(run.iova, run.phys, run.size, run.access | run.page << 8) for run in runs
    )


def unpack_runs(data: bytes) -> tuple[Run, ...]:
    """Read back what :func:`pack_runs` wrote.

    :raises IommuFormatError: if the length does not fit, a field is out of range or the runs
        do not ascend.
    """
    if len(data) % _PACKED_RUN.size:
        raise IommuFormatError(
            f"{len(data)} bytes are not a multiple of {_PACKED_RUN.size}", where="runs"
        )
    runs = []
    end = 0
    for number, (iova, phys, size, tail) in enumerate(_PACKED_RUN.iter_unpack(data)):
        run = Run(iova, phys, size, tail & 0xFF, tail >> 8)
        page = run.page
        if not size or page < PAGE_BYTES or page & (page - 1) or (iova | phys | size) & (page - 1):
            raise IommuFormatError(f"{run} is not made of {page:#x}-byte pages", where=f"{number}")
        if not run.access or run.access > READ | WRITE | SUPERVISOR:
            raise IommuFormatError(f"access {run.access:#x} is unknown", where=f"run {number}")
        if iova < end:
            raise IommuFormatError(f"{run} overlaps the one before", where=f"run {number}")
        end = iova + size
        runs.append(run)
    return tuple(runs)
