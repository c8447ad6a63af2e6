# SPDX-License-Identifier: Apache-2.0
"""A run's record: each fact goes to disk as it appears, and counts only if it got there.

The runner calls this while guests are paused, so no ``put_`` raises for a disk that is full or
gone: the fact is dropped and its file named in ``unreadable`` with the reason. That leads the judge
to ERROR, and the run comes to an end with a verdict on the screen. Safe to call from any thread.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from liveupdate.core.steps import StepEvent
from liveupdate.evidence.files import RunFiles, StoreError
from liveupdate.evidence.reread import load_evidence
from liveupdate.model import codec, layout
from liveupdate.model.builder import (
    DigestFacts,
    Mark,
    PfnFacts,
    SshFacts,
    VmmStatus,
)
from liveupdate.model.costs import CostFacts, HandedOver, KeptTables
from liveupdate.model.evidence import (
    AgentPing,
    Artifact,
    BindingSample,
    ConfigFacts,
    DeviceEvent,
    DeviceFacts,
    Echo,
    Evidence,
    FrameSent,
    GuestTrace,
    Incident,
    IommuWatch,
    JournalSample,
    KernelFacts,
    MappingFacts,
    PatternFacts,
    Phase,
    Provenance,
    SessionFacts,
    TableSample,
    Tick,
    UnitSample,
    Watched,
    WatchedDevice,
)
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.model.plan import Plan

_WORD_BYTES = 8


class RunDir:
    """One run directory, being written or read back. Names of files: :mod:`..model.layout`."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._failed: dict[str, str] = {}
        self._growing: list[str] = []
        self._incidents: list[Incident] = []
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
        """Make ``results/<utc>-<id>/``, store what will be done, and point ``latest`` at it.

        :param scenario: the scenario as TOML.
        :raises StoreError: when it cannot be made; nothing else has been started then.
        """
        files = RunFiles.create(results, run_id=run_id, now=now)
        files.write(layout.SCENARIO, scenario)
        files.write(layout.PLAN, codec.dumps("plan", plan))
        record = cls(files)
        record._growing.append(layout.INCIDENTS)
        return record

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open a run directory to judge or report it; links such as ``latest`` are followed.

        :raises EvidenceError: when it is none.
        """
        return cls(RunFiles.open(path))

    @classmethod
    def reopen(cls, path: Path) -> RunDir:
        """Open a run directory to go on with a run that was broken off.

        :raises EvidenceError: when it is none.
        """
        record = cls.open(path)
        record._growing += [name for name, whole in record._files.index().items() if whole is None]
        return record

    @property
    def path(self) -> Path:
        return self._files.path

    @property
    def run_id(self) -> str:
        """The part of the directory's name that is not the time."""
        return self.path.name.partition("-")[2]

    @property
    def failure(self) -> str | None:
        """Why something could not be stored, the first reason; None: all of it was."""
        with self._lock:
            return next(iter(self._failed.values()), None)

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
        self._try(layout.EVENTS, lambda: self._files.log(layout.EVENTS, row))

    def journal(self, kind: str, **fields: object) -> None:
        """Note a decision before it is acted upon; on disk when this returns, if it can be."""
        row = {"utc": _utc_now(), "mono_ns": time.monotonic_ns(), "kind": kind, **fields}
        self._try(layout.JOURNAL, lambda: self._files.log(layout.JOURNAL, row, sync=True))

    def write_report(self, relative: str, text: str) -> Path:
        """Write ``result.json``, ``junit.xml`` or ``report.html``: can be made again at any time.

        :raises StoreError: when it cannot be written.
        """
        return self._files.write_report(relative, text)

    def fill_disk(self) -> None:
        """Make every write from now on fail as on a full file system: the fault ``disk-full``."""
        self._files.broken = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Enter the digests of everything that was growing; no evidence is put after this."""
        with self._lock:
            growing, self._growing = self._growing, []
        for path in growing:
            self._try(path, partial(self._files.seal, path))

    # --- reading back

    def load_plan(self) -> Plan:
        """Read the plan back.

        :raises EvidenceError: when it is missing, garbled or altered.
        """
        return self._files.load_plan()

    def load_evidence(self) -> Evidence:
        """Read all evidence back from disk; what cannot be used is in ``unreadable``. Never raises.

        What this very object could not store is named there too, and its incidents are kept.
        """
        evidence = load_evidence(self._files)
        with self._lock:
            unreadable = {**evidence.unreadable, **self._failed}
            lost = [each for each in self._incidents if each not in evidence.incidents]
            return replace(
                evidence,
                incidents=(*evidence.incidents, *lost),
                unreadable=dict(sorted(unreadable.items())),
                rolled_back=evidence.rolled_back or self._rolled_back,
            )

    def artifacts(self) -> tuple[Artifact, ...]:
        """Describe the files of the run as they are now, consoles included."""
        return self._files.artifacts()

    # --- the run

    def put_provenance(self, provenance: Provenance) -> None:
        self._document(layout.PROVENANCE, "provenance", provenance)

    def add_incident(self, incident: Incident) -> None:
        """Note an incident; it counts for this run even when it cannot be stored."""
        with self._lock:
            self._incidents.append(incident)
        self._objects(layout.INCIDENTS, incident)

    def set_rolled_back(self) -> None:
        """Note that the update was given up with the guests seen alive on the outgoing kernel."""
        self._rolled_back = True
        self._document(layout.ROLLED_BACK, "rolled-back", True)

    # --- a hop

    def begin_anew(self, hop: int) -> None:
        """Forget what grew of a hop, which is about to be put whole once more."""
        for path in self._files.growing(layout.hop_dir(hop)):
            self._try(path, partial(self._files.discard, path))

    def put_host_record(self, lines: Sequence[str]) -> None:
        """Store what the host's agent recorded, as it came."""
        text = "".join(f"{line}\n" for line in lines)
        self._try(layout.HOST_RECORD, lambda: self._files.write(layout.HOST_RECORD, text))

    def put_facts(self, hop: int, when: str, facts: KernelFacts) -> None:
        """``when`` is before (outgoing kernel) or after (incoming)."""
        self._document(layout.hop_file(hop, f"{when}.json"), "kernel", facts)

    def put_costs(self, hop: int, when: str, costs: CostFacts) -> None:
        """``when`` as for :meth:`put_facts`."""
        self._document(layout.hop_file(hop, f"costs-{when}.json"), "costs", costs)

    def put_handed_over(self, hop: int, facts: HandedOver) -> None:
        self._document(layout.hop_file(hop, "handed-over.json"), "handed-over", facts)

    def put_ssh(self, hop: int, boot_id: str | None, nonce_ok: bool | None) -> None:
        facts = SshFacts(boot_id=boot_id, nonce_ok=nonce_ok)
        self._document(layout.hop_file(hop, "ssh.json"), "ssh", facts)

    def put_session(self, hop: int, session: SessionFacts) -> None:
        self._objects(layout.hop_file(hop, "sessions.jsonl"), session)

    def put_phase(self, phase: Phase) -> None:
        self._objects(layout.hop_file(phase.hop, "phases.jsonl"), phase)

    def put_mark(self, hop: int, guest: str, moment: str, at_ns: int) -> None:
        """``moment`` is paused or resumed."""
        mark = Mark(what=moment, guest=guest, at_ns=at_ns)
        self._objects(layout.hop_file(hop, "marks.jsonl"), mark)

    # --- a device

    def put_device(self, hop: int, facts: DeviceFacts) -> None:
        self._document(layout.device(hop, facts.device), "device", facts)

    def put_frames(self, hop: int, device: str, frames: Sequence[FrameSent]) -> None:
        self._rows(layout.frames(hop, device), frames)

    # --- a guest's memory

    def put_digests(
        self, hop: int, guest: str, moment: str, digests: bytes, began_ns: int, ended_ns: int
    ) -> None:
        """``moment`` is freeze or boot; one little-endian u64 per page."""

        def describe(artifact: Artifact) -> DigestFacts:
            return DigestFacts(
                pages=len(digests) // _WORD_BYTES,
                artifact=artifact,
                began_ns=began_ns,
                ended_ns=ended_ns,
            )

        path = layout.digests(hop, guest, moment)
        self._table(path, digests, layout.guest_file(hop, guest, f"{moment}.json"), describe)

    def put_pfns(self, hop: int, guest: str, when: str, pfns: bytes) -> None:
        """``when`` is before or after; one little-endian u64 per page."""

        def describe(artifact: Artifact) -> PfnFacts:
            return PfnFacts(pages=len(pfns) // _WORD_BYTES, artifact=artifact)

        path = layout.pfns(hop, guest, when)
        self._table(path, pfns, layout.guest_file(hop, guest, f"pfns-{when}.json"), describe)

    # --- a guest's liveness

    def put_ticks(self, hop: int, guest: str, ticks: Sequence[Tick]) -> None:
        self._rows(layout.series(hop, guest, "ticks"), ticks)

    def put_echoes(self, hop: int, guest: str, echoes: Sequence[Echo]) -> None:
        self._rows(layout.series(hop, guest, "echoes"), echoes)

    def put_journal(self, hop: int, guest: str, samples: Sequence[JournalSample]) -> None:
        self._rows(layout.series(hop, guest, "journal"), samples)

    def put_pings(self, hop: int, guest: str, pings: Sequence[AgentPing]) -> None:
        self._rows(layout.series(hop, guest, "pings"), pings)

    def put_watched(self, hop: int, guest: str, watched: Watched) -> None:
        self._document(layout.guest_file(hop, guest, "watched.json"), "watched", watched)

    def put_vmm_status(self, hop: int, guest: str, status: str | None) -> None:
        facts = VmmStatus(status=status)
        self._document(layout.guest_file(hop, guest, "vmm.json"), "vmm", facts)

    def put_journal_facts(self, hop: int, guest: str, when: str, facts: JournalFacts) -> None:
        """``when`` is before or after."""
        name = f"journal-{when}"
        self._document(layout.guest_file(hop, guest, f"{name}.json"), name, facts)

    def put_pattern(self, hop: int, guest: str, facts: PatternFacts) -> None:
        self._document(layout.guest_file(hop, guest, "pattern.json"), "pattern", facts)

    def put_trace(self, hop: int, trace: GuestTrace) -> None:
        """Put everything of a trace at once; its ``artifacts`` are made anew."""
        guest = trace.guest
        self.put_vmm_status(hop, guest, trace.vmm_status)
        self.put_ticks(hop, guest, trace.ticks)
        self.put_echoes(hop, guest, trace.echoes)
        self.put_journal(hop, guest, trace.journal)
        self.put_pings(hop, guest, trace.agent_pings)
        if trace.watched is not None:
            self.put_watched(hop, guest, trace.watched)
        if trace.journal_before is not None:
            self.put_journal_facts(hop, guest, "before", trace.journal_before)
        if trace.journal_after is not None:
            self.put_journal_facts(hop, guest, "after", trace.journal_after)
        if trace.pattern is not None:
            self.put_pattern(hop, guest, trace.pattern)

    # --- devices and their translation

    def put_devices(self, hop: int, devices: tuple[WatchedDevice, ...]) -> None:
        self._document(layout.iommu_file(hop, "devices.json"), "devices", devices)

    def put_iommu_watch(self, hop: int, watch: IommuWatch) -> None:
        self._document(layout.iommu_file(hop, "watch.json"), "watch", watch)

    def put_kept_tables(self, hop: int, kept: KeptTables) -> None:
        self._document(layout.iommu_file(hop, "kept.json"), "kept", kept)

    def put_unit_samples(self, hop: int, samples: Sequence[UnitSample]) -> None:
        self._rows(layout.iommu_file(hop, "samples.jsonl"), samples)

    def put_bindings(self, hop: int, samples: Sequence[BindingSample]) -> None:
        self._rows(layout.iommu_file(hop, "bindings.jsonl"), samples)

    def put_tables(self, hop: int, samples: Sequence[TableSample]) -> None:
        self._rows(layout.iommu_file(hop, "tables.jsonl"), samples)

    def put_device_events(self, hop: int, events: Sequence[DeviceEvent]) -> None:
        self._rows(layout.iommu_file(hop, "events.jsonl"), events)

    def put_config(self, hop: int, facts: ConfigFacts) -> None:
        self._objects(layout.iommu_file(hop, "configs.jsonl"), facts)

    def put_mapping(self, hop: int, facts: MappingFacts) -> None:
        """Put one walk; its ``artifact`` is made anew."""
        path = layout.runs(hop, facts.view, facts.moment, facts.requester)

        def write() -> None:
            artifact = self._files.write(path, facts.runs)
            self._objects(layout.iommu_file(hop, "mappings.jsonl"), facts.row(artifact))

        self._try(path, write)

    # --- one way to disk

    def _document(self, path: str, kind: str, value: object) -> None:
        text = codec.dumps(kind, value)
        self._try(path, lambda: self._files.write(path, text))

    def _objects(self, path: str, value: object) -> None:
        row = codec.encode(value)
        self._grow(path, [row])

    def _rows(self, path: str, values: Sequence[object]) -> None:
        if values:
            self._grow(path, [codec.encode(value) for value in values])

    def _grow(self, path: str, rows: Sequence[object]) -> None:
        with self._lock:
            if path not in self._growing:
                self._growing.append(path)
        self._try(path, lambda: self._files.append_rows(path, rows))

    def _table(
        self, path: str, raw: bytes, facts_path: str, describe: Callable[[Artifact], object]
    ) -> None:
        def write() -> None:
            artifact = self._files.write(path, raw)
            kind = "digests" if path.endswith(".xxh3") else "pfns"
            self._document(facts_path, kind, describe(artifact))

        self._try(path, write)

    def _try(self, path: str, write: Callable[[], object]) -> None:
        try:
            write()
        except StoreError as error:
            with self._lock:
                self._failed.setdefault(path, f"not stored: {error.message}")


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
