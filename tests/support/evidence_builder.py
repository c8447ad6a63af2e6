# SPDX-License-Identifier: Apache-2.0
"""Synthetic plans and evidence of a good run, to be spoilt by tests.

Time line of hop n (host ns, seconds here): base = 100·n; watched from base, paused at base + 1,
resumed at base + 5, watched until base + 8. Ticks every 10 ms, echoes every 20, journal every 50.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable

from msgspec.structs import replace

from liveupdate.core.units import MIB, PAGE_BYTES
from liveupdate.judging.table import CHECK_IDS
from liveupdate.model import slots
from liveupdate.model.costs import CostFacts, FragmentFacts, HandedOver, RamFacts
from liveupdate.model.evidence import (
    Artifact,
    Echo,
    Evidence,
    GuestMemory,
    GuestTrace,
    HopEvidence,
    JournalSample,
    KernelFacts,
    PageDigests,
    PageFrames,
    PatternFacts,
    Phase,
    Provenance,
    SessionFacts,
    Struck,
    Tick,
    Watched,
)
from liveupdate.model.guest_device_use import JournalFacts
from liveupdate.model.plan import Hop, ImageSet, KernelImage, MachineSpec, Plan
from liveupdate.model.scenario import Budget, GuestSpec, Observation, Timeouts
from liveupdate.model.vm_state import StateFacts, StateSeen, StateSum
from tests.support.vcpus import make_vcpu

MS = 1_000_000
SECOND = 1_000_000_000
#: small, so that tests are fast; 512 pages
GUEST_BYTES = 2 * MIB
PAGES = GUEST_BYTES // PAGE_BYTES
PATTERN_PAGES = PAGES // 2
BOOT = 0x1234_5678_9ABC_DEF0
NOT_YET = "not implemented yet"
WATCHED_NS = 8 * SECOND
PAUSED_NS = 1 * SECOND
RESUMED_NS = 5 * SECOND

KERNEL_A = KernelImage(path="a", sha256="aa", release="7.3.4-lu-a", build_id="a" * 40)
KERNEL_B = KernelImage(path="b", sha256="bb", release="7.3.4-lu-b", build_id="b" * 40)

RAM = RamFacts(
    guest="vm0",
    allocate_ns=50 * MS,
    pages_4k=512,
    pages_2m=3,
    pages_1g=0,
    online_page=True,
    pinnable=True,
)
COSTS = CostFacts(
    mechanism="luo-memfd",
    metadata_bytes=None,
    rams=(RAM,),
    fragment=FragmentFacts(
        share=0.8, free_bytes=1 << 30, whole_before=500, whole_after=20, pinned=480
    ),
)
HANDED_OVER = HandedOver(nodes=10, folios=((0, 100), (9, 2)), ours_bytes=4 * MIB)


def make_struck(fault: str) -> Struck:
    """The record of a strike in the blackout of hop 1."""
    return Struck(
        fault=fault, what="bit 3 of a byte", where="host-physical 0x1000", before="00", after="08",
        at_ns=102 * SECOND, view="outside",
    )  # fmt: skip


def make_plan(
    *,
    hops: int = 1,
    guests: tuple[GuestSpec, ...] | None = None,
    budget: Budget | None = None,
    skips: tuple[tuple[str, str], ...] | None = None,
    observe: Observation | None = None,
) -> Plan:
    """A→B→A… with one payload guest; iommu.* and device.* skipped."""
    default = tuple(
        (check, NOT_YET) for check in CHECK_IDS if check.startswith(("iommu.", "device."))
    )
    guest = GuestSpec(name="vm0", memory_bytes=GUEST_BYTES, pattern_bytes=GUEST_BYTES // 2)
    return Plan(
        scenario="test",
        target="qemu",
        mechanism="luo-memfd",
        images=ImageSet(
            outgoing=KERNEL_A,
            incoming=KERNEL_B,
            guest_kernel="a",
            guest_initrd="i",
            rootfs="r",
            rootfs_sha256="rr",
            ssh_client_key="k",
            ssh_host_key_pub="p",
        ),
        machine=MachineSpec(accel="tcg", memory_bytes=1 << 30, vcpus=2, disks=(("vm0", 1 << 20),)),
        boot_append="console=ttyS0",
        hops=tuple(
            Hop(number=number, incoming=KERNEL_B if number % 2 else KERNEL_A, append="")
            for number in range(1, hops + 1)
        ),
        guests=guests or (guest,),
        calibration=True,
        timeouts=Timeouts(),
        observe=observe or Observation(),
        budget=budget or Budget(),
        skips=default if skips is None else skips,
        state_digests=True,
        vcpu_state=True,
    )


def make_artifact(path: str, raw: bytes) -> Artifact:
    return Artifact(path=path, sha256=hashlib.sha256(raw).hexdigest(), size_bytes=len(raw))


def make_kernel(generation: int, image: KernelImage) -> KernelFacts:
    return KernelFacts(
        boot_id=f"boot-{generation}",
        release=image.release,
        build_id=image.build_id,
        cmdline="console=ttyS0 kho=on",
        tsc_khz=2_600_000,
        kho_found=generation > 0,
        generation=generation,
        luo_number=generation or None,
        liveupdate=True,
        mem_free_bytes=500 * MIB,
        preserved_bytes=GUEST_BYTES,
        scratch_bytes=64 * MIB,
        mem_available_bytes=600 * MIB,
    )


def make_digests(salt: int = 1) -> bytes:
    """One different word per page."""
    table = array("Q", ((page * 0x9E3779B97F4A7C15 + salt) % 2**64 for page in range(PAGES)))
    return table.tobytes()


def make_pfns() -> bytes:
    return array("Q", range(0x1000, 0x1000 + PAGES)).tobytes()


def make_frames(pfns: bytes, path: str = "x") -> PageFrames:
    return PageFrames(pages=len(pfns) // 8, artifact=make_artifact(path, pfns), pfns=pfns)


def make_state(hop: int) -> StateFacts:
    """A state of four pages that was seen from outside twice, before the agent's hello."""
    paused, size, digest = hop * 100 * SECOND + PAUSED_NS, 16384, f"{hop:032x}"

    def seen(after_ns: int) -> StateSeen:
        return StateSeen(
            state_bytes=size,
            state_digest=digest,
            began_ns=paused + after_ns,
            ended_ns=paused + after_ns + MS,
        )

    told = StateSum(state_bytes=size, state_digest=digest)
    return StateFacts(
        saved=told,
        freeze=seen(200 * MS),
        boot=seen(500 * MS),
        hello_ns=paused + SECOND,
        read=told,
    )


def make_memory(hop: int, guest: str) -> GuestMemory:
    base, raw, pfns = hop * 100 * SECOND, make_digests(hop), make_pfns()

    def digests(moment: str, began_ns: int) -> PageDigests:
        return PageDigests(
            pages=PAGES,
            artifact=make_artifact(slots.DIGESTS[moment].raw_path(hop, guest), raw),
            digests=raw,
            began_ns=base + began_ns,
            ended_ns=base + began_ns + 50 * MS,
        )

    return GuestMemory(
        guest=guest,
        freeze=digests("freeze", PAUSED_NS + 10 * MS),
        boot=digests("boot", PAUSED_NS + 500 * MS),
        pfns_before=make_frames(pfns, slots.PFNS_BEFORE.raw_path(hop, guest)),
        pfns_after=make_frames(pfns, slots.PFNS_AFTER.raw_path(hop, guest)),
        state=make_state(hop),
    )


def alive(at_ns: int) -> bool:
    """Whether the guest runs at this time of its hop."""
    return not PAUSED_NS - 5 * MS < at_ns < RESUMED_NS


def make_ticks(
    hop: int = 1, *, rate: float = 1.0, running: Callable[[int], bool] = alive
) -> tuple[Tick, ...]:
    """Ticks whose clocks stand still over the pause; ``rate`` is that of the clocks after it."""
    base = hop * 100 * SECOND
    ticks: list[Tick] = []
    lost, seq = 0, hop * 10_000
    for at in range(0, WATCHED_NS, 10 * MS):
        if not running(at):
            lost += 10 * MS if not alive(at) else 0
            continue
        seq += 1
        clock = base + at - lost
        if at >= RESUMED_NS:
            clock += round((at - RESUMED_NS) * (rate - 1))
        ticks.append(
            Tick(
                host_ns=base + at + 2 * MS,
                boot=BOOT,
                seq=seq,
                tsc=clock * 2,
                monotonic_ns=clock,
                boottime_ns=clock,
                realtime_ns=clock + 1_700_000_000 * SECOND,
            )
        )
    return tuple(ticks)


def make_echoes(hop: int = 1, *, running: Callable[[int], bool] = alive) -> tuple[Echo, ...]:
    base = hop * 100 * SECOND
    return tuple(
        Echo(
            seq=hop * 10_000 + number,
            sent_ns=base + at,
            received_ns=base + at + 3 * MS if running(at) else None,
            boot=BOOT if running(at) else None,
        )
        for number, at in enumerate(range(0, WATCHED_NS, 20 * MS))
    )


def make_journal(
    hop: int = 1, *, running: Callable[[int], bool] = alive
) -> tuple[JournalSample, ...]:
    base = hop * 100 * SECOND
    times = [at for at in range(0, WATCHED_NS, 50 * MS) if running(at)]
    return tuple(
        JournalSample(host_ns=base + at, seq=hop * 1000 + number) for number, at in enumerate(times)
    )


def make_scan(last_seq: int) -> JournalFacts:
    return JournalFacts(
        boot=BOOT,
        first_seq=1,
        last_seq=last_seq,
        records=last_seq,
        missing=(),
        corrupt=0,
        foreign=0,
    )


def make_trace(hop: int = 1, guest: str = "vm0") -> GuestTrace:
    base = hop * 100 * SECOND
    return GuestTrace(
        guest=guest,
        vmm_status="running",
        ticks=make_ticks(hop),
        echoes=make_echoes(hop),
        journal=make_journal(hop),
        journal_before=make_scan(hop * 1000),
        journal_after=make_scan(hop * 1000 + 100),
        pattern=PatternFacts(pages=PATTERN_PAGES, bad=0),
        watched=Watched(began_ns=base, ended_ns=base + WATCHED_NS, longest_hole_ns=8 * MS),
        vcpus=(
            make_vcpu("before", base + PAUSED_NS + 20 * MS),
            make_vcpu("after", base + RESUMED_NS - 20 * MS),
        ),
    )


def make_hop(number: int, guests: tuple[str, ...] = ("vm0",)) -> HopEvidence:
    base = number * 100 * SECOND
    outgoing, incoming = (KERNEL_A, KERNEL_B) if number % 2 else (KERNEL_B, KERNEL_A)
    return HopEvidence(
        number=number,
        before=make_kernel(number - 1, outgoing),
        after=make_kernel(number, incoming),
        sessions=tuple(
            SessionFacts(
                name=name, error=None, tokens=2, retrieve_ns=0 if name == "lu.agent" else 17 * MS
            )
            for name in ("lu.agent", *(f"lu.guest.{guest}" for guest in guests))
        ),
        memory=tuple(make_memory(number, guest) for guest in guests),
        guests=tuple(make_trace(number, guest) for guest in guests),
        phases=(
            Phase(hop=number, name="prepare", began_ns=base, ended_ns=base + SECOND),
            Phase(
                hop=number,
                name="kernel",
                began_ns=base + PAUSED_NS,
                ended_ns=base + PAUSED_NS + 2 * SECOND,
            ),
            *(
                Phase(
                    hop=number,
                    name="load",
                    began_ns=base + 4 * SECOND,
                    ended_ns=base + RESUMED_NS,
                    guest=guest,
                )
                for guest in guests
            ),
        ),
        paused_ns={guest: base + PAUSED_NS for guest in guests},
        resumed_ns={guest: base + RESUMED_NS for guest in guests},
        ssh_boot_id=f"boot-{number}",
        ssh_nonce_ok=True,
    )


def make_provenance() -> Provenance:
    return Provenance(
        tool_version="0.0",
        run_id="abc",
        started_utc="2026-01-02T03:04:05+00:00",
        argv=("liveupdate", "run"),
        accel="tcg",
        accel_reason="no /dev/kvm",
        kvm_enabled=False,
        start="cold",
        qemu_version="10.0.2",
        qemu_argv=("qemu-system-x86_64", "-accel", "tcg"),
        guest_qemu_version="11.1.3",
        control_host={"cpus": "2"},
        images={"outgoing": KERNEL_A.sha256, "incoming": KERNEL_B.sha256, "rootfs": "rr"},
    )


def make_evidence(*, hops: int = 1, guests: tuple[str, ...] = ("vm0",)) -> Evidence:
    """Evidence of a run in which everything went well."""
    return Evidence(
        provenance=make_provenance(),
        hops=tuple(make_hop(number, guests) for number in range(1, hops + 1)),
    )


# --- spoiling


def with_hop(evidence: Evidence, number: int = 1, /, **changes: object) -> Evidence:
    """Replace fields of one hop."""
    hops = tuple(replace(hop, **changes) if hop.number == number else hop for hop in evidence.hops)
    return replace(evidence, hops=hops)


def with_after(evidence: Evidence, number: int = 1, /, **changes: object) -> Evidence:
    """Replace facts of the incoming kernel."""
    after = next(hop.after for hop in evidence.hops if hop.number == number)
    assert after is not None
    return with_hop(evidence, number, after=replace(after, **changes))


def with_trace(
    evidence: Evidence, number: int = 1, guest: str = "vm0", /, **changes: object
) -> Evidence:
    """Replace fields of a guest's trace."""
    hop = next(hop for hop in evidence.hops if hop.number == number)
    traces = tuple(
        replace(trace, **changes) if trace.guest == guest else trace for trace in hop.guests
    )
    return with_hop(evidence, number, guests=traces)


def with_memory(
    evidence: Evidence, number: int = 1, guest: str = "vm0", /, **changes: object
) -> Evidence:
    """Replace fields of a guest's memory facts."""
    hop = next(hop for hop in evidence.hops if hop.number == number)
    memory = tuple(
        replace(facts, **changes) if facts.guest == guest else facts for facts in hop.memory
    )
    return with_hop(evidence, number, memory=memory)


def flip(raw: bytes, position: int, bit: int = 0) -> bytes:
    """Flip one bit of one byte."""
    return raw[:position] + bytes([raw[position] ^ (1 << bit)]) + raw[position + 1 :]
