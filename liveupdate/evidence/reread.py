# SPDX-License-Identifier: Apache-2.0
"""Reads a run directory back into :class:`Evidence`. Missing and garbled files are facts.

The table of :mod:`liveupdate.model.slots` says what is read and which field it fills.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import structs

from liveupdate.core.errors import EvidenceError
from liveupdate.evidence.files import RunFiles
from liveupdate.model import codec, slots
from liveupdate.model.costs import HopCosts
from liveupdate.model.evidence import (
    Artifact,
    DeviceTrace,
    Evidence,
    GuestMemory,
    GuestTrace,
    HopEvidence,
    IommuEvidence,
)
from liveupdate.model.slots import Document, Slot

#: values for the fields of one guest, device or part of a hop, by name
_Fields = dict[str, Any]


def load_evidence(files: RunFiles) -> Evidence:
    """Read all evidence; never raises for the content of a file."""
    return _Reader(files).read()


class _Reader:
    def __init__(self, files: RunFiles) -> None:
        self._root = files.path
        self._unreadable: dict[str, str] = {}
        self._index: Mapping[str, Artifact | None] = {}
        #: fields by hop (0: of the run), part of the hop ("": itself), and guest or device
        self._found: defaultdict[tuple[int, str, str], _Fields] = defaultdict(dict)
        try:
            self._index = files.index()
        except EvidenceError as error:
            self._unreadable[slots.INDEX] = error.message

    def read(self) -> Evidence:
        paths = {*self._index, *self._files()}
        for path in {*self._index, slots.INCIDENTS.place}:
            if not (self._root / path).is_file():
                self._unreadable[path] = "the file is missing"
        for path in sorted(paths):
            for slot in slots.SLOTS:
                if match := slot.pattern.fullmatch(path):
                    places = match.groupdict()
                    self._read_slot(slot, int(places.get("hop", 0)), places.get("of", ""))
        hops = sorted({hop for hop, _part, _of in self._found} - {0})
        return Evidence(
            **{"provenance": None, **self._found[0, "", ""]},
            hops=tuple(self._build_hop(hop) for hop in hops),
            unreadable=dict(sorted(self._unreadable.items())),
        )

    def _files(self) -> list[str]:
        found = [
            Path(parent, name).relative_to(self._root).as_posix()
            for parent, _names, names in os.walk(self._root / slots.EVIDENCE)
            for name in names
        ]
        return [*found, slots.PROVENANCE.place]

    def _read_slot(self, slot: Slot[Any], hop: int, of: str) -> None:
        """Read one file into the field that it fills; its guest is known even when it is
        unreadable.
        """
        path = slot.path(hop, of)
        part, _, field = slot.field.rpartition(".")
        fields = self._found[hop, part, of if part else ""]
        value = self._value(slot, path, hop, of)
        if value is None:
            return
        if slot.unpack is not None:
            fields.update(slot.unpack(value))
        elif field:
            fields[field] = value
        else:
            fields.setdefault("more", {})[path] = value

    def _build_hop(self, hop: int) -> HopEvidence:
        def each(part: str) -> list[tuple[str, _Fields]]:
            return sorted((of, f) for (n, p, of), f in self._found.items() if (n, p) == (hop, part))

        iommu = IommuEvidence(**self._found[hop, "iommu", ""])
        return HopEvidence(
            number=hop,
            **self._found[hop, "", ""],
            memory=tuple(GuestMemory(guest=guest, **rest) for guest, rest in each("memory")),
            guests=tuple(
                GuestTrace(guest=guest, artifacts=self._sealed(hop, "guests", guest), **rest)
                for guest, rest in each("guests")
            ),
            devices={
                name: DeviceTrace(artifacts=self._sealed(hop, "devices", name), **rest)
                for name, rest in each("devices")
            },
            costs=HopCosts(**self._found[hop, "costs", ""]),
            iommu=None if iommu == IommuEvidence() else iommu,
        )

    def _sealed(self, hop: int, part: str, of: str) -> tuple[Artifact, ...]:
        """Describe the files that a guest's or a device's trace was read from."""
        paths = {slot.path(hop, of) for slot in slots.SLOTS if slot.field.partition(".")[0] == part}
        found = (self._index.get(path) for path in sorted(paths))
        return tuple(artifact for artifact in found if artifact is not None)

    # --- files

    def _value(self, slot: Slot[Any], path: str, hop: int, of: str) -> Any:
        """Read a file as its slot says; None: it cannot be used."""
        if not isinstance(slot, Document):
            values = self._lines(path, slot.holds)
            whole = (self._with_raw(slot, value, hop, of) for value in values)
            return tuple(value for value in whole if value is not None)
        raw = self._bytes(path)
        if raw is None:
            return None
        try:
            return self._with_raw(slot, codec.loads(slot.holds, slot.format, raw), hop, of)
        except codec.CodecError as error:
            self._unreadable[path] = str(error)
            return None

    def _with_raw(self, slot: Slot[Any], value: Any, hop: int, of: str) -> Any:
        """Join a value with the file of its bytes; None: that file cannot be used."""
        if not slot.raw_field:
            return value
        path = slot.raw_path(hop, of, value)
        # compared by the judge even when altered, so that it can name the page or the mapping
        raw = self._bytes(path, is_judged=True)
        if raw is None:
            return None
        if len(raw) != value.artifact.size_bytes:
            self._unreadable[path] = f"{len(raw)} bytes, recorded were {value.artifact.size_bytes}"
            return None
        return structs.replace(value, **{slot.raw_field: raw})

    def _bytes(self, path: str, *, is_judged: bool = False) -> bytes | None:
        """Read a file; one that does not exist and was never recorded is no fact."""
        file = self._root / path
        if not file.exists():
            return None
        if path not in self._index and slots.INDEX not in self._unreadable:
            self._unreadable[path] = f"not in {slots.INDEX}: it was not written by the run"
            return None
        try:
            raw = _read_plain(file)
        except OSError as error:
            self._unreadable[path] = error.strerror or str(error)
            return None
        recorded = self._index.get(path)
        if recorded is not None and not is_judged:
            found = hashlib.sha256(raw).hexdigest()
            if found != recorded.sha256:
                self._unreadable[path] = (
                    f"altered: sha256 is {found[:12]}…, recorded was {recorded.sha256[:12]}…"
                )
                return None
        return raw

    def _lines(self, path: str, wanted: type[Any]) -> list[Any]:
        """Read up to the first invalid line; the lines before it are kept and shown."""
        raw = self._bytes(path)
        if not raw:
            return []
        values: list[Any] = []
        lines = raw.split(b"\n")
        cut = lines.pop()
        for number, line in enumerate(lines, 1):
            try:
                values.append(codec.parse(wanted, line, f"line {number}"))
            except codec.CodecError as error:
                self._unreadable[path] = str(error)
                return values
        if cut:
            self._unreadable[path] = f"cut short in line {len(lines) + 1}"
        return values


def _read_plain(file: Path) -> bytes:
    """Read a regular file only: the run directory may come from another user."""
    if not file.is_file():
        raise OSError(f"'{file}' is not a regular file")
    return file.read_bytes()
