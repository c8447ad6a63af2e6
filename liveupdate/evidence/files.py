# SPDX-License-Identifier: Apache-2.0
"""The files of a run directory: they appear whole or not at all, and an index of what was written.

Knows names and digests, nothing of what evidence means: that is in :mod:`liveupdate.model.slots`.
Documents are written to a temporary file, fsync'ed and renamed; logs are appended to and never
edited. ``evidence/index.jsonl`` names every file with its sha256 (null while it is still growing),
so that a file that went missing or was altered is known when the run is read back
(:mod:`liveupdate.evidence.reread`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from liveupdate.core.atomic_write import atomic_write
from liveupdate.core.errors import EvidenceError, LiveUpdateError
from liveupdate.model import codec, slots
from liveupdate.model.base import Value
from liveupdate.model.evidence import Artifact
from liveupdate.model.plan import Plan

LATEST = "latest"


class StoreError(LiveUpdateError):
    """The run directory cannot be written: full, read-only, gone. Exit 3."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        super().__init__(
            f"cannot write '{path}': {reason}",
            hint="choose another directory with --results, or free some space",
        )
        self.path = path
        self.errno = error.errno


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also after a crash.

    :raises StoreError: it cannot be written; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(path, data)
    except OSError as error:
        raise StoreError(path, error) from error


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Append one line with one write; a line that does not fit is removed again.

    :raises StoreError: it cannot be written.
    """
    data = line.encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            written = os.write(descriptor, data)
            if written != len(data):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(path, error) from error


def digest_file(path: Path, relative: str) -> Artifact:
    """Describe a file as it is now; raises OSError."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Artifact(path=relative, sha256=sha256, size_bytes=file.tell())


class _Entry(Value, frozen=True, kw_only=True):
    """A line of the index; ``sha256`` None: the file was still growing."""

    path: str
    sha256: str | None = None
    size_bytes: int | None = None


class RunFiles:
    """The files of one run. Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        #: the error of every write from now on; the fault disk-full sets it
        self.broken: OSError | None = None

    @classmethod
    def create(
        cls, results_dir: Path, *, run_id: str | None = None, now: datetime | None = None
    ) -> RunFiles:
        """Make ``results_dir/<utc>-<id>/`` and point ``results_dir/latest`` at it.

        An existing directory of that name is never reused.

        :raises StoreError: when it cannot be made.
        """
        stamp = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = results_dir / f"{stamp}-{run_id or secrets.token_hex(3)}"
        try:
            results_dir.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            (path / slots.EVIDENCE).mkdir(mode=0o700)
        except OSError as error:
            raise StoreError(path, error) from error
        run = cls(path)
        run.append_rows(slots.INCIDENTS.place, [])
        run._point_latest(results_dir / LATEST)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFiles:
        """Open an existing run directory; ``latest`` and other links are followed.

        :raises EvidenceError: when there is none.
        """
        resolved = path.resolve()
        if not resolved.is_dir():
            raise EvidenceError(f"'{path}' is not a run directory")
        if not (resolved / slots.PLAN).exists() and not (resolved / slots.EVIDENCE).is_dir():
            raise EvidenceError(
                f"'{path}' has neither '{slots.PLAN}' nor '{slots.EVIDENCE}/'",
                hint="name one directory below the results directory",
            )
        return cls(resolved)

    def _point_latest(self, link: Path) -> None:
        """Set the link ``latest``; a file or directory of that name is the user's and stays."""
        temporary = link.with_name(f".{LATEST}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            if link.exists() and not link.is_symlink():
                return
            temporary.symlink_to(self.path.name)
            temporary.replace(link)

    # --- writing

    def write(self, relative: str, data: bytes | str) -> Artifact:
        """Write a whole file and enter it in the index.

        :raises StoreError: when either cannot be written.
        """
        raw = data.encode() if isinstance(data, str) else data
        artifact = Artifact(
            path=relative, sha256=hashlib.sha256(raw).hexdigest(), size_bytes=len(raw)
        )
        with self._lock:
            self._check(self.path / relative)
            write_atomic(self.path / relative, raw)
            self._enter(relative, artifact)
        return artifact

    def write_report(self, relative: str, text: str) -> Path:
        """Write a file that can be made again from the evidence; it is not in the index.

        :raises StoreError: it cannot be written.
        """
        self._check(self.path / relative)
        write_atomic(self.path / relative, text.encode())
        return self.path / relative

    def append_rows(self, relative: str, rows: Sequence[object]) -> None:
        """Append JSON lines to evidence, all of them or none; creates the file if necessary.

        :raises StoreError: they cannot be written.
        """
        path = self.path / relative
        with self._lock:
            self._check(path)
            if not path.exists():
                write_atomic(path, b"")
                self._enter(relative, None)
            if rows:
                append_line(path, "\n".join(map(_to_line, rows)))

    def growing(self, directory: str) -> tuple[str, ...]:
        """Name the JSON-lines files below ``directory`` that were appended to."""
        return tuple(
            path for path in self.index() if path.startswith(f"{directory}/") and path.endswith("l")
        )

    def discard(self, relative: str) -> None:
        """Empty a file that was appended to, so that it can be written again.

        :raises StoreError: it cannot be emptied.
        """
        with self._lock:
            self._check(self.path / relative)
            write_atomic(self.path / relative, b"")
            self._enter(relative, None)

    def seal(self, relative: str) -> Artifact:
        """Enter the digest of a file that was appended to and is now complete.

        :raises StoreError: the file cannot be read, or the index cannot be written.
        """
        path = self.path / relative
        with self._lock:
            self._check(path)
            try:
                artifact = digest_file(path, relative)
            except OSError as error:
                raise StoreError(path, error) from error
            self._enter(relative, artifact)
        return artifact

    def _enter(self, relative: str, artifact: Artifact | None) -> None:
        row = codec.encode(artifact) if artifact else {"path": relative, "sha256": None}
        append_line(self.path / slots.INDEX, _to_line(row))

    def log(self, relative: str, row: object, *, sync: bool = False) -> None:
        """Append one JSON line to a log that is no evidence; not in the index.

        :param sync: on disk when this returns.
        :raises StoreError: when it cannot be written.
        """
        path = self.path / relative
        with self._lock:
            self._check(path)
            append_line(path, _to_line(row), sync=sync)

    def _check(self, path: Path) -> None:
        if self.broken is not None:
            raise StoreError(path, self.broken)

    # --- reading

    def index(self) -> Mapping[str, Artifact | None]:
        """Read the index; the last entry of a path wins; None: the file was still growing.

        :raises EvidenceError: there is no index, or a line of it is garbled.
        """
        path = self.path / slots.INDEX
        entries: dict[str, Artifact | None] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EvidenceError(f"'{slots.INDEX}' cannot be read: {_say(error)}") from error
        if not text.endswith("\n"):
            raise EvidenceError(f"'{slots.INDEX}' is empty or cut short")
        lines = text.split("\n")[:-1]
        for number, line in enumerate(lines, 1):
            where = f"{slots.INDEX}:{number}"
            try:
                row = codec.parse(_Entry, line, where)
                sealed = row.sha256 is not None
                entries[row.path] = codec.parse(Artifact, line, where) if sealed else None
            except codec.CodecError as error:
                raise EvidenceError(str(error)) from error
        return entries

    def load_plan(self) -> Plan:
        """Read the plan back.

        :raises EvidenceError: when it is missing, garbled or altered.
        """
        path = self.path / slots.PLAN
        try:
            raw = path.read_bytes()
            recorded = self.index().get(slots.PLAN)
            if recorded and recorded.sha256 != hashlib.sha256(raw).hexdigest():
                raise EvidenceError(f"'{path}' was altered after it was written")
            return codec.loads(Plan, "plan", raw)
        except (OSError, ValueError) as error:
            raise EvidenceError(f"'{path}' cannot be used: {_say(error)}") from error

    def artifacts(self) -> tuple[Artifact, ...]:
        """Describe the files of the run as they are now: those of the index, and the consoles."""
        try:
            names = set(self.index())
        except EvidenceError:
            names = set()
        names |= {
            path.relative_to(self.path).as_posix() for path in self.path.glob("boot-*/console.log")
        }
        found: list[Artifact] = []
        for name in sorted(names):
            with contextlib.suppress(OSError):
                found.append(digest_file(self.path / name, name))
        return tuple(found)


def _to_line(row: object) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)


def _say(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
