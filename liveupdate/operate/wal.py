# SPDX-License-Identifier: Apache-2.0
"""The journal on disk: a record is written whole before :meth:`Wal.append` returns.

Only one process at a time writes to a journal; a second one is refused.
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

from liveupdate.core.errors import EvidenceError, LaunchError
from liveupdate.evidence.beneath import read_beneath
from liveupdate.evidence.files import StoreError
from liveupdate.model import slots
from liveupdate.operate.journal import Record, State, decode, encode, replay

#: a journal has some hundred lines
_MAX_BYTES = 16 << 20


def read_journal(run_dir: Path) -> tuple[Record, ...]:
    """Read an update's journal without changing it.

    :raises EvidenceError: there is none, or it is not a liveupdate journal.
    """
    path = run_dir / slots.JOURNAL
    try:
        return decode(read_beneath(run_dir, slots.JOURNAL, _MAX_BYTES))
    except OSError as error:
        raise EvidenceError(
            f"'{path}' is no journal of an update: {error.strerror}",
            hint="name the run directory that 'liveupdate apply' printed",
        ) from error


class Wal:
    """One update's journal, open for writing. A context manager."""

    def __init__(self, run_dir: Path, *, create: bool = False) -> None:
        """:raises LaunchError: another process writes to it.
        :raises EvidenceError: it is not a liveupdate journal.
        :raises StoreError: it cannot be opened.
        """
        self.path = run_dir / slots.JOURNAL
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = os.open(self.path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        except OSError as error:
            raise StoreError(self.path, error) from error
        try:
            self._lock(run_dir)
            self._records = list(read_journal(run_dir))
            self._cut_torn_line()
        except BaseException:
            os.close(self._fd)
            raise
        self.state: State = replay(self._records)

    def __enter__(self) -> Wal:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)

    def _lock(self, run_dir: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"another process works on '{run_dir}'", hint="wait until it has ended"
            ) from error

    def _cut_torn_line(self) -> None:
        """Remove what the last writer did not finish: a record may not follow half a line."""
        data = os.pread(self._fd, _MAX_BYTES, 0)
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.ftruncate(self._fd, whole)
            os.fsync(self._fd)

    @property
    def records(self) -> tuple[Record, ...]:
        """All records so far, in order."""
        return tuple(self._records)

    def append(self, kind: str, **data: object) -> None:
        """Write a record; its action may begin when this has returned.

        :raises StoreError: it is not on disk, so its action must not begin.
        """
        utc = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = Record(n=len(self._records), utc=utc, kind=kind, data=data)
        line = encode(record).encode() + b"\n"
        try:
            size = os.fstat(self._fd).st_size
            if os.write(self._fd, line) != len(line):
                os.ftruncate(self._fd, size)
                raise OSError(28, os.strerror(28))
            os.fsync(self._fd)
        except OSError as error:
            raise StoreError(self.path, error) from error
        self._records.append(record)
        self.state = replay(self._records)
