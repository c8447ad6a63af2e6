# SPDX-License-Identifier: Apache-2.0
"""A run's record: each fact goes to disk as it appears, and counts only if it got there.

The runner calls this while guests are paused, so :meth:`RunDir.put` and :meth:`RunDir.add` do not
raise for a disk that is full or gone: the fact is dropped and its file named in ``unreadable`` with
the reason. That leads the judge to ERROR, and the run comes to an end with a verdict on the screen.
Safe to call from any thread.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from liveupdate.core.steps import StepEvent
from liveupdate.evidence.files import RunFiles, StoreError
from liveupdate.evidence.reread import load_evidence
from liveupdate.model import codec, slots
from liveupdate.model.evidence import Artifact, Evidence, Incident, Struck
from liveupdate.model.plan import Plan
from liveupdate.model.slots import Document, Series, Slot

T = TypeVar("T")


class RunDir:
    """One run directory, being written or read back. Names of files: :mod:`..model.layout`."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._failed: dict[str, str] = {}
        self._first_failure: StoreError | None = None
        self._incidents: list[Incident] = []
        #: by hop
        self._struck: dict[int, Struck] = {}
        self._rolled_back = False

    @classmethod
    def create(
        cls,
        results: Path,
        *,
        plan: Plan,
        scenario: str,
        run_id: str | None = None,
        now: datetime | None = None,
    ) -> RunDir:
        """Make ``results/<utc>-<id>/``, store the plan, and point ``latest`` at it.

        :param scenario: the scenario as TOML.
        :raises StoreError: it cannot be made; nothing else has been started then.
        """
        files = RunFiles.create(results, run_id=run_id, now=now)
        files.write(slots.SCENARIO, scenario)
        files.write(slots.PLAN, codec.dumps("plan", plan))
        return cls(files)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open a run directory to judge or report it; links such as ``latest`` are followed.

        :raises EvidenceError: it is no run directory.
        """
        return cls(RunFiles.open(path))

    @classmethod
    def reopen(cls, path: Path) -> RunDir:
        """Open a run directory to continue an interrupted run.

        :raises EvidenceError: it is no run directory, or cannot be continued.
        """
        return cls(RunFiles.reopen(path))

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._files.path

    @property
    def run_id(self) -> str:
        """The part of the directory's name that is not the time."""
        return self.path.name.partition("-")[2]

    @property
    def failure(self) -> str | None:
        """Why something could not be stored, the first reason; None: everything was stored."""
        with self._lock:
            return next(iter(self._failed.values()), None)

    def check_stored(self) -> None:
        """Check that everything was stored so far.

        :raises StoreError: the first failure.
        """
        if self._first_failure is not None:
            raise self._first_failure

    # --- logs and products

    def log_step(self, event: StepEvent) -> None:
        """Log a step event; a subscriber of :class:`liveupdate.core.steps.Steps`."""
        row = {
            "utc": _utc_now(),
            "kind": event.kind,
            "name": event.name,
            "at_ns": event.at_ns,
            "elapsed_s": event.elapsed_s,
            "fields": dict(event.fields),
        }
        self._try(slots.EVENTS, lambda: self._files.log(slots.EVENTS, row))

    def write_report(self, relative: str, text: str) -> Path:
        """Write ``result.json``, ``junit.xml`` or ``report.html``: can be made again at any time.

        :raises StoreError: when it cannot be written.
        """
        return self._files.write_report(relative, text)

    def fill_disk(self) -> None:
        """Make every write from now on fail as on a full file system: the fault ``disk-full``."""
        self._files.broken = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Write the closing record: no evidence is stored after this."""
        with self._lock:
            failed = dict(self._failed)
        self._try(slots.INDEX, lambda: self._files.close(failed))

    # --- reading back

    def load_plan(self) -> Plan:
        """Read the plan back.

        :raises EvidenceError: when it is missing, garbled or altered.
        """
        return self._files.load_plan()

    def load_evidence(self) -> Evidence:
        """Read all evidence back from disk; files that cannot be used are in ``unreadable``. Never
        raises.

        It also names what this object could not store, and keeps its incidents and strikes.
        """
        evidence = load_evidence(self._files)
        with self._lock:
            unreadable = {**evidence.unreadable, **self._failed}
            lost = [each for each in self._incidents if each not in evidence.incidents]
            return replace(
                evidence,
                hops=tuple(
                    hop
                    if hop.struck or hop.number not in self._struck
                    else replace(hop, struck=(self._struck[hop.number],))
                    for hop in evidence.hops
                ),
                incidents=(*evidence.incidents, *lost),
                unreadable=dict(sorted(unreadable.items())),
                rolled_back=evidence.rolled_back or self._rolled_back,
            )

    def artifacts(self) -> tuple[Artifact, ...]:
        """Describe the files of the run as they are now, consoles included."""
        return self._files.artifacts()

    # --- evidence

    def put(self, slot: Document[T], value: T, hop: int = 0, of: str = "") -> None:
        """Store a document; the last one put counts.

        :param of: the guest or the device it is of, if its slot is one per guest or device.
        """
        path = slot.path(hop, of)
        document = self._store_raw(slot, value, hop, of)
        if document is not None:
            text = codec.dumps(slot.format, document)
            self._try(path, lambda: self._files.write(path, text))

    def add(self, slot: Series[T], values: Iterable[T], hop: int = 0, of: str = "") -> None:
        """Append to a series; :param of: as for :meth:`put`."""
        rows = [self._store_raw(slot, value, hop, of) for value in values]
        stored = [codec.encode(row) for row in rows if row is not None]
        if not stored:
            return
        path = slot.path(hop, of)
        self._try(path, lambda: self._files.append_rows(path, stored))

    def _store_raw(self, slot: Slot[T], value: T, hop: int, of: str) -> object:
        """Store a value's bytes and return the rest of it; None: they could not be stored."""
        if not slot.raw_field:
            return value
        path = slot.raw_path(hop, of, value)
        document = codec.encode(value)
        raw = document.pop(slot.raw_field)

        def write() -> None:
            document["artifact"] = codec.encode(self._files.write(path, raw))

        return document if self._try(path, write) else None

    def add_incident(self, incident: Incident) -> None:
        """Note an incident; it counts for this run even when it cannot be stored."""
        with self._lock:
            self._incidents.append(incident)
        self.add(slots.INCIDENTS, [incident])

    def add_struck(self, struck: Struck, hop: int) -> None:
        """Store what a fault changed; the fault may be that nothing can be stored."""
        with self._lock:
            self._struck[hop] = struck
        self.add(slots.STRUCK, [struck], hop)

    def set_rolled_back(self) -> None:
        """Store that the update was rolled back and the guests were seen alive on the outgoing
        kernel.
        """
        self._rolled_back = True
        self.put(slots.ROLLED_BACK, True)

    def begin_anew(self, hop: int) -> None:
        """Discard the growing files of a hop, which is about to be stored whole again."""
        for path in self._files.growing(slots.hop_dir(hop)):
            self._try(path, partial(self._files.discard, path))

    def put_host_record(self, lines: Sequence[str]) -> None:
        """Store the record of the host's agent, unchanged."""
        text = "".join(f"{line}\n" for line in lines)
        self._try(slots.HOST_RECORD, lambda: self._files.write(slots.HOST_RECORD, text))

    def _try(self, path: str, write: Callable[[], object]) -> bool:
        try:
            write()
        except StoreError as error:
            with self._lock:
                self._failed.setdefault(path, f"not stored: {error.message}")
                self._first_failure = self._first_failure or error
            return False
        return True


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
