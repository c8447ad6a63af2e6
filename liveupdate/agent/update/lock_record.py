# SPDX-License-Identifier: Apache-2.0
"""An update as its operator sees it: who holds this host, and what was observed meanwhile.

The lock keeps a second control host out. The record keeps every event and samples of every guest's
tick page, so that the facts are known even if no control host was connected: the network or the
control host's process may be gone. Both go through the kexec in a file beside the manifest.

The record's lines are JSON: events as on the wire, ``{"tick": GUEST, "t_ns", "page": hex}``,
``{"pong": GUEST, "t_ns", "realtime_ns"}``, ``{"watched": {"began_ns", "ended_ns",
"longest_hole_ns"}}`` and ``{"dropped": N}``. Each has ``boot``: 0 before the kexec, 1 after it.
Times: CLOCK_BOOTTIME of that boot. What the previous kernel left is untrusted, as is all of the
manifest.
"""

from __future__ import annotations

import _thread
import os
import time
from binascii import crc32, hexlify
from struct import Struct

from ..base.fast_stdlib import TYPE_CHECKING, Task, decode_json, encode_json, now_ns
from ..base.names import CallError

if TYPE_CHECKING:
    from ..guest.guests import Guest

ID_MAX = 64
OWNER_MAX = 200
#: what a record may grow to; the end of it is dropped, and says so
RECORD_BYTES_MAX = 256 << 20
#: room in the preserved file: for events, for each guest's looks, and for digests of a page
LOG_BYTES_BASE = 1 << 20
LOG_BYTES_PER_GUEST = 2 << 20
LOG_BYTES_PER_PAGE = 12
LOOK_S = 0.02
#: of each guest; older ones are forgotten: some 40 s
LOOKS_KEPT = 2000
#: for how long an incoming agent looks by itself at guests that all run again, and at the most
WATCH_AFTER_NS = 30_000_000_000
WATCH_MOST_NS = 120_000_000_000
PING_S = 0.25
PING_TIMEOUT_S = 2.0
TICK_BYTES = 128

MAGIC = b"LURECRD1"
#: room for the line that counts what did not fit
DROPPED_BYTES = 64
#: magic, bytes of the body, crc32 of it, 0; the body: the lock, then the record's lines
_HEADER = Struct("<8sQII")

#: calls that change nothing; every client of the socket may make them
READ_ONLY = frozenset(("ping", "facts", "guest_status", "device_status", "update_status", "survey"))


class Lock:
    """Who updates this host; it comes from the control host, and again from the manifest."""

    def __init__(self, raw: object) -> None:
        """:raises ValueError: the fields are not those of a lock."""
        if not isinstance(raw, dict):
            raise ValueError("an update must be an object")
        self.id = _text(raw, "id", ID_MAX)
        self.owner = _text(raw, "owner", OWNER_MAX)
        since = raw.get("since")
        #: CLOCK_REALTIME, ns; tells one taking from the next
        self.since = since if isinstance(since, int) else 0
        self.digest = raw.get("digest") is True
        watch = raw.get("watch", {})
        if not isinstance(watch, dict) or not all(
            isinstance(key, str) and isinstance(at, int) and at >= 0 for key, at in watch.items()
        ):
            raise ValueError("'watch' must give an offset for each guest")
        #: guest to the offset of its tick page in its RAM
        self.watch: dict[str, int] = watch

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON."""
        return dict(vars(self))


class Update:
    """The lock and the record of this host."""

    def __init__(self, guests: dict[str, Guest]) -> None:
        self._guests = guests
        self.lock: Lock | None = None
        #: 0: of this kernel; 1: it came from the previous one
        self.boot = 0
        self._guard = _thread.allocate_lock()
        self._reset()
        self._watching = False
        self._idle = _thread.allocate_lock()

    def _reset(self) -> None:
        self.boot = 0
        #: what the previous kernel left
        self._old: list[bytes] = []
        self._events: list[bytes] = []
        self._bytes = 0
        self._dropped = 0
        #: (t_ns, line), oldest first
        self._looks: list[tuple[int, bytes]] = []
        self._watched: _Watched | None = None
        self._snapshot: list[bytes] = []

    # --- the lock

    def begin(self, args: dict[str, object]) -> dict[str, object]:
        """Lock the host for an update; idempotent for the same id.

        :raises CallError: another update holds it.
        """
        try:
            wanted = Lock({**args, "since": time.time_ns()})
        except ValueError as err:
            raise CallError("args", str(err)) from err
        if self.lock is None:
            self._reset()
            self.lock = wanted
        self.check(wanted.id)
        return self.lock.to_json()

    def check(self, holder: str) -> None:
        """Refuse a caller that does not hold the host.

        :raises CallError: ``locked``, naming who does.
        """
        lock = self.lock
        if lock is not None and lock.id != holder:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(lock.since // 10**9))
            raise CallError(
                "locked", f"update '{lock.id}' of {lock.owner} holds this host since {when}"
            )

    def end(self) -> None:
        """Release the host and forget the record."""
        self.unwatch()
        self.lock = None
        with self._guard:
            self._reset()

    # --- the record

    def note(self, name: str, line: bytes) -> None:
        """Keep an event's line as it is sent; from any thread. Events of guests are not kept."""
        if self.lock is None or name == "guest-line":
            return
        entry = line.rstrip()[:-1] + b',"boot":%d}' % self.boot
        with self._guard:
            if self._bytes + len(entry) > RECORD_BYTES_MAX:
                self._dropped += 1
                return
            self._events.append(entry)
            self._bytes += len(entry) + 1

    def _keep_look(self, entry: dict[str, object], at: int) -> None:
        line = encode_json({**entry, "t_ns": at, "boot": self.boot})
        with self._guard:
            self._looks.append((at, line))
            too_many = len(self._looks) - LOOKS_KEPT * max(1, len(self._guests))
            if too_many > 0 and self._watched is not None:
                # of the outgoing kernel the newest matter; the incoming one's watch has an end
                del self._looks[: too_many + LOOKS_KEPT // 4]
                self._watched.began = self._looks[0][0]

    def _lines(self) -> list[bytes]:
        lines = [*self._old, *self._events, *(line for _, line in self._looks)]
        if self._watched is not None:
            lines.append(encode_json({"watched": self._watched.to_json(), "boot": self.boot}))
        if self._dropped:
            lines.append(encode_json({"dropped": self._dropped, "boot": self.boot}))
        return lines

    def read(self, start: int, limit: int) -> dict[str, object]:
        """Return lines from number ``start`` on, about ``limit`` bytes; 0 takes a snapshot first.

        ``next`` is the number to continue with, ``last`` whether there is no more.
        """
        if start == 0:
            with self._guard:
                self._snapshot = self._lines()
        lines = self._snapshot[start:]
        taken: list[str] = []
        size = 0
        for line in lines:
            if taken and size + len(line) > limit:
                break
            taken.append(line.decode())
            size += len(line)
        last = len(taken) == len(lines)
        if last:
            self._snapshot = []
        return {"lines": taken, "next": start + len(taken), "last": last}

    def find(self, name: str) -> dict[str, object] | None:
        """Return the data of the newest event of that name."""
        mark = b'"event":"%s"' % name.encode()
        with self._guard:
            found = next((line for line in reversed(self._events) if mark in line), None)
        entry = decode_json(found) if found is not None else None
        data = entry.get("data") if isinstance(entry, dict) else None
        return data if isinstance(data, dict) else None

    # --- through the kexec

    def log_bytes(self) -> int:
        """Return how large the preserved file has to be: whole pages."""
        size = LOG_BYTES_BASE + len(self._guests) * LOG_BYTES_PER_GUEST
        if self.lock is not None and self.lock.digest:
            size += sum(g.spec.pages * LOG_BYTES_PER_PAGE for g in self._guests.values())
        return -(-min(size, RECORD_BYTES_MAX) // 4096) * 4096

    def save(self, fd: int) -> None:
        """Write the record into a file of ``log_bytes``; lines that do not fit are counted."""
        if self.lock is None:
            return
        room = os.fstat(fd).st_size - _HEADER.size
        with self._guard:
            body = b"\n".join([encode_json(self.lock.to_json()), *self._lines()])
        if len(body) > room:
            end = max(0, body.rfind(b"\n", 0, room - DROPPED_BYTES))
            dropped = encode_json({"dropped": body.count(b"\n", end), "boot": self.boot})
            body = b"%s\n%s" % (body[:end], dropped)
        os.pwrite(fd, _HEADER.pack(MAGIC, len(body), crc32(body), 0), 0)
        at, view = _HEADER.size, memoryview(body)
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done

    def take_over(self, fd: int) -> None:
        """Continue the update that the previous kernel was left in, as ``save`` wrote it.

        :raises ValueError: ``save`` did not write it.
        """
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) != _HEADER.size:
            raise ValueError("the record is too short")
        magic, length, crc, _reserved = _HEADER.unpack(header)
        if magic != MAGIC or length > os.fstat(fd).st_size - _HEADER.size:
            raise ValueError("the record has no valid header")
        body = os.pread(fd, length, _HEADER.size)
        if crc32(body) != crc:
            raise ValueError("the record's checksum does not match")
        first, *lines = body.split(b"\n")
        self.lock = Lock(decode_json(first))
        self.boot = 1
        with self._guard:
            self._old = lines

    # --- looking at guests

    def watch(self, offsets: object = None) -> None:
        """Start to watch the guests; an update that came through the kexec knows where.

        :raises CallError: ``offsets`` is not {guest: offset}.
        """
        if self.lock is None:
            raise CallError("state", "no update holds this host")
        if offsets is not None:
            try:
                self.lock.watch = Lock({**self.lock.to_json(), "watch": offsets}).watch
            except ValueError as err:
                raise CallError("args", str(err)) from err
        if not self._watching:
            with self._idle:  # the last look of before
                self._watching = True
            Task(self._look_on)

    def unwatch(self) -> None:
        """Stop watching, without waiting for a sample in progress; all samples are kept."""
        self._watching = False

    def _look_on(self) -> None:
        with self._idle:
            with self._guard:
                self._looks = []
                watched = self._watched = _Watched()
            seen: dict[str, bytes] = {}
            pinged = 0.0
            while self._is_watching(watched):
                lock = self.lock
                if lock is None:
                    break
                for name, offset in list(lock.watch.items()):
                    self._look(name, offset, seen)
                if time.monotonic() - pinged >= PING_S:
                    pinged = time.monotonic()
                    self._ping_guests()
                watched.add(now_ns())
                time.sleep(LOOK_S)
            self._watching = False

    def _is_watching(self, watched: _Watched) -> bool:
        if self.boot == 1:
            if watched.running_since is None and self._all_run():
                watched.running_since = watched.last
            began, most = watched.began, WATCH_MOST_NS
            if watched.running_since is not None:
                began, most = watched.running_since, WATCH_AFTER_NS
            if watched.last - began >= most:
                return False
        return self._watching

    def _all_run(self) -> bool:
        guests = [self._guests.get(name) for name in (self.lock.watch if self.lock else ())]
        return all(guest is not None and _runs(guest) for guest in guests)

    def _look(self, name: str, offset: int, seen: dict[str, bytes]) -> None:
        guest = self._guests.get(name)
        if guest is None or guest.ram is None or not _runs(guest):
            return
        at = now_ns()
        try:
            page = os.pread(guest.ram.fd, TICK_BYTES, guest.ram.offset + offset)
        except OSError:
            return
        # one that was caught in the middle of a write is found by its checksum, later
        if _runs(guest) and seen.get(name) != page:
            seen[name] = page
            self._keep_look({"tick": name, "page": hexlify(page).decode("ascii")}, at)

    def _ping_guests(self) -> None:
        for name, guest in list(self._guests.items()):
            if guest.spec.qga and guest.running:
                from ..guest.guest_agent import ask_time

                try:
                    answer: int | None = ask_time(guest, PING_TIMEOUT_S)
                except Exception:
                    answer = None  # no answer is the fact
                self._keep_look({"pong": name, "realtime_ns": answer}, now_ns())


def _runs(guest: Guest) -> bool:
    """Ask anew each time: another thread pauses it."""
    return guest.running


class _Watched:
    """When was looked: first, last, and the longest time between two looks, in ns."""

    def __init__(self) -> None:
        self.began = self.last = now_ns()
        self.longest = 0
        self.running_since: int | None = None

    def add(self, at: int) -> None:
        self.longest = max(self.longest, at - self.last)
        self.last = at

    def to_json(self) -> dict[str, int]:
        return {"began_ns": self.began, "ended_ns": self.last, "longest_hole_ns": self.longest}


def _text(raw: dict[str, object], key: str, limit: int) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= limit or not value.isprintable():
        raise ValueError(f"'{key}' must be a printable string of 1 to {limit}")
    return value
