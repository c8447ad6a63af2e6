# SPDX-License-Identifier: Apache-2.0
"""The files of a run directory: they appear whole or not at all, and an index of what was written.

Knows names and digests, nothing of what evidence means: that is in :mod:`liveupdate.model.slots`.
Documents are written to a temporary file, fsync'ed and renamed; logs are appended to and never
edited. What is about to be stored is entered in ``evidence/index.jsonl`` first
(:mod:`liveupdate.evidence.chain`), so that a file that was not stored, went missing or was altered
is known when the run is read back (:mod:`liveupdate.evidence.reread`).
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
from typing import TYPE_CHECKING

from liveupdate.core.atomic_write import atomic_write
from liveupdate.core.errors import EvidenceError, LiveUpdateError
from liveupdate.evidence.beneath import digest_beneath, names_beneath, read_beneath
from liveupdate.evidence.chain import Index, link, read_index
from liveupdate.model import codec, slots
from liveupdate.model.evidence import Artifact
from liveupdate.model.plan import Plan

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

LATEST = "latest"
#: made from the evidence, at any time
MADE_AGAIN = (slots.RESULT, slots.JUNIT, slots.REPORT)
DISKS = "disks/"


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


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all, also after a crash; ``mode`` is before the umask.

    :raises StoreError: it cannot be written; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(path, data, mode=mode)
    except OSError as error:
        raise StoreError(path, error) from error


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Append one line with one write; a line that does not fit is removed again.

    :raises StoreError: it cannot be written.
    """
    data = line.encode(errors="replace") + b"\n"
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


class RunFiles:
    """The files of one run. Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        #: the digest of the index's last line, and its last entries
        self._head = ""
        self._entries: dict[str, Artifact] = {}
        #: digest and size of what files that grow are to have
        self._grown: dict[str, tuple[Digest, int]] = {}
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
        run._enter(run=path.name)
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

    @classmethod
    def reopen(cls, path: Path) -> RunFiles:
        """Open an existing run directory to store more in it.

        :raises EvidenceError: when there is none, or it cannot be continued.
        """
        run = cls.open(path)
        index = run.index()
        if index.head is None:
            raise EvidenceError(
                f"'{path}' was begun by an earlier version", hint="continue it with that version"
            )
        run._head = index.head
        run._entries = {name: each for name, each in index.entries.items() if each is not None}
        return run

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
        """Enter a whole file in the index, and write it.

        :raises StoreError: when either cannot be written.
        """
        raw = data.encode(errors="replace") if isinstance(data, str) else data
        artifact = _describe(relative, hashlib.sha256(raw), len(raw))
        with self._lock:
            self._check(self.path / relative)
            self._enter_file(artifact)
            write_atomic(self.path / relative, raw)
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
        text = "\n".join(map(_to_line, rows))
        with self._lock:
            self._check(path)
            digest, size = self._tail(relative)
            raw = f"{text}\n".encode(errors="replace") if rows else b""
            digest.update(raw)
            # kept also when the rows do not get there: all later entries then name them
            self._grown[relative] = digest, size + len(raw)
            self._enter_file(_describe(relative, digest, size + len(raw)))
            if not path.exists():
                write_atomic(path, b"")
            if rows:
                append_line(path, text)

    def _tail(self, relative: str) -> tuple[Digest, int]:
        """Return digest and size of a file that is to be appended to."""
        if relative in self._grown:
            return self._grown[relative]
        recorded = self._entries.get(relative)
        if recorded is None:
            return hashlib.sha256(), 0
        with contextlib.suppress(OSError):
            digest = hashlib.sha256(read_beneath(self.path, relative))
            if digest.hexdigest() == recorded.sha256:
                return digest, recorded.size_bytes
        # It is not what an earlier process has entered, and must not look whole by what follows.
        return hashlib.sha256(secrets.token_bytes(32)), 0

    def growing(self, directory: str) -> tuple[str, ...]:
        """Name the JSON-lines files below ``directory`` that were appended to."""
        return tuple(
            path
            for path in self._entries
            if path.startswith(f"{directory}/") and path.endswith("l")
        )

    def discard(self, relative: str) -> None:
        """Empty a file that was appended to, so that it can be written again.

        :raises StoreError: it cannot be emptied.
        """
        self.write(relative, b"")
        self._grown[relative] = hashlib.sha256(), 0

    def close(self, failed: Mapping[str, str]) -> None:
        """Write the closing record, which names every file, and what could not be stored.

        :raises StoreError: it cannot be written: the run directory then stays an ERROR.
        """
        path = self.path / slots.INDEX
        with self._lock:
            self._check(path)
            try:
                (self.path / slots.RESULT).unlink(missing_ok=True)  # it names another seal
                logs = [name for name in names_beneath(self.path) if is_log(name)]
                found = [_describe(name, *digest_beneath(self.path, name)) for name in logs]
            except OSError as error:
                raise StoreError(path, error) from error
            self._enter(
                sync=True,
                closed=codec.encode([*self._entries.values(), *found]),
                failed=dict(failed),
            )

    def _enter_file(self, artifact: Artifact) -> None:
        self._enter(**codec.encode(artifact))
        self._entries[artifact.path] = artifact

    def _enter(self, *, sync: bool = False, **row: object) -> None:
        line, head = link(self._head, **row)
        append_line(self.path / slots.INDEX, line, sync=sync)
        self._head = head

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
        """Refuse a write that is to fail, and one out of the directory: a host may name files."""
        if ".." in path.parts or not path.is_relative_to(self.path):
            raise StoreError(path, OSError(errno.EXDEV, "leads out of the run directory"))
        if self.broken is not None:
            raise StoreError(path, self.broken)

    # --- reading

    def index(self) -> Index:
        """Read the index.

        :raises EvidenceError: there is no index, a line of it is garbled or not linked.
        """
        try:
            return read_index(read_beneath(self.path, slots.INDEX))
        except OSError as error:
            raise EvidenceError(f"'{slots.INDEX}' cannot be read: {say(error)}") from error

    def load_plan(self) -> Plan:
        """Read the plan back.

        :raises EvidenceError: when it is missing, garbled or altered.
        """
        path = self.path / slots.PLAN
        try:
            recorded = self.index().entries.get(slots.PLAN)
            raw = read_beneath(self.path, slots.PLAN)
            if recorded is None or recorded.sha256 != hashlib.sha256(raw).hexdigest():
                raise EvidenceError(f"'{path}' was altered after it was written")
            return codec.loads(Plan, "plan", raw)
        except (OSError, ValueError) as error:
            raise EvidenceError(f"'{path}' cannot be used: {say(error)}") from error

    def artifacts(self) -> tuple[Artifact, ...]:
        """Describe the files of the run as they are now: those of the index, and the consoles."""
        try:
            names = set(self.index().entries)
        except EvidenceError:
            names = set()
        names |= {
            path.relative_to(self.path).as_posix() for path in self.path.glob("boot-*/console.log")
        }
        found: list[Artifact] = []
        for name in sorted(names):
            with contextlib.suppress(OSError):
                found.append(_describe(name, *digest_beneath(self.path, name)))
        return tuple(found)


def is_log(relative: str) -> bool:
    """Whether a file of a run directory is neither evidence, nor a report, nor a guest's disk."""
    others = (*MADE_AGAIN, slots.SCENARIO, slots.PLAN, slots.PROVENANCE.place)
    return relative not in others and not relative.startswith((f"{slots.EVIDENCE}/", DISKS))


def _describe(relative: str, digest: Digest | str, size_bytes: int) -> Artifact:
    sha256 = digest if isinstance(digest, str) else digest.hexdigest()
    return Artifact(path=relative, sha256=sha256, size_bytes=size_bytes)


def _to_line(row: object) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)


def say(error: Exception) -> str:
    """Say what is wrong, without the numbers of an OSError."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
