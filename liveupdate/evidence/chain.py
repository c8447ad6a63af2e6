# SPDX-License-Identifier: Apache-2.0
"""The index of a run directory as a chain: each line carries the SHA-256 of the line before.

The first line names the run. Each later one names a file with the SHA-256 and the size that it is
about to have; it is written before the file is. The last one, the closing record, names every file
again, and what could not be stored. The SHA-256 of the last line is the head of the chain: the
seal of the run. What that protects against: docs/run-directory.md.

An index of an earlier version has no links, and null for the SHA-256 of a file that still grew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from liveupdate.core.errors import EvidenceError
from liveupdate.evidence.beneath import read_beneath
from liveupdate.model import codec, slots
from liveupdate.model.base import Value
from liveupdate.model.evidence import Artifact


class _Row(Value, frozen=True, kw_only=True):
    """A line: the first has ``run``, the closing record has ``closed``, all others ``path``."""

    #: the digest of the line before, "" in the first line; None: an earlier version wrote it
    prev: str | None = None
    run: str = ""
    path: str = ""
    sha256: str | None = None
    size_bytes: int | None = None
    closed: tuple[Artifact, ...] | None = None
    #: what could not be stored, with the reason
    failed: Mapping[str, str] = {}


@dataclass(slots=True, kw_only=True)
class Index:
    """What an index says; ``head`` None: an earlier version wrote it, so there is no chain."""

    head: str | None = None
    run: str = ""
    #: the last entry of each path; None: an earlier version had not sealed the file yet
    entries: dict[str, Artifact | None] = field(default_factory=dict)
    #: what the closing record names; None: it is not there, or something was written after it
    closed: tuple[Artifact, ...] | None = None
    failed: Mapping[str, str] = field(default_factory=dict)


def link(prev: str, **row: object) -> tuple[str, str]:
    """Make the line that follows one with the digest ``prev``; return it and its own digest."""
    line = json.dumps({**row, "prev": prev}, ensure_ascii=False, separators=(",", ":"))
    return line, _digest(line.encode())


def read_index(data: bytes) -> Index:
    """Read an index and check its links.

    :raises EvidenceError: it is cut short or garbled, or a line is not linked to the one before.
    """
    *lines, rest = data.split(b"\n")
    if rest or not lines:
        raise EvidenceError(f"'{slots.INDEX}' is empty or cut short")
    index, prev = Index(), ""
    for number, line in enumerate(lines, 1):
        where = f"{slots.INDEX}:{number}"
        try:
            row = codec.parse(_Row, line, where)
            if number == 1 and row.prev is not None:
                index.head = ""
            if row.prev != (None if index.head is None else prev) or bool(row.run) != (
                index.head is not None and number == 1
            ):
                raise EvidenceError(f"{where}: not linked to the line before: lines were altered")
            _take(index, row, where)
        except codec.CodecError as error:
            raise EvidenceError(str(error)) from error
        prev = _digest(line)
    if index.head is not None:
        index.head = prev
    return index


def read_seal(run_dir: Path) -> str:
    """Return the seal of a run directory; "" when it has none, or its index cannot be read."""
    try:
        return read_index(read_beneath(run_dir, slots.INDEX)).head or ""
    except (OSError, EvidenceError):
        return ""


def _take(index: Index, row: _Row, where: str) -> None:
    index.run = row.run or index.run
    index.closed, index.failed = row.closed, row.failed
    if row.path:
        facts = {"path": row.path, "sha256": row.sha256, "size_bytes": row.size_bytes}
        is_open = index.head is None and row.sha256 is None
        index.entries[row.path] = None if is_open else codec.decode(Artifact, facts, where)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
