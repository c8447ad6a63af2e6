# SPDX-License-Identifier: Apache-2.0
"""Synthetic evidence of a device that went on with DMA over a good hop, to be spoilt by tests.

Fits the time line of :mod:`tests.support.evidence_builder`: sampled every 20 ms from 0.5 s to
7.5 s.
"""

from __future__ import annotations

import hashlib
import struct

from msgspec.structs import replace

from liveupdate.formats import qemu_trace
from liveupdate.formats.iommu import READ, WRITE, Run, pack_runs
from liveupdate.model import slots
from liveupdate.model.costs import KeptTables
from liveupdate.model.evidence import UNSTORED, Artifact, Evidence, IommuEvidence, MappingFacts
from liveupdate.model.iommu_samples import (
    BindingSample,
    ConfigFacts,
    DeviceEvent,
    IommuWatch,
    UnitSample,
    WatchedDevice,
)
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import DeviceSpec
from tests.support import evidence_builder as make
from tests.support.evidence_builder import MS, SECOND

FUNCTION, PORT = "0000:01:00.0", "0000:00:10.0"
CHECKS = (
    "iommu.translation",
    "iommu.mappings",
    "iommu.faults",
    "device.no-reset",
    "device.config-space",
)
#: TES, RTPS, QIES, IRES, IRTPS
ON, OFF = 0xC700_0000, 0x4700_0000
ROOT, TOP = 0x0080_0000, 0x00F8_5000
EXPRESS_CAP, POWER_CAP = 0x40, 0x80
RUNS = (
    Run(0x1000, 0x4_0000_0000, 0x4000, READ | WRITE, 4096),
    Run(0x20_0000, 0x5_0000_0000, 1 << 21, READ, 1 << 21),
)
DEVICE = WatchedDevice(name="nic0", kind="igb", function=FUNCTION, bridges=(PORT,))


def make_plan(tier: str = "continuous", *, hops: int = 1, bdf: str | None = None) -> Plan:
    """A plan with one device, in which the checks of this module are not skipped."""
    plan = make.make_plan(hops=hops, skips=(("device.dma-continuity", make.NOT_YET),))
    return replace(plan, devices=(DeviceSpec(name="nic0", kind="igb", tier=tier, bdf=bdf),))


def base(hop: int) -> int:
    return hop * 100 * SECOND


def make_samples(hop: int = 1) -> tuple[UnitSample, ...]:
    return tuple(
        UnitSample(host_ns=base(hop) + at, gsts=ON, rtaddr=ROOT, fsts=0, fault_records="")
        for at in range(500 * MS, 7500 * MS, 20 * MS)
    )


def make_binding(at_ms: int = 500, hop: int = 1, top: int = TOP) -> BindingSample:
    return BindingSample(
        host_ns=base(hop) + at_ms * MS,
        requester=FUNCTION,
        translation="second-stage",
        domain_id=14,
        top=top,
        levels=4,
        fault="",
    )


def make_event(what: str, at_ms: int = 2000, hop: int = 1, **changes: object) -> DeviceEvent:
    event = DeviceEvent(
        host_ns=base(hop) + at_ms * MS, what=what, where="", offset=0, value=0, note=""
    )
    return replace(event, **changes)


def make_mapping(
    hop: int, view: str, moment: str, runs: tuple[Run, ...] = RUNS, **changes: object
) -> MappingFacts:
    raw = pack_runs(runs)
    facts = MappingFacts(
        requester=FUNCTION,
        moment=moment,
        view=view,
        taken_ns=base(hop) + (400 if moment == "before" else 7600) * MS,
        took_ns=3 * MS,
        translation="second-stage",
        domain_id=14,
        top=TOP,
        levels=4,
        access=READ | WRITE,
        faults=(),
        runs=raw,
        artifact=UNSTORED,
    )
    path = slots.MAPPINGS.raw_path(hop, value=facts)
    sha256 = hashlib.sha256(raw).hexdigest()
    artifact = Artifact(path=path, sha256=sha256, size_bytes=len(raw))
    return replace(facts, **{"artifact": artifact, **changes})


def make_config(*, is_bridge: bool = False, **words: int) -> bytes:
    """Configuration space; ``words`` are ``at_XX=value`` u32 to be put on top."""
    data = bytearray(256)
    ids = 0x000C1B36 if is_bridge else 0x10C98086
    struct.pack_into("<IHHI", data, 0, ids, 0x0507, 0x0010, 0x06040000 if is_bridge else 0x02000001)
    data[0x0E] = 1 if is_bridge else 0
    struct.pack_into("<I", data, 0x10, 0xFE000000)
    if is_bridge:
        struct.pack_into("<BBB", data, 0x18, 0, 1, 1)
        struct.pack_into("<II", data, 0x20, 0xFE10FE00, 0xFE91FE81)
    data[0x34] = EXPRESS_CAP
    data[EXPRESS_CAP : EXPRESS_CAP + 2] = bytes((0x10, POWER_CAP))
    data[POWER_CAP : POWER_CAP + 2] = bytes((0x01, 0))
    for name, value in words.items():
        struct.pack_into("<I", data, int(name.removeprefix("at_"), 16), value)
    return bytes(data)


def make_configs(hop: int = 1) -> tuple[ConfigFacts, ...]:
    return tuple(
        ConfigFacts(
            function=function,
            moment=moment,
            taken_ns=base(hop) + (400 if moment == "before" else 7600) * MS,
            data=make_config(is_bridge=function == PORT).hex(),
        )
        for moment in ("before", "after")
        for function in (PORT, FUNCTION)
    )


def make_iommu(hop: int = 1) -> IommuEvidence:
    samples = make_samples(hop)
    return IommuEvidence(
        devices=(DEVICE,),
        watch=IommuWatch(
            samples=len(samples),
            began_ns=samples[0].host_ns,
            ended_ns=samples[-1].host_ns,
            longest_hole_ns=31 * MS,
            interval_ns=18 * MS,
            cpu_ns=200 * MS,
            trace_lines=1234,
            beats_ns=(samples[0].host_ns, samples[-1].host_ns, 31 * MS),
            compared={FUNCTION: len(samples)},
        ),
        samples=samples,
        bindings=(make_binding(500, hop), make_binding(6000, hop, top=0x0123_4000)),
        tables=(),
        events=(
            make_event(qemu_trace.ROOT, 2500, hop, value=ROOT),
            make_event(qemu_trace.TRANSLATION, 2510, hop, value=1),
            make_event(
                qemu_trace.CONFIG_WRITE, 2600, hop, where=FUNCTION, offset=0x04, value=0x0507
            ),
        ),
        mappings=tuple(
            make_mapping(hop, view, moment)
            for view in ("outside", "inside")
            for moment in ("before", "after")
        ),
        configs=make_configs(hop),
        kept=KeptTables(table_pages=142, devices=1, took_ns=2 * MS),
    )


def make_evidence(hops: int = 1) -> Evidence:
    evidence = make.make_evidence(hops=hops)
    return replace(
        evidence, hops=tuple(replace(hop, iommu=make_iommu(hop.number)) for hop in evidence.hops)
    )


def spoil(evidence: Evidence, **changes: object) -> Evidence:
    """Replace parts of what was seen in the first hop."""
    iommu = evidence.hops[0].iommu
    assert iommu is not None
    return make.with_hop(evidence, iommu=replace(iommu, **changes))
