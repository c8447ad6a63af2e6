# SPDX-License-Identifier: Apache-2.0
"""Reads a run directory back into :class:`Evidence`. Missing and garbled files are facts.

The table of :mod:`liveupdate.model.slots` says what is read and which field it fills.
"""

from __future__ import annotations

import errno
import hashlib
from collections import defaultdict
from typing import Any

from msgspec import structs

from liveupdate.core.errors import EvidenceError
from liveupdate.evidence.beneath import MAX_BYTES, digest_beneath, names_beneath, read_beneath
from liveupdate.evidence.chain import Index
from liveupdate.evidence.files import DISKS, MADE_AGAIN, RunFiles, is_log, say
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

#: how many bytes of evidence are read at the most
_MAX_TOTAL = 8 << 30

#: values for the fields of one guest, device or part of a hop, by name
_Fields = dict[str, Any]


def load_evidence(files: RunFiles) -> Evidence:
    """Read all evidence; never raises for the content of a file."""
    return _Reader(files).read()


class _Reader:
    def __init__(self, files: RunFiles) -> None:
        self._root = files.path
        self._unreadable: dict[str, str] = {}
        self._index = Index()
        self._names: set[str] = set()
        self._left = _MAX_TOTAL
        #: fields by hop (0: of the run), part of the hop ("": itself), and guest or device
        self._found: defaultdict[tuple[int, str, str], _Fields] = defaultdict(dict)
        try:
            self._names = set(names_beneath(self._root))
            self._index = files.index()
        except (EvidenceError, OSError) as error:
            self._unreadable[slots.INDEX] = say(error)

    def read(self) -> Evidence:
        index, entries = self._index, self._index.entries
        for path in {*entries, slots.INCIDENTS.place} - self._names:
            self._unreadable[path] = "the file is missing"
        if index.head is not None:
            self._check_chain()
        if slots.RESULT in self._names and (why := self._compare_result()):
            self._unreadable[slots.RESULT] = why
        for path in sorted({*entries, *self._names}):
            for slot in slots.SLOTS:
                if match := slot.pattern.fullmatch(path):
                    places = match.groupdict()
                    self._read_slot(slot, int(places.get("hop", 0)), places.get("of", ""))
        hops = sorted({hop for hop, _part, _of in self._found} - {0})
        found: _Fields = {"provenance": None, **self._found[0, "", ""]}
        origin = found["provenance"]
        if origin is not None and index.run and origin.run_id != index.run.partition("-")[2]:
            self._unreadable[slots.PROVENANCE.place] = f"it is of run '{origin.run_id}'"
        return Evidence(
            **found,
            hops=tuple(self._build_hop(hop) for hop in hops),
            unreadable=dict(sorted(self._unreadable.items())),
            seal=index.head,
        )

    def _check_chain(self) -> None:
        """Compare the directory with what its index says of it."""
        index = self._index
        if index.run != self._root.name:
            self._unreadable[slots.INDEX] = (
                f"it is of run '{index.run}', the directory is named '{self._root.name}'"
            )
        if index.closed is None:
            self._unreadable[slots.INDEX] = "no closing record: the run was cut off"
            return
        self._unreadable.update(index.failed)
        closed = {artifact.path: artifact for artifact in index.closed}
        # an operator's update goes on after that, and so do its journal and the host's console
        may_grow = slots.JOURNAL in closed
        for path, artifact in {**closed, **index.entries}.items():
            assert artifact is not None
            if closed.get(path) != artifact:
                self._unreadable[path] = "the closing record says otherwise"
            elif why := self._compare(artifact, may_grow=may_grow and is_log(path)):
                self._unreadable.setdefault(path, why)
        for path in self._names - set(closed) - {slots.INDEX, *MADE_AGAIN}:
            if not path.startswith(DISKS) and not (may_grow and is_log(path)):
                self._unreadable[path] = "not in the closing record: it was added"

    def _compare(self, recorded: Artifact, *, may_grow: bool) -> str | None:
        """Say how a file differs from what was recorded of it; None: it does not."""
        try:
            sha256, size = digest_beneath(self._root, recorded.path, recorded.size_bytes)
        except OSError as error:
            return say(error)
        if size != recorded.size_bytes and not (may_grow and size > recorded.size_bytes):
            return f"altered: {size} bytes, recorded were {recorded.size_bytes}"
        if sha256 != recorded.sha256:
            return f"altered: sha256 is {sha256[:12]}…, recorded was {recorded.sha256[:12]}…"
        return None

    def _compare_result(self) -> str | None:
        try:
            told = codec.parse(dict[str, Any], self._read(slots.RESULT), slots.RESULT).get("seal")
        except (OSError, codec.CodecError) as error:
            return say(error)
        head = self._index.head
        return None if told == head else f"it names the seal {told}, the index ends with {head}"

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
        found = (self._index.entries.get(path) for path in sorted(paths))
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
        if path not in self._names:
            return None
        if path not in self._index.entries and slots.INDEX not in self._unreadable:
            self._unreadable[path] = f"not in {slots.INDEX}: it was not written by the run"
        recorded = self._index.entries.get(path)
        if path in self._unreadable and not (is_judged and recorded):
            return None
        try:
            raw = self._read(path, recorded)
        except OSError as error:
            self._unreadable[path] = say(error)
            return None
        if recorded is not None and not is_judged:
            found = hashlib.sha256(raw).hexdigest()
            if found != recorded.sha256:
                self._unreadable[path] = (
                    f"altered: sha256 is {found[:12]}…, recorded was {recorded.sha256[:12]}…"
                )
                return None
        return raw

    def _read(self, path: str, recorded: Artifact | None = None) -> bytes:
        raw = read_beneath(self._root, path, recorded.size_bytes if recorded else MAX_BYTES)
        self._left -= len(raw)
        if self._left < 0:
            raise OSError(errno.EFBIG, f"the run has more than {_MAX_TOTAL} bytes of evidence")
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
