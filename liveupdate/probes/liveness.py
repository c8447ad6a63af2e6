# SPDX-License-Identifier: Apache-2.0
"""Liveness of guests over time, from outside: tick page in RAM, network echo, journal on disk.

Each watcher collects from enter to exit; :meth:`take` hands over what was collected since the last
call, so that one watcher serves any number of hops.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from msgspec.structs import replace

from liveupdate.core.deadline import Deadline
from liveupdate.formats import arp, echo, journal, tickpage
from liveupdate.model.evidence import Echo, JournalSample, Tick
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.probes.base import Sampler
from liveupdate.transport.guest_network import Frame, Wire

T = TypeVar("T")


class Watcher(ABC, Generic[T]):
    """Samples one guest again and again in a thread of its own, and keeps what has changed."""

    def __init__(self, name: str, interval_s: float) -> None:
        self._lock = threading.Lock()
        self._kept: list[T] = []
        self.sampler = Sampler(name, interval_s, self._sample)

    @abstractmethod
    def _sample(self) -> None:
        """Take one sample."""

    def _keep(self, sample: T) -> None:
        with self._lock:
            self._kept.append(sample)

    def take(self) -> tuple[T, ...]:
        """Return what was kept since the last call; the newest is also the first of the next
        call.
        """
        with self._lock:
            kept, self._kept = self._kept, self._kept[-1:]
        return tuple(kept)


class TickWatcher(Watcher[Tick]):
    """Reads one guest's tick page; keeps a reading whenever its sequence moved.

    A page that does not decode (the guest is writing it, or the frame has another use now) is never
    taken for a tick.
    """

    def __init__(self, guest: str, read: Callable[[], bytes], interval_s: float) -> None:
        """:param read: returns the page as it is now; its :class:`tickpage.TickPageError` is no
        tick.
        """
        super().__init__(f"tick-{guest}", interval_s)
        self._read = read
        self._last: tuple[int, int] | None = None

    def _sample(self) -> None:
        try:
            page = tickpage.read_tick(self._read)
        except tickpage.TickPageError:
            return
        tick = page.to_tick(time.monotonic_ns())
        if (tick.boot, tick.seq) != self._last:
            self._last = (tick.boot, tick.seq)
            self._keep(tick)

    def first_after(self, host_ns: int) -> int | None:
        """Return the host time of the first tick seen after ``host_ns``; None: none so far."""
        with self._lock:
            return next((tick.host_ns for tick in self._kept if tick.host_ns > host_ns), None)


class DiskFile:
    """A guest's raw disk image, open while it is read; a :class:`journal.DiskReader`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> DiskFile:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    @property
    def size_bytes(self) -> int:
        """The size of the image in bytes."""
        return os.fstat(self._fd).st_size

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Read ``size_bytes`` at ``offset``; fewer at the end of the image."""
        return os.pread(self._fd, size_bytes, offset)


def scan_disk(path: Path, *, boot: int) -> JournalFacts:
    """Scan a guest's whole journal disk.

    :raises OSError: it cannot be read.
    :raises journal.JournalError: it is empty or of an odd size.
    """
    with DiskFile(path) as disk:
        return journal.scan_journal(disk, boot=boot)


class JournalWatcher(Watcher[JournalSample]):
    """Reads the newest journal record on one guest's disk; keeps a sample whenever it moved."""

    def __init__(self, guest: str, disk: Path, interval_s: float) -> None:
        super().__init__(f"journal-{guest}", interval_s)
        self._disk = disk
        self._last = 0

    def _sample(self) -> None:
        try:
            with DiskFile(self._disk) as disk:
                record = journal.newest_record(disk, hint=self._last)
        except (OSError, journal.JournalError):
            # A disk that is gone gives no more samples, which the judge notices.
            return
        if record is not None and record.seq != self._last:
            self._last = record.seq
            self._keep(record.to_sample(time.monotonic_ns()))


class EchoWatcher:
    """Sends requests to every guest over one link, again and again, and matches the answers.

    The shipped payload gets a numbered echo. A user's own image gets an ARP probe for its IPv4
    address; its answer carries no number and counts for the newest request.
    """

    def __init__(
        self,
        wire: Wire,
        macs: Mapping[str, str],
        addresses: Mapping[str, str],
        own_mac: str,
        interval_s: float,
    ) -> None:
        """:param macs: MAC address of each guest with the shipped payload.
        :param addresses: IPv4 address of each guest without it.
        """
        self._wire = wire
        self._macs = dict(macs)
        self._probes = {
            guest: arp.build_probe(address, own_mac) for guest, address in addresses.items()
        }
        self._own_mac = own_mac
        self._lock = threading.Lock()
        self._seq = 0
        #: the guests that are asked
        self.guests = (*macs, *addresses)
        self._sent: dict[str, dict[int, Echo]] = {guest: {} for guest in self.guests}
        self._guest_of = {mac.lower(): guest for guest, mac in macs.items()}
        self._guest_at = {address: guest for guest, address in addresses.items()}
        self.sender = Sampler("echo-send", interval_s, self._send)
        self.receiver = Sampler("echo-receive", 0.0, self._receive)

    def _send(self) -> None:
        self._seq += 1
        for guest, mac in self._macs.items():
            now = self._note(guest)
            # A full or absent peer loses the frame like a real wire would: it stays unanswered.
            self._wire.send(
                echo.build_request(
                    destination=mac, source=self._own_mac, seq=self._seq, sender_ns=now
                )
            )
        for guest, probe in self._probes.items():
            self._note(guest)
            self._wire.send(probe)

    def _note(self, guest: str) -> int:
        now = time.monotonic_ns()
        with self._lock:
            self._sent[guest][self._seq] = Echo(
                seq=self._seq, sent_ns=now, received_ns=None, boot=None
            )
        return now

    def _receive(self) -> None:
        frame = self._wire.recv(Deadline.after(0.2, "an echo reply"))
        if frame is None:
            return
        try:
            reply = echo.decode_echo(frame.data)
        except echo.NotEchoError:
            self._receive_arp(frame)
            return
        except echo.EchoError:
            return
        guest = self._guest_of.get(reply.source)
        if (
            guest is not None
            and reply.kind == echo.REPLY
            and reply.destination.lower() == self._own_mac.lower()
        ):
            self._answer(guest, reply.seq, frame.at_ns, reply.boot, reply.sender_ns)

    def _receive_arp(self, frame: Frame) -> None:
        try:
            guest = self._guest_at.get(arp.decode_reply(frame.data, self._own_mac))
        except arp.ArpError:
            return
        if guest is not None:
            self._answer(guest, self._seq, frame.at_ns, None, None)

    def _answer(
        self, guest: str, seq: int, at_ns: int, boot: int | None, sender_ns: int | None
    ) -> None:
        """Note an answer; one that does not give our time back answers another question."""
        with self._lock:
            asked = self._sent[guest].get(seq)
            if (
                asked is not None
                and asked.received_ns is None
                and sender_ns in (None, asked.sent_ns)
            ):
                self._sent[guest][seq] = replace(asked, received_ns=at_ns, boot=boot)

    def take(self, guest: str) -> tuple[Echo, ...]:
        """Return the requests to ``guest`` since the last call, answered or not."""
        with self._lock:
            sent, self._sent[guest] = self._sent[guest], {}
        return tuple(sent[seq] for seq in sorted(sent))
