# SPDX-License-Identifier: Apache-2.0
"""A guest of a fake machine: the payload's tick page, journal, pattern and answers, in Python."""

from __future__ import annotations

import os
import secrets
import threading
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from liveupdate.core.units import PAGE_BYTES, PhysAddr
from liveupdate.formats import echo, journal, pattern, tickpage
from liveupdate.transport.physmem import PhysMem

TICK_PAGE = 3
PATTERN_PAGE = 16
_TICKS_PER_RECORD = 5


class FakeGuest:
    """One guest; it does something whenever :meth:`live` is called, unless it is paused."""

    def __init__(self, args: Mapping[str, Any], ram: PhysMem, frame: int, disk: Path) -> None:
        """:param args: of the agent's call ``start_guests``; :param frame: its first in ``ram``."""
        self.name = str(args["name"])
        self.index = int(args["index"])
        self.seed = int(args["seed"])
        self.pages = int(args["memory_bytes"]) // PAGE_BYTES
        self.pattern_pages = int(args["pattern_bytes"]) // PAGE_BYTES
        self.is_told = bool(args.get("digest"))
        self.has_vcpu_state = bool(args.get("vcpu_state"))
        self.vcpus = int(args["vcpus"])
        self.frame = frame
        self.boot = secrets.randbits(62) + 1
        self.seq = 0
        self.error: str | None = None
        self.is_running = True
        self._ram = ram
        self._disk = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
        self._sectors = os.fstat(self._disk).st_size // journal.SECTOR_BYTES
        self._record, self._crc = 0, 0
        self._lock = threading.Lock()
        self._paused_ns = self._lost_ns = 0
        for page in range(self.pattern_pages):
            ram.write(self.address(PATTERN_PAGE + page), pattern.expected_page(self.seed, page))
        self.live()

    def address(self, page: int) -> PhysAddr:
        """Return the host-physical address of page ``page`` of its RAM."""
        return PhysAddr((self.frame + page) * PAGE_BYTES)

    @property
    def pfns(self) -> bytes:
        """Return the page frame numbers of its RAM, u64 LE each."""
        return array("Q", range(self.frame, self.frame + self.pages)).tobytes()

    def live(self) -> None:
        """Tick, and now and then write a record."""
        with self._lock:
            if not self.is_running:
                return
            now = time.monotonic_ns() - self._lost_ns
            if self.seq % _TICKS_PER_RECORD == 0:
                self._write_record(now)
            self.seq += 1
            page = tickpage.TickPage(
                lock=0, boot=self.boot, seq=self.seq, tsc=2 * now, monotonic_ns=now,
                boottime_ns=now, realtime_ns=now, seed=self.seed, pattern_pages=self.pattern_pages,
                pattern_bad=0, journal_seq=self._record, echo_count=0,
            )  # fmt: skip
            self._ram.write(self.address(TICK_PAGE), tickpage.encode_tick(page))

    def _write_record(self, now: int) -> None:
        self._record += 1
        data = journal.encode_record(
            boot=self.boot, seq=self._record, monotonic_ns=now, prev_crc=self._crc
        )
        self._crc = int.from_bytes(data[-4:], "little")
        at = (self._record - 1) % self._sectors
        os.pwrite(self._disk, data, at * journal.SECTOR_BYTES)

    def answer(self, request: echo.EchoFrame) -> bytes | None:
        """Return the answer to an echo request; None: the guest is paused or not meant."""
        with self._lock:
            if not self.is_running:
                return None
        reply = echo.EchoFrame(
            destination=request.source, source=request.destination, kind=echo.REPLY,
            seq=request.seq, sender_ns=request.sender_ns, boot=self.boot, tick_seq=self.seq,
        )  # fmt: skip
        return echo.encode_echo(reply)

    def pause(self) -> None:
        """Let the guest stand still."""
        with self._lock:
            self.is_running, self._paused_ns = False, time.monotonic_ns()

    def resume(self) -> None:
        """Go on, with clocks that stood still meanwhile."""
        with self._lock:
            if not self.is_running and self.error is None:
                self._lost_ns += time.monotonic_ns() - self._paused_ns
                self.is_running = True

    def say(self, command: str) -> dict[str, object] | None:
        """Answer a line from outside like the payload."""
        if command == "hello":
            return {
                "ev": "ready", "boot": str(self.boot), "tick_gpa": str(TICK_PAGE * PAGE_BYTES),
                "pattern_gpa_first": str(PATTERN_PAGE * PAGE_BYTES),
                "pattern_pages": str(self.pattern_pages), "seed": str(self.seed),
                "name": self.name, "disk_sectors": str(self._sectors), "mac": "",
            }  # fmt: skip
        if command == "verify":
            bad = sum(
                self._ram.read(self.address(PATTERN_PAGE + page), PAGE_BYTES)
                != pattern.expected_page(self.seed, page)
                for page in range(self.pattern_pages)
            )
            return {"ev": "verified", "pages": str(self.pattern_pages), "bad": str(bad)}
        return None

    def close(self) -> None:
        """Close its disk."""
        os.close(self._disk)
