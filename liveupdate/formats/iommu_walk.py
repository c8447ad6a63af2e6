# SPDX-License-Identifier: Apache-2.0
"""Reading untrusted tables: bounded, recorded, and never raising for what memory holds.

The host under update wrote the tables, so nothing in them is believed: every read and every run
is paid for out of one budget, and whatever cannot be followed becomes a
:class:`~liveupdate.formats.iommu.TableFault` instead of an exception.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats.iommu import (
    UNREADABLE,
    ByteReader,
    FaultKind,
    MappingSet,
    Requester,
    Run,
    RunBuilder,
    TableFault,
)
from liveupdate.formats.iommu_watch import TableFingerprint, TablePage

#: entries of a paging table
ENTRIES = 512

_TABLE = struct.Struct(f"<{ENTRIES}Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkLimits:
    """Bounds of one decode, over all requesters together.

    The defaults admit 64 GiB mapped in 4 KiB pages and hold hostile tables to seconds.
    """

    #: 4 KiB pages of tables read
    tables: int = 1 << 15
    runs: int = 1 << 20
    requesters: int = 1 << 12
    faults: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedTables:
    """What a decode found.

    :ivar sets: one per requester, ascending.
    :ivar faults: of the structures above those of any one requester.
    :ivar pages: what was read of the tables, byte for byte, each part once.
    """

    sets: tuple[MappingSet, ...]
    faults: tuple[TableFault, ...]
    pages: tuple[TablePage, ...]

    @property
    def is_complete(self) -> bool:
        """Whether everything could be read and followed."""
        return not self.faults and not any(item.faults for item in self.sets)

    def fingerprint(self) -> TableFingerprint:
        """Make the cheap re-check of exactly the bytes this was decoded from."""
        return TableFingerprint(pages=self.pages)

    def paging_fingerprint(self) -> TableFingerprint:
        """Make the same of page tables only, without the entries that lead to them."""
        return TableFingerprint(pages=tuple(page for page in self.pages if page.is_paging))


def devices_of(requesters: Iterable[Requester]) -> list[Requester]:
    """Give the devices of requesters, each once, in order and without a PASID."""
    devices = {replace(requester, pasid=None) for requester in requesters}
    return sorted(devices, key=Requester.sort_key)


class Walk:
    """State of one decode: budget, faults, record of the bytes used."""

    def __init__(self, reader: ByteReader, limits: WalkLimits) -> None:
        self._reader = reader
        self._limits = limits
        self._tables = 0
        self._runs = 0
        self._requesters = 0
        self._fault_count = 0
        self._faults: list[TableFault] = []
        self._pages: dict[tuple[int, int], TablePage] = {}
        self._domains: dict[Hashable, tuple[tuple[Run, ...], tuple[TableFault, ...]]] = {}
        #: set once a budget is used up; every loop over tables must end then
        self.is_exhausted = False

    def read(self, address: int, size: int, what: str, *, level: int = 0) -> bytes | None:
        """Read a table; on failure note the fault and give None."""
        pages = -(-size // PAGE_BYTES)
        if self._tables + pages > self._limits.tables:
            self.exhaust(address, f"more than {self._limits.tables} table pages", level=level)
        if self.is_exhausted:
            return None
        self._tables += pages
        try:
            data = self._reader.read(address, size)
        except UNREADABLE as error:
            self.fault(FaultKind.UNREADABLE, address, f"{what}: {error}", level=level)
            return None
        if len(data) != size:
            detail = f"{what}: {len(data)} of {size} bytes"
            self.fault(FaultKind.SHORT_READ, address, detail, level=level)
            return None
        return data

    def read_entries(self, address: int, level: int, volatile: int) -> Sequence[int] | None:
        """Read a paging table and record it.

        :param volatile: bits of each entry which hardware sets by itself.
        """
        data = self.read(address, PAGE_BYTES, "paging table", level=level)
        if data is None:
            return None
        self.record(address, data, volatile=volatile, is_paging=True)
        return _TABLE.unpack(data)

    def record(
        self, address: int, data: bytes, *, volatile: int = 0, is_paging: bool = False
    ) -> None:
        """Keep bytes that the result depends on."""
        page = TablePage(phys=address, data=bytes(data), volatile=volatile, is_paging=is_paging)
        self._pages[address, len(data)] = page

    def fault(self, kind: FaultKind, address: int, detail: str, *, level: int = 0) -> None:
        """Note something that cannot be followed."""
        if self.is_exhausted:
            return
        self._faults.append(TableFault(kind=kind, address=address, level=level, detail=detail))
        self._fault_count += 1
        if self._fault_count >= self._limits.faults:
            self.exhaust(address, f"{self._fault_count} faults, giving up", level=level)

    def exhaust(self, address: int, detail: str, *, level: int = 0) -> None:
        """Give up on the rest, saying where."""
        if not self.is_exhausted:
            self.is_exhausted = True
            self._faults.append(
                TableFault(kind=FaultKind.BUDGET, address=address, level=level, detail=detail)
            )

    def charge_runs(self, builder: RunBuilder, charged: int, address: int, level: int) -> int:
        """Pay for the runs a builder has gained since ``charged``; give its new count."""
        count = len(builder.runs)
        self._runs += count - charged
        if self._runs > self._limits.runs:
            self.exhaust(address, f"more than {self._limits.runs} runs", level=level)
        return count

    def share(
        self, key: Hashable, walk: Callable[[], tuple[Run, ...]]
    ) -> tuple[tuple[Run, ...], tuple[TableFault, ...]]:
        """Walk the tables of a domain once, whose devices share them; give its runs and faults."""
        if key not in self._domains:
            self._domains[key] = walk(), self.take_faults()
        return self._domains[key]

    def charge_requester(self, address: int) -> bool:
        """Pay for one more mapping set; False: no more of them."""
        self._requesters += 1
        if self._requesters > self._limits.requesters:
            self.exhaust(address, f"more than {self._limits.requesters} requesters")
        return not self.is_exhausted

    def take_faults(self) -> tuple[TableFault, ...]:
        """Give the faults noted since the last call."""
        faults = tuple(self._faults)
        self._faults.clear()
        return faults

    def pages(self) -> tuple[TablePage, ...]:
        """Give the record, ascending by address."""
        return tuple(self._pages[key] for key in sorted(self._pages))
