# SPDX-License-Identifier: Apache-2.0
"""The run directory as a table: each kind of evidence is a slot, one line below.

A slot says where the evidence lies, its type, the field of :mod:`liveupdate.model.evidence` it
fills and the checks that want it. The store writes by it, the reader reads by it, the judge takes
paths from it, and ``docs/run-directory.md`` has to agree with it. A new kind of evidence is a type,
a line here, and a field; a slot without a field is read into :attr:`HopEvidence.more`.

Paths are relative to the run directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from liveupdate.model.costs import CostFacts, HandedOver, KeptTables
from liveupdate.model.evidence import (
    AgentPing,
    DeviceFacts,
    Echo,
    FrameSent,
    HopEvidence,
    Incident,
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
    Struck,
    Tick,
    VmmStatus,
    Watched,
)
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.model.iommu_samples import (
    BindingSample,
    ConfigFacts,
    DeviceEvent,
    IommuWatch,
    TableSample,
    UnitSample,
    WatchedDevice,
)
from liveupdate.model.vcpu_state import VcpuState
from liveupdate.model.vm_state import StateFacts

T = TypeVar("T")

SCENARIO = "scenario.toml"
PLAN = "plan.json"
JOURNAL = "journal.jsonl"
EVENTS = "events.jsonl"
RESULT = "result.json"
JUNIT = "junit.xml"
REPORT = "report.html"
EVIDENCE = "evidence"
INDEX = f"{EVIDENCE}/index.jsonl"
#: what the host's agent recorded of an operator's update, as it came
HOST_RECORD = f"{EVIDENCE}/host-record.jsonl"

_HOP = f"{EVIDENCE}/hop-{{hop}}"
_GUEST = f"{_HOP}/{{guest}}"
_IOMMU = f"{EVIDENCE}/iommu/hop-{{hop}}"
_PLACES = {
    "{hop}": "(?P<hop>[1-9][0-9]{0,5})",
    "{guest}": "(?P<of>[^/]+)",
    "{device}": "(?P<of>[a-z0-9-]{1,20})",
}
#: fields that the name of a file of bytes may have in it
_NAMED = ("view", "moment", "requester")


def console(boot: int) -> str:
    """Console log of the ``boot``-th kernel, 0 being the first."""
    return f"boot-{boot}/console.log"


def hop_dir(hop: int) -> str:
    """Where most evidence of a hop lies."""
    return _HOP.format(hop=hop)


@dataclass(frozen=True, eq=False)
class Slot(Generic[T]):
    """One kind of evidence.

    :ivar place: where it lies; ``{hop}``, and ``{guest}`` or ``{device}``, stand for what it is of.
    :ivar holds: the type of what the file, or each line of it, holds.
    :ivar field: what it fills: a field of the hop, or of a part of it such as ``iommu.watch``.
    :ivar checks: which checks want it; none: it is measured or shown, not judged.
    :ivar kind: the format's name in a document; when empty, the name of the file.
    :ivar raw_place: where the bytes of a value lie; ``{NAME}`` stands for a field of it.
    :ivar raw_field: the field of bytes of such a value.
    :ivar unpack: for values that fill several fields: their names and values.
    """

    place: str
    holds: type[T]
    field: str = ""
    checks: tuple[str, ...] = ()
    kind: str = ""
    raw_place: str = ""
    raw_field: str = ""
    unpack: Callable[[Any], Mapping[str, object]] | None = None

    def path(self, hop: int = 0, of: str = "") -> str:
        """Name the file; ``of`` is the guest or the device."""
        return self.place.format(hop=hop, guest=of, device=of)

    def raw_path(self, hop: int, of: str = "", value: T | None = None) -> str:
        """Name the file of a value's bytes; ``value`` is asked when its fields are in the name."""
        names = {name: getattr(value, name) for name in _NAMED if name in self.raw_place}
        return self.raw_place.format(hop=hop, guest=of, **names).replace(" ", "-")

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What :meth:`path` makes; groups ``hop`` and ``of``, as far as it is of one."""
        text = re.escape(self.place)
        for place, pattern in _PLACES.items():
            text = text.replace(re.escape(place), pattern)
        return re.compile(text)


class Document(Slot[T]):
    """A file that holds one value."""

    @property
    def format(self) -> str:
        """The name of its format."""
        return self.kind or self.place.rpartition("/")[2].removesuffix(".json")

    def read_from(self, hop: HopEvidence, of: str = "") -> T | None:
        """Return what a slot without a field has; None: nothing that could be read."""
        return cast("T | None", hop.more.get(self.path(hop.number, of)))


class Series(Slot[T]):
    """A file that holds one value per line, and grows."""

    def read_from(self, hop: HopEvidence, of: str = "") -> tuple[T, ...]:
        """Return what a slot without a field has."""
        return cast("tuple[T, ...]", hop.more.get(self.path(hop.number, of), ()))


def _by_guest(marks: tuple[Mark, ...]) -> Mapping[str, object]:
    return {
        f"{what}_ns": {mark.guest: mark.at_ns for mark in marks if mark.what == what}
        for what in ("paused", "resumed")
    }


def _per_page(name: str, holds: type[T], raw: str, check: str) -> Document[T]:
    """Make the slot of a table of words, one for each page of a guest; ``raw``: FIELD.SUFFIX."""
    field, _, suffix = raw.partition(".")
    return Document(
        f"{_GUEST}/{name}.json",
        holds,
        f"memory.{name.replace('-', '_')}",
        (check,),
        field,
        f"{_GUEST}/{name}.{suffix}",
        field,
    )


_KHO = ("handover.kho", "handover.generation")
_CLOCK = ("guest.liveness", "guest.clock")
_OUTSIDE = (
    "iommu.translation",
    "iommu.mappings",
    "iommu.faults",
    "device.no-reset",
    "device.config-space",
)

PROVENANCE = Document("provenance.json", Provenance, "provenance", ("handover.kho",))
INCIDENTS = Series(f"{EVIDENCE}/incidents.jsonl", Incident, "incidents", ("handover.kho",))
ROLLED_BACK = Document(f"{EVIDENCE}/rolled-back.json", bool, "rolled_back")

KERNEL_BEFORE = Document(f"{_HOP}/before.json", KernelFacts, "before", _KHO, "kernel")
KERNEL_AFTER = Document(
    f"{_HOP}/after.json", KernelFacts, "after", (*_KHO, "handover.session"), "kernel"
)
COSTS_BEFORE = Document(f"{_HOP}/costs-before.json", CostFacts, "costs.before", kind="costs")
COSTS_AFTER = Document(f"{_HOP}/costs-after.json", CostFacts, "costs.after", kind="costs")
HANDED_OVER = Document(f"{_HOP}/handed-over.json", HandedOver, "costs.handed_over")
SSH = Document(
    f"{_HOP}/ssh.json",
    SshFacts,
    checks=("handover.kho",),
    unpack=lambda ssh: {"ssh_boot_id": ssh.boot_id, "ssh_nonce_ok": ssh.nonce_ok},
)
SESSIONS = Series(f"{_HOP}/sessions.jsonl", SessionFacts, "sessions", ("handover.session",))
STRUCK = Series(f"{_HOP}/struck.jsonl", Struck, "struck", ("handover.kho",))
PHASES = Series(f"{_HOP}/phases.jsonl", Phase, "phases")
MARKS = Series(
    f"{_HOP}/marks.jsonl",
    Mark,
    checks=("guest.liveness", "guest.clock", "guest.network", "memory.content", *_OUTSIDE),
    unpack=_by_guest,
)
DEVICE = Document(
    f"{_HOP}/device-{{device}}.json",
    DeviceFacts,
    "devices.facts",
    ("device.dma-continuity",),
    "device",
)
FRAMES = Series(
    f"{_HOP}/frames-{{device}}.jsonl", FrameSent, "devices.frames", ("device.dma-continuity",)
)

FREEZE = _per_page("freeze", PageDigests, "digests.xxh3", "memory.content")
BOOT = _per_page("boot", PageDigests, "digests.xxh3", "memory.content")
PFNS_BEFORE = _per_page("pfns-before", PageFrames, "pfns.u64", "memory.placement")
PFNS_AFTER = _per_page("pfns-after", PageFrames, "pfns.u64", "memory.placement")
STATE = Document(f"{_GUEST}/state.json", StateFacts, "memory.state", ("handover.state",))
VCPUS = Series(f"{_GUEST}/vcpus.jsonl", VcpuState, "guests.vcpus", ("guest.vcpu-state",))
TICKS = Series(f"{_GUEST}/ticks.jsonl", Tick, "guests.ticks", _CLOCK)
ECHOES = Series(f"{_GUEST}/echoes.jsonl", Echo, "guests.echoes", ("guest.network",))
JOURNAL_SEEN = Series(
    f"{_GUEST}/journal.jsonl", JournalSample, "guests.journal", ("guest.storage",)
)
PINGS = Series(f"{_GUEST}/pings.jsonl", AgentPing, "guests.agent_pings", _CLOCK)
WATCHED = Document(f"{_GUEST}/watched.json", Watched, "guests.watched", (*_CLOCK, "guest.network"))
VMM = Document(
    f"{_GUEST}/vmm.json",
    VmmStatus,
    "guests.vmm_status",
    ("guest.liveness",),
    unpack=lambda vmm: {"vmm_status": vmm.status},
)
JOURNAL_BEFORE = Document(
    f"{_GUEST}/journal-before.json", JournalFacts, "guests.journal_before", ("guest.storage",)
)
JOURNAL_AFTER = Document(
    f"{_GUEST}/journal-after.json", JournalFacts, "guests.journal_after", ("guest.storage",)
)
PATTERN = Document(f"{_GUEST}/pattern.json", PatternFacts, "guests.pattern", ("memory.content",))

DEVICES = Document(f"{_IOMMU}/devices.json", tuple[WatchedDevice, ...], "iommu.devices", _OUTSIDE)
WATCH = Document(f"{_IOMMU}/watch.json", IommuWatch, "iommu.watch", _OUTSIDE)
KEPT = Document(f"{_IOMMU}/kept.json", KeptTables, "iommu.kept")
SAMPLES = Series(
    f"{_IOMMU}/samples.jsonl", UnitSample, "iommu.samples", ("iommu.translation", "iommu.faults")
)
BINDINGS = Series(
    f"{_IOMMU}/bindings.jsonl", BindingSample, "iommu.bindings", ("iommu.translation",)
)
TABLES = Series(f"{_IOMMU}/tables.jsonl", TableSample, "iommu.tables", ("iommu.mappings",))
DEVICE_EVENTS = Series(
    f"{_IOMMU}/events.jsonl",
    DeviceEvent,
    "iommu.events",
    ("iommu.translation", "iommu.faults", "device.no-reset", "device.config-space"),
)
MAPPINGS = Series(
    f"{_IOMMU}/mappings.jsonl",
    MappingFacts,
    "iommu.mappings",
    ("iommu.mappings",),
    raw_place=f"{_IOMMU}/{{view}}-{{moment}}-{{requester}}.runs",
    raw_field="runs",
)
CONFIGS = Series(
    f"{_IOMMU}/configs.jsonl",
    ConfigFacts,
    "iommu.configs",
    ("device.no-reset", "device.config-space"),
)

SLOTS: tuple[Slot[Any], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Slot)
)
"""All of them, in the order above."""
#: by moment
DIGESTS = {"freeze": FREEZE, "boot": BOOT}
