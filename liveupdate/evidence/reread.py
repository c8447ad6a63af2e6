# SPDX-License-Identifier: Apache-2.0
"""A run directory read back into :class:`Evidence`. Missing and garbled files are facts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from msgspec import structs

from liveupdate.core.errors import EvidenceError
from liveupdate.evidence.files import RunFiles
from liveupdate.model import codec, layout
from liveupdate.model.builder import EvidenceBuilder, GuestParts, HopParts, IommuParts
from liveupdate.model.costs import CostFacts, HandedOver, KeptTables
from liveupdate.model.evidence import (
    AgentPing,
    Artifact,
    BindingSample,
    ConfigFacts,
    DeviceEvent,
    DeviceFacts,
    DeviceTrace,
    Echo,
    Evidence,
    FrameSent,
    Incident,
    IommuWatch,
    JournalSample,
    KernelFacts,
    MappingFacts,
    Mark,
    PageDigests,
    PageFrames,
    PatternFacts,
    Phase,
    Provenance,
    SessionFacts,
    SshFacts,
    TableSample,
    Tick,
    UnitSample,
    VmmStatus,
    Watched,
    WatchedDevice,
)
from liveupdate.model.guest_device_use import JournalFacts

T = TypeVar("T")

_DEVICE_FILE = re.compile(r"(?:device|frames)-([a-z0-9-]{1,20})\.jsonl?")
_HOP_DIR = re.compile(r"hop-([1-9][0-9]{0,5})")
#: raw tables: compared by the judge even when altered, so that it can name the page or mapping
_RAW_SUFFIXES = (".xxh3", ".u64", ".runs")
_WORD = 8


def load_evidence(files: RunFiles) -> Evidence:
    """Read everything there is; never raises for what a file holds."""
    return _Reader(files).read()


class _Reader:
    def __init__(self, files: RunFiles) -> None:
        self._root = files.path
        self._parts = EvidenceBuilder()
        self._index: Mapping[str, Artifact | None] = {}
        try:
            self._index = files.index()
        except EvidenceError as error:
            self._parts.unreadable[layout.INDEX] = error.message

    def read(self) -> Evidence:
        parts = self._parts
        for path in self._index:
            if not (self._root / path).is_file():
                parts.unreadable[path] = "the file is missing"
        if layout.INCIDENTS not in self._index and not (self._root / layout.INCIDENTS).is_file():
            parts.unreadable[layout.INCIDENTS] = "the file is missing"
        parts.provenance = self._document(layout.PROVENANCE, "provenance", Provenance)
        parts.rolled_back = bool(self._document(layout.ROLLED_BACK, "rolled-back", bool))
        parts.incidents.extend(self._objects(layout.INCIDENTS, Incident))
        for hop in self._hops():
            self._read_hop(hop, parts.hops[hop])
        return parts.build()

    def _hops(self) -> list[int]:
        directory = self._root / layout.EVIDENCE
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _HOP_DIR.fullmatch(name)))

    def _read_hop(self, hop: int, parts: HopParts) -> None:
        for when in ("before", "after"):
            kernel = self._document(layout.hop_file(hop, f"{when}.json"), "kernel", KernelFacts)
            if kernel is not None:
                parts.kernels[when] = kernel
            path = layout.hop_file(hop, f"costs-{when}.json")
            costs = self._document(path, "costs", CostFacts)
            if costs is not None:
                parts.costs[when] = costs
        path = layout.hop_file(hop, "handed-over.json")
        parts.handed_over = self._document(path, "handed-over", HandedOver)
        parts.ssh = self._document(layout.hop_file(hop, "ssh.json"), "ssh", SshFacts)
        parts.sessions += self._objects(layout.hop_file(hop, "sessions.jsonl"), SessionFacts)
        parts.phases += self._objects(layout.hop_file(hop, "phases.jsonl"), Phase)
        parts.marks += self._objects(layout.hop_file(hop, "marks.jsonl"), Mark)
        names: set[str] = set()
        for entry in sorted((self._root / layout.hop_dir(hop)).iterdir()):
            if entry.is_dir():
                self._read_guest(hop, entry.name, parts.guests[entry.name])
            elif match := _DEVICE_FILE.fullmatch(entry.name):
                names.add(match[1])
        parts.devices = {name: self._read_device(hop, name) for name in sorted(names)}
        self._read_iommu(hop, parts.iommu)

    def _read_device(self, hop: int, name: str) -> DeviceTrace:
        paths = (layout.device(hop, name), layout.frames(hop, name))
        sealed = [self._index.get(path) for path in paths]
        return DeviceTrace(
            facts=self._document(paths[0], "device", DeviceFacts),
            frames=tuple(self._rows(paths[1], FrameSent)),
            artifacts=tuple(artifact for artifact in sealed if artifact is not None),
        )

    def _read_iommu(self, hop: int, parts: IommuParts) -> None:
        def path(name: str) -> str:
            return layout.iommu_file(hop, name)

        devices = self._document(path("devices.json"), "devices", tuple[WatchedDevice, ...])
        parts.devices = devices or ()
        parts.watch = self._document(path("watch.json"), "watch", IommuWatch)
        parts.kept = self._document(path("kept.json"), "kept", KeptTables)
        parts.samples = self._rows(path("samples.jsonl"), UnitSample)
        parts.bindings = self._rows(path("bindings.jsonl"), BindingSample)
        parts.tables = self._rows(path("tables.jsonl"), TableSample)
        parts.events = self._rows(path("events.jsonl"), DeviceEvent)
        parts.configs = self._objects(path("configs.jsonl"), ConfigFacts)
        for row in self._objects(path("mappings.jsonl"), MappingFacts):
            runs = self._bytes(layout.runs(hop, row.view, row.moment, row.requester))
            if runs is not None:
                parts.mappings.append(structs.replace(row, runs=runs))

    def _read_guest(self, hop: int, guest: str, parts: GuestParts) -> None:
        for moment in ("freeze", "boot"):
            self._read_digests(hop, guest, moment, parts)
        for moment in ("before", "after"):
            self._read_pfns(hop, guest, moment, parts)

        def fact(name: str, wanted: type[T]) -> T | None:
            path = layout.guest_file(hop, guest, f"{name}.json")
            return self._document(path, name, wanted)

        def series(name: str, wanted: type[T]) -> list[T]:
            path = layout.series(hop, guest, name)
            sealed = self._index.get(path)
            if sealed is not None:
                parts.artifacts[path] = sealed
            return self._rows(path, wanted)

        names = [f"{name}.jsonl" for name in layout.SERIES]
        names += [f"{name}.json" for name in layout.GUEST_FACTS]
        known = [layout.guest_file(hop, guest, name) for name in names]
        parts.has_trace = any(path in self._index or (self._root / path).exists() for path in known)
        status = fact("vmm", VmmStatus)
        parts.vmm_status = status.status if status else None
        parts.watched = fact("watched", Watched)
        parts.pattern = fact("pattern", PatternFacts)
        for when in ("before", "after"):
            scan = fact(f"journal-{when}", JournalFacts)
            if scan is not None:
                parts.scans[when] = scan
        parts.ticks = series("ticks", Tick)
        parts.echoes = series("echoes", Echo)
        parts.journal = series("journal", JournalSample)
        parts.pings = series("pings", AgentPing)

    def _read_digests(self, hop: int, guest: str, moment: str, parts: GuestParts) -> None:
        name = layout.guest_file(hop, guest, f"{moment}.json")
        facts = self._document(name, "digests", PageDigests)
        raw = self._table(layout.digests(hop, guest, moment), facts.pages if facts else None)
        if facts is not None and raw is not None:
            parts.digests[moment] = structs.replace(facts, digests=raw)

    def _read_pfns(self, hop: int, guest: str, moment: str, parts: GuestParts) -> None:
        name = layout.guest_file(hop, guest, f"pfns-{moment}.json")
        facts = self._document(name, "pfns", PageFrames)
        raw = self._table(layout.pfns(hop, guest, moment), facts.pages if facts else None)
        if facts is not None and raw is not None:
            parts.pfns[moment] = structs.replace(facts, pfns=raw)

    # --- files

    def _table(self, path: str, pages: int | None) -> bytes | None:
        raw = self._bytes(path)
        if raw is None or pages is None:
            return None
        if len(raw) != pages * _WORD:
            self._parts.unreadable[path] = f"{len(raw)} bytes, recorded were {pages * _WORD}"
            return None
        return raw

    def _bytes(self, path: str) -> bytes | None:
        """Read a file; a file that is not there and was never recorded is not worth a word."""
        file = self._root / path
        if not file.exists():
            return None
        if path not in self._index and layout.INDEX not in self._parts.unreadable:
            self._parts.unreadable[path] = f"not in {layout.INDEX}: it was not written by the run"
            return None
        try:
            raw = _read_plain(file)
        except OSError as error:
            self._parts.unreadable[path] = error.strerror or str(error)
            return None
        recorded = self._index.get(path)
        if recorded is not None and not path.endswith(_RAW_SUFFIXES):
            found = hashlib.sha256(raw).hexdigest()
            if found != recorded.sha256:
                self._parts.unreadable[path] = (
                    f"altered: sha256 is {found[:12]}…, recorded was {recorded.sha256[:12]}…"
                )
                return None
        return raw

    def _document(self, path: str, kind: str, wanted: type[T]) -> T | None:
        raw = self._bytes(path)
        if raw is None:
            return None
        try:
            return codec.loads(wanted, kind, raw)
        except codec.CodecError as error:
            self._parts.unreadable[path] = str(error)
            return None

    def _objects(self, path: str, wanted: type[T]) -> list[T]:
        return self._lines(path, wanted)

    def _rows(self, path: str, wanted: type[T]) -> list[T]:
        return self._lines(path, wanted)

    def _lines(self, path: str, wanted: type[T]) -> list[T]:
        """Read up to the first line that is no good; what came before it is kept and shown."""
        raw = self._bytes(path)
        if not raw:
            return []
        values: list[T] = []
        lines = raw.split(b"\n")
        cut = lines.pop()
        for number, line in enumerate(lines, 1):
            try:
                values.append(codec.parse(wanted, line, f"line {number}"))
            except codec.CodecError as error:
                self._parts.unreadable[path] = str(error)
                return values
        if cut:
            self._parts.unreadable[path] = f"cut short in line {len(lines) + 1}"
        return values


def _read_plain(file: Path) -> bytes:
    """Read a regular file only: a run directory may have been handed to us by somebody."""
    if not file.is_file():
        raise OSError(f"'{file}' is not a regular file")
    return file.read_bytes()
