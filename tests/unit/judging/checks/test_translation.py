# SPDX-License-Identifier: Apache-2.0
"""Checks of devices and their translation: green on a good hop, red for each way to break one."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from liveupdate.formats import qemu_trace
from liveupdate.formats.iommu import READ, WRITE, Run
from liveupdate.judging.guest_share import Ranges
from liveupdate.judging.judge import judge
from liveupdate.model.evidence import Evidence, IommuEvidence
from liveupdate.model.iommu_samples import ConfigFacts, DeviceEvent, TableSample, UnitSample
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import DeviceSpec
from liveupdate.model.verdict import Check, Outcome
from liveupdate.report.text import render_text
from tests.support import evidence_builder as make
from tests.support import iommu_evidence as seen
from tests.support.evidence_builder import MS
from tests.support.iommu_evidence import FUNCTION, OFF, ON, PORT, spoil

GOOD = seen.make_evidence()
PLAN = seen.make_plan()
QUIESCE = seen.make_plan("quiesce")

Spoil = Callable[[Evidence], Evidence]


def check_of(check_id: str, evidence: Evidence, plan: Plan = PLAN) -> Check:
    return next(check for check in judge(plan, evidence).checks if check.id == check_id)


def iommu_of(evidence: Evidence) -> IommuEvidence:
    iommu = evidence.hops[0].iommu
    assert iommu is not None
    return iommu


def test_good_hops_pass_every_check_and_say_what_was_seen() -> None:
    verdict = judge(seen.make_plan(hops=3), seen.make_evidence(hops=3))
    assert verdict.outcome is Outcome.PASS
    said = {check.id: check for check in verdict.checks if check.id in seen.CHECKS}
    assert set(said) == set(seen.CHECKS)
    assert all(check.status is Outcome.PASS and check.reason for check in said.values())
    assert "350 samples, 201 of them in the blackout (50 Hz" in said["iommu.translation"].reason
    assert "2.0 MiB in 2 runs" in said["iommu.mappings"].reason


def test_without_a_kept_device_every_check_is_a_skip_with_its_reason() -> None:
    for check_id in seen.CHECKS:
        check = check_of(check_id, GOOD, seen.make_plan("none"))
        assert (check.status, "no device" in check.reason) == (Outcome.SKIP, True)
        # and a plan that expects them all the same contradicts itself
        none = check_of(check_id, GOOD, replace(PLAN, devices=()))
        assert none.status is Outcome.ERROR


@pytest.mark.parametrize("check_id", seen.CHECKS)
def test_nothing_seen_is_error(check_id: str) -> None:
    for evidence in (
        make.with_hop(GOOD, iommu=None),
        spoil(GOOD, watch=None),
        spoil(GOOD, devices=()),
        replace(GOOD, hops=()),
    ):
        assert check_of(check_id, evidence).status is Outcome.ERROR


@pytest.mark.parametrize("check_id", seen.CHECKS)
def test_another_device_than_planned_is_error(check_id: str) -> None:
    plan = seen.make_plan(bdf="0000:02:00.0")
    assert check_of(check_id, GOOD, plan).status is Outcome.ERROR


def test_what_watching_cost_is_measured() -> None:
    metrics = {metric.name: metric for metric in judge(PLAN, GOOD).metrics}
    assert round(metrics["iommu.sampling.rate"].value) == 50
    assert round(metrics["iommu.sampling.cpu"].value, 1) == 2.9
    assert metrics["iommu.sampling.hole"].value == 31 * MS
    assert metrics["iommu.walk"].value == 3 * MS
    # 4 pages of 4 KiB and one of 2 MiB
    assert metrics["iommu.mapped"].value == 5


def test_time_that_keeping_tables_took_is_measured_and_said() -> None:
    (said,) = (each for each in judge(PLAN, GOOD).metrics if each.name == "iommu.preserve")
    assert (said.value, said.labels["pages"], said.labels["devices"]) == (2 * MS, "142", "1")
    text = " ".join(render_text(PLAN, GOOD, judge(PLAN, GOOD)).split())
    assert "142 table pages of 1 devices preserved in 2 ms, by the kernel's own clock" in text
    unknown = judge(PLAN, spoil(GOOD, kept=None)).metrics
    assert not [each for each in unknown if each.name == "iommu.preserve"]


# --- red


def samples(change: Callable[[UnitSample], UnitSample], from_ms: int, to_ms: int) -> Spoil:
    def apply(evidence: Evidence) -> Evidence:
        base = seen.base(1)
        return spoil(
            evidence,
            samples=tuple(
                change(each) if base + from_ms * MS <= each.host_ns < base + to_ms * MS else each
                for each in iommu_of(evidence).samples
            ),
        )

    return apply


def events(*more: DeviceEvent) -> Spoil:
    return lambda evidence: spoil(evidence, events=(*iommu_of(evidence).events, *more))


def bindings(**changes: object) -> Spoil:
    def apply(evidence: Evidence) -> Evidence:
        old = iommu_of(evidence).bindings
        bad = replace(seen.make_binding(2000), **changes)
        return spoil(evidence, bindings=(*old, bad))

    return apply


def mapping(view: str, moment: str, runs: tuple[Run, ...] = seen.RUNS, **changes: object) -> Spoil:
    def apply(evidence: Evidence) -> Evidence:
        return spoil(
            evidence,
            mappings=tuple(
                seen.make_mapping(1, view, moment, runs, **changes)
                if (each.view, each.moment) == (view, moment)
                else each
                for each in iommu_of(evidence).mappings
            ),
        )

    return apply


def both_views(moment: str, runs: tuple[Run, ...], **changes: object) -> Spoil:
    return lambda evidence: mapping("inside", moment, runs, **changes)(
        mapping("outside", moment, runs, **changes)(evidence)
    )


def config(function: str, moment: str, data: bytes) -> Spoil:
    def change(each: ConfigFacts) -> ConfigFacts:
        is_it = (each.function, each.moment) == (function, moment)
        return replace(each, data=data.hex()) if is_it else each

    return lambda evidence: spoil(evidence, configs=tuple(map(change, iommu_of(evidence).configs)))


def table(pages: int) -> Spoil:
    row = TableSample(
        host_ns=seen.base(1) + 2000 * MS,
        requester=FUNCTION,
        top=seen.TOP,
        pages=pages,
        first="0x0000000000f88008: 0x1003 -> 0x2003",
    )
    return lambda evidence: spoil(evidence, tables=(row,))


MOVED = (Run(0x1000, 0x6_0000_0000, 0x4000, READ | WRITE, 4096), seen.RUNS[1])
FEWER = seen.RUNS[:1]
READ_ONLY = (seen.RUNS[0]._replace(access=READ), seen.RUNS[1])

RED: list[tuple[str, Spoil, str, str]] = [
    (
        "one-sample-off",
        samples(lambda each: replace(each, gsts=OFF), 2000, 2020),
        "iommu.translation",
        "off in 1 of 350 samples, first at +1000 ms",
    ),
    (
        "no-root-pointer",
        samples(lambda each: replace(each, gsts=ON & ~(1 << 30)), 2000, 3000),
        "iommu.translation",
        "off in 50 of 350",
    ),
    (
        "off-between-samples",
        events(seen.make_event(qemu_trace.TRANSLATION, value=0)),
        "iommu.translation",
        "switched off 1 times between samples",
    ),
    (
        "mode-changes",
        samples(lambda each: replace(each, rtaddr=seen.ROOT | 1 << 10), 5000, 9000),
        "iommu.translation",
        "the mode of the root table changed",
    ),
    ("entry-gone", bindings(translation="blocked"), "iommu.translation", "it was blocked"),
    (
        "pass-through",
        bindings(translation="pass-through"),
        "iommu.translation",
        "it was pass-through",
    ),
    (
        "root-out-of-ram",
        bindings(translation="unknown", fault="unreadable at 0x8: not RAM"),
        "iommu.translation",
        "not RAM",
    ),
    ("moved", both_views("after", MOVED), "iommu.mappings", "16 KiB moved; first: moved 0x"),
    ("lost", both_views("after", FEWER), "iommu.mappings", "2 MiB lost"),
    ("access", both_views("after", READ_ONLY), "iommu.mappings", "16 KiB access"),
    (
        "translation-type",
        both_views("after", (), translation="pass-through"),
        "iommu.mappings",
        "changed over the update: translation second-stage -> pass-through; 2.0 MiB lost",
    ),
    ("inside-lies-before", mapping("inside", "before", MOVED), "iommu.mappings", "otherwise than"),
    ("inside-lies-after", mapping("inside", "after", FEWER), "iommu.mappings", "otherwise than"),
    ("other-domain", mapping("inside", "after", domain_id=3), "iommu.mappings", "domain_id 3"),
    (
        "broken-tables-after",
        mapping("outside", "after", faults=("loop at 0x1",)),
        "iommu.mappings",
        "loop at 0x1",
    ),
    ("tampered", table(1), "iommu.mappings", "page tables in use changed at +1000 ms"),
    (
        "fault-in-trace",
        events(
            seen.make_event(qemu_trace.FAULT, where=FUNCTION, offset=6, value=0x1000, note="write")
        ),
        "iommu.faults",
        "1 requests were refused, first 0000:01:00.0 write 0x1000 (reason 0x6)",
    ),
    (
        "fault-in-registers",
        samples(
            lambda each: replace(
                each,
                fsts=2,
                # F, no permission to write, from 01:00.0
                fault_records="00100000000000000001000005000080",
            ),
            3000,
            9000,
        ),
        "iommu.faults",
        "01:00.0 write 0x0000000000001000: no write permission",
    ),
    (
        "reset",
        events(seen.make_event(qemu_trace.RESET, note="igb")),
        "device.no-reset",
        "reset of QEMU's igb at +1000 ms",
    ),
    (
        "soft-reset",
        events(seen.make_event(qemu_trace.SOFT_RESET, note=qemu_trace.NIC_RESET)),
        "device.no-reset",
        "its own register",
    ),
    (
        "function-level-reset",
        events(
            seen.make_event(
                qemu_trace.CONFIG_WRITE,
                where=FUNCTION,
                offset=seen.EXPRESS_CAP + 8,
                value=0x8000,
            )
        ),
        "device.no-reset",
        "function level reset",
    ),
    (
        "bus-reset",
        events(
            seen.make_event(qemu_trace.CONFIG_WRITE, where=PORT, offset=0x3C, value=0x0040_0000)
        ),
        "device.no-reset",
        f"bus reset by {PORT}",
    ),
    (
        "power-down",
        events(seen.make_event(qemu_trace.POWER, where=PORT, value=3)),
        "device.no-reset",
        "power state D3",
    ),
    (
        "bar-moved",
        config(FUNCTION, "after", seen.make_config(at_10=0xFD00_0000)),
        "device.config-space",
        "BAR 0 (offset 0x10): 0xfe000000 -> 0xfd000000",
    ),
    (
        "other-device",
        config(FUNCTION, "after", seen.make_config(at_00=0x10D3_8086)),
        "device.config-space",
        "vendor and device id",
    ),
    (
        "bus-renumbered",
        config(PORT, "after", seen.make_config(is_bridge=True, at_18=0x0002_0200)),
        "device.config-space",
        "bus numbers",
    ),
    (
        "no-master-afterwards",
        config(FUNCTION, "after", seen.make_config(at_04=0x0010_0503)),
        "device.config-space",
        "bus master",
    ),
    (
        "no-master-for-a-while",
        events(
            seen.make_event(qemu_trace.CONFIG_WRITE, where=PORT, offset=4, value=0x0503),
        ),
        "device.config-space",
        "switched off 1 times, first at +1000 ms",
    ),
    (
        "asleep-afterwards",
        config(FUNCTION, "after", seen.make_config(at_84=3)),
        "device.config-space",
        "power state",
    ),
]


@pytest.mark.parametrize(
    ("change", "check_id", "word"), [row[1:] for row in RED], ids=[row[0] for row in RED]
)
def test_what_breaks_a_kept_device_is_fail(change: Spoil, check_id: str, word: str) -> None:
    check = check_of(check_id, change(GOOD))
    assert check.status is Outcome.FAIL, check.reason
    assert word in check.reason


@pytest.mark.parametrize("check_id", seen.CHECKS)
def test_something_else_than_the_watched_is_no_fail(check_id: str) -> None:
    spoilt = events(
        seen.make_event(qemu_trace.RESET, note="nvme"),
        seen.make_event(qemu_trace.SOFT_RESET, note=qemu_trace.NVME_RESET),
        seen.make_event(qemu_trace.POWER, where="0000:00:03.0", value=3),
        seen.make_event(qemu_trace.CONFIG_WRITE, where=FUNCTION, offset=4, value=0x0507),
        # the width of a write is not in the trace: one byte of the interrupt line
        seen.make_event(qemu_trace.CONFIG_WRITE, where=PORT, offset=0x3C, value=0xFF),
    )(GOOD)
    assert check_of(check_id, spoilt).status is Outcome.PASS


def test_lost_entry_is_fail_though_the_kernel_agrees() -> None:
    gone = both_views("after", (), translation="blocked", domain_id=None, top=0, levels=0, access=0)
    check = check_of("iommu.mappings", gone(GOOD))
    assert check.status is Outcome.FAIL
    # and though it had nothing to say at all
    without = spoil(
        GOOD,
        mappings=tuple(
            each
            for each in iommu_of(gone(GOOD)).mappings
            if (each.view, each.moment) != ("inside", "after")
        ),
    )
    assert check_of("iommu.mappings", without).status is Outcome.FAIL


def test_guest_that_never_went_on_does_not_hide_what_the_device_did() -> None:
    lost = make.with_hop(GOOD, resumed_ns={})
    for check_id in seen.CHECKS:
        assert check_of(check_id, lost).status is Outcome.PASS
    off = samples(lambda each: replace(each, gsts=OFF), 6000, 6100)(lost)
    assert check_of("iommu.translation", off).status is Outcome.FAIL


# --- not known


def watch(**changes: object) -> Spoil:
    def apply(evidence: Evidence) -> Evidence:
        old = iommu_of(evidence).watch
        assert old is not None
        return spoil(evidence, watch=replace(old, **changes))

    return apply


BLIND = [
    ("began-late", watch(began_ns=seen.base(1) + 1500 * MS), "did not cover"),
    ("ended-early", watch(ended_ns=seen.base(1) + 4500 * MS), "did not cover"),
    ("no-trace", watch(trace_lines=0), "trace is empty"),
    ("no-beat", watch(beats_ns=(0, 0, 0)), "was not alive"),
    (
        "trace-ended",
        watch(beats_ns=(seen.base(1) + 500 * MS, seen.base(1) + 4500 * MS, MS)),
        "was not alive",
    ),
    (
        "trace-began-late",
        watch(beats_ns=(seen.base(1) + 1500 * MS, seen.base(1) + 7500 * MS, MS)),
        "was not alive",
    ),
    (
        "trace-stood-still",
        watch(beats_ns=(seen.base(1) + 500 * MS, seen.base(1) + 7500 * MS, 2100 * MS)),
        "showed no life for 2.10 s",
    ),
]


@pytest.mark.parametrize("check_id", seen.CHECKS)
@pytest.mark.parametrize(("change", "word"), [row[1:] for row in BLIND], ids=[r[0] for r in BLIND])
def test_what_nobody_looked_at_is_error_not_pass(change: Spoil, word: str, check_id: str) -> None:
    check = check_of(check_id, change(GOOD))
    assert check.status is Outcome.ERROR
    assert word in check.reason


def with_hole(from_ms: int, to_ms: int) -> Evidence:
    """Samples with a hole; nothing but the samples themselves tells of it."""
    at = range(seen.base(1) + from_ms * MS, seen.base(1) + to_ms * MS)
    kept = tuple(each for each in seen.make_samples() if each.host_ns not in at)
    return watch(samples=len(kept))(spoil(GOOD, samples=kept))


@pytest.mark.parametrize("check_id", seen.CHECKS)
@pytest.mark.parametrize(
    ("from_ms", "to_ms", "hole"),
    [(2000, 3100, "1.12 s"), (5500, 7499, "")],
    ids=["in-the-blackout", "after-it"],
)
def test_hole_in_the_sampling_counts_where_there_are_only_samples(
    check_id: str, from_ms: int, to_ms: int, hole: str
) -> None:
    check = check_of(check_id, with_hole(from_ms, to_ms))
    if hole and check_id in ("iommu.translation", "iommu.mappings"):
        assert (check.status, check.observed) == (Outcome.ERROR, hole)
    else:
        assert check.status is Outcome.PASS
    assert check_of(check_id, with_hole(2000, 2900)).status is Outcome.PASS


@pytest.mark.parametrize("check_id", seen.CHECKS)
def test_samples_that_were_taken_and_are_not_there_are_an_error(check_id: str) -> None:
    check = check_of(check_id, spoil(GOOD, samples=seen.make_samples()[:3]))
    assert check.status is Outcome.ERROR
    assert "3 of 350 samples" in check.reason


def test_tables_that_were_never_compared_are_an_error() -> None:
    for compared in ({}, {seen.FUNCTION: 0}, {"0000:02:00.0": 9}):
        check = check_of("iommu.mappings", watch(compared=compared)(GOOD))
        assert check.status is Outcome.ERROR
        assert "compared at no time" in check.reason
    older = watch(compared=None, beats_ns=None)(GOOD)
    assert check_of("iommu.mappings", older).status is Outcome.PASS


UNKNOWN: list[tuple[str, Spoil, str, str]] = [
    ("no-samples", lambda e: spoil(e, samples=()), "iommu.translation", "no sample"),
    ("no-samples-of-faults", lambda e: spoil(e, samples=()), "iommu.faults", "no sample"),
    ("no-entries", lambda e: spoil(e, bindings=()), "iommu.translation", "never sampled"),
    ("no-walks", lambda e: spoil(e, mappings=()), "iommu.mappings", "no mappings as seen"),
    (
        "no-inside-view",
        lambda e: spoil(e, mappings=tuple(m for m in iommu_of(e).mappings if m.view != "inside")),
        "iommu.mappings",
        "as seen from inside, before",
    ),
    (
        "nothing-mapped",
        lambda e: both_views("after", ())(both_views("before", ())(e)),
        "iommu.mappings",
        "nothing was mapped",
    ),
    (
        "broken-tables-before",
        mapping("outside", "before", faults=("loop at 0x1",)),
        "iommu.mappings",
        "loop at 0x1",
    ),
    (
        "fault-before-the-update",
        samples(lambda each: replace(each, fsts=2), 0, 9000),
        "iommu.faults",
        "pending before the update",
    ),
    ("no-configs", lambda e: spoil(e, configs=()), "device.config-space", "was not seen before"),
    ("no-configs-reset", lambda e: spoil(e, configs=()), "device.no-reset", "was not seen"),
    (
        "nobody-answers",
        config(FUNCTION, "before", b"\xff" * 256),
        "device.config-space",
        "no function answers",
    ),
    (
        "never-a-master",
        lambda e: config(FUNCTION, "after", seen.make_config(at_04=0x0010_0503))(
            config(FUNCTION, "before", seen.make_config(at_04=0x0010_0503))(e)
        ),
        "device.config-space",
        "could not do DMA",
    ),
]


@pytest.mark.parametrize(
    ("change", "check_id", "word"), [row[1:] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN]
)
def test_what_cannot_be_told_is_error(change: Spoil, check_id: str, word: str) -> None:
    check = check_of(check_id, change(GOOD))
    assert check.status is Outcome.ERROR
    assert word in check.reason


def test_one_altered_byte_of_stored_mappings_is_fail() -> None:
    for view, moment in (("outside", "before"), ("outside", "after"), ("inside", "after")):
        facts = next(
            each for each in iommu_of(GOOD).mappings if (each.view, each.moment) == (view, moment)
        )
        # a byte of each field: IOVA, physical address, size, access
        for position in (1, 9, 17, 24):
            raw = make.flip(facts.runs, position, 1 if position == 24 else 6)
            spoilt = spoil(
                GOOD,
                mappings=tuple(
                    replace(each, runs=raw) if each is facts else each
                    for each in iommu_of(GOOD).mappings
                ),
            )
            check = check_of("iommu.mappings", spoilt)
            assert check.status is Outcome.FAIL, (view, moment, position)
            assert "evidence altered" in check.reason


# --- an AMD unit


def amd(evidence: Evidence, gsts: int = 0x1F, fsts: int = 0x18) -> Evidence:
    """The same hop, as an AMD unit shows it: the view inside knows no tables."""
    iommu = iommu_of(evidence)
    assert iommu.watch is not None
    mappings = tuple(
        replace(
            each,
            translation="host",
            top=each.top if each.view == "outside" else 0,
            levels=each.levels if each.view == "outside" else 0,
            domain_id=each.domain_id if each.view == "outside" else None,
        )
        for each in iommu.mappings
    )
    return spoil(
        evidence,
        watch=replace(iommu.watch, unit="amd"),
        samples=tuple(replace(each, gsts=gsts, fsts=fsts, rtaddr=0x1FF) for each in iommu.samples),
        bindings=tuple(replace(each, translation="host") for each in iommu.bindings),
        mappings=mappings,
    )


def test_amd_unit_is_judged_by_its_own_registers() -> None:
    for plan in (PLAN, QUIESCE):
        for check_id in ("iommu.translation", "iommu.mappings", "iommu.faults"):
            check = check_of(check_id, amd(GOOD), plan)
            assert check.status is Outcome.PASS, check.reason
    off = check_of("iommu.translation", amd(GOOD, gsts=0x1E))
    assert (off.status, "translation was off in" in off.reason) == (Outcome.FAIL, True)
    overflow = check_of("iommu.faults", amd(GOOD, fsts=0x1A))
    assert (overflow.status, "pending before" in overflow.reason) == (Outcome.ERROR, True)


def test_driver_that_says_otherwise_than_amd_tables_is_fail() -> None:
    check = check_of("iommu.mappings", amd(mapping("inside", "after", MOVED)(GOOD)), QUIESCE)
    assert check.status is Outcome.FAIL
    assert "says otherwise" in check.reason


# --- tier quiesce


def stop(is_clean: bool = True) -> Spoil:
    """What a stock kernel does: bus masters off, translation off; then both on again."""
    halt = seen.make_event(qemu_trace.CONFIG_WRITE, 1500, where=FUNCTION, offset=4, value=0x0503)
    off = seen.make_event(qemu_trace.TRANSLATION, 1600, value=0)
    return lambda evidence: samples(lambda each: replace(each, gsts=OFF), 1600, 4000)(
        spoil(evidence, events=(halt, off) if is_clean else (off, halt))
    )


def test_quiesced_device_may_stop_and_the_report_says_for_how_long() -> None:
    check = check_of("iommu.translation", stop()(GOOD), QUIESCE)
    assert check.status is Outcome.PASS
    assert "DMA was stopped; translation off for 2.40 s" in check.reason
    assert check_of("iommu.translation", stop()(GOOD)).status is Outcome.FAIL
    for check_id in ("iommu.mappings", "iommu.faults", "device.config-space"):
        assert check_of(check_id, stop()(GOOD), QUIESCE).status is Outcome.PASS
    reset = check_of("device.no-reset", stop()(GOOD), QUIESCE)
    assert (reset.status, "on purpose" in reset.reason) == (Outcome.SKIP, True)


def test_quiesced_device_that_could_do_dma_untranslated_is_fail() -> None:
    check = check_of("iommu.translation", stop(is_clean=False)(GOOD), QUIESCE)
    assert check.status is Outcome.FAIL
    assert "could still do DMA when translation went off" in check.reason


@pytest.mark.parametrize(("from_ms", "to_ms", "word"), [(0, 600, "before"), (6000, 9000, "after")])
def test_quiesced_device_needs_translation_at_both_ends(
    from_ms: int, to_ms: int, word: str
) -> None:
    spoilt = samples(lambda each: replace(each, gsts=OFF), from_ms, to_ms)(GOOD)
    check = check_of("iommu.translation", spoilt, QUIESCE)
    assert check.status is Outcome.FAIL
    assert f"off {word} the update" in check.reason


def test_quiesced_device_must_get_its_mappings_back() -> None:
    check = check_of("iommu.mappings", both_views("after", MOVED)(stop()(GOOD)), QUIESCE)
    assert check.status is Outcome.FAIL
    # tables that changed while nothing used them are nobody's business
    assert check_of("iommu.mappings", table(1)(stop()(GOOD)), QUIESCE).status is Outcome.PASS


# --- a guest's own device

#: the guest's memory as evidence_builder lays it, some memory of the VMM's, and where that is later
GUESTS = Run(0, 0x1000 * 4096, make.PAGES * 4096, READ | WRITE, 4096)
FIRMWARE = Run(0xFFFC_0000, 0x4_0000_0000, 0x4_0000, READ, 4096)
NEWER = FIRMWARE._replace(phys=0x5_0000_0000)
OWN = replace(QUIESCE, devices=(DeviceSpec(name="nic0", kind="igb", tier="quiesce", guest="vm0"),))


def walk_own(before: tuple[Run, ...], after: tuple[Run, ...]) -> Check:
    """Judge a guest's own device by these walks, of both views."""
    mappings = tuple(
        seen.make_mapping(1, view, moment, runs)
        for view in ("outside", "inside")
        for moment, runs in (("before", before), ("after", after))
    )
    return check_of("iommu.mappings", spoil(stop()(GOOD), mappings=mappings), OWN)


def test_vmm_may_have_its_firmware_elsewhere() -> None:
    check = walk_own((GUESTS, FIRMWARE), (GUESTS, NEWER))
    assert check.status is Outcome.PASS, check.reason
    assert "2 MiB in 1 runs reach the same memory before and after" in check.reason
    assert "256 KiB beside it, the VMM's firmware and registers, at the same IOVAs" in check.reason
    # the same memory of an agent's device has to stay
    assert check_of("iommu.mappings", both_views("after", MOVED)(GOOD), QUIESCE).status is (
        Outcome.FAIL
    )


HALF = GUESTS.size // 2


@pytest.mark.parametrize(
    "after",
    [
        (GUESTS._replace(iova=0x1000_0000), NEWER),
        (GUESTS._replace(phys=0x6_0000_0000), NEWER),
        (
            GUESTS._replace(size=HALF, phys=GUESTS.phys + HALF),
            GUESTS._replace(size=HALF, iova=HALF),
            NEWER,
        ),
        (GUESTS._replace(access=READ), NEWER),
        (GUESTS._replace(size=GUESTS.size - 4096), NEWER),
        (GUESTS, NEWER._replace(access=READ | WRITE)),
        (GUESTS, NEWER._replace(size=0x1000)),
        (GUESTS, NEWER._replace(phys=GUESTS.phys)),
        (GUESTS,),
    ],
    ids=["iova", "phys", "swapped", "read-only", "page", "rw-rom", "short-rom", "alias", "no-rom"],
)
def test_guests_memory_must_be_mapped_as_before(after: tuple[Run, ...]) -> None:
    check = walk_own((GUESTS, FIRMWARE), after)
    assert check.status is Outcome.FAIL, check.reason
    assert "mappings changed over the update" in check.reason


def walk_amd(outside: tuple[Run, ...], inside: tuple[Run, ...]) -> Check:
    """Judge it with an AMD unit: tables of ``outside``, the guest's memory at ``inside``."""
    mappings = tuple(
        seen.make_mapping(1, view, moment, runs)
        for view, runs in (("outside", outside), ("inside", inside))
        for moment in ("before", "after")
    )
    return check_of("iommu.mappings", amd(spoil(stop()(GOOD), mappings=mappings)), OWN)


def test_amd_tables_have_to_lead_to_where_the_guests_memory_lies() -> None:
    # a VMM leaves holes, and makes some of it read-only
    hole = GUESTS.size // 4
    low = GUESTS._replace(size=hole)
    high = GUESTS._replace(iova=2 * hole, phys=GUESTS.phys + 2 * hole, size=2 * hole, access=READ)
    check = walk_amd((low, high, FIRMWARE), (GUESTS,))
    assert check.status is Outcome.PASS, check.reason
    swapped = (low, high._replace(phys=GUESTS.phys + hole), FIRMWARE)
    check = walk_amd(swapped, (GUESTS,))
    assert check.status is Outcome.FAIL
    assert "says otherwise than its tables" in check.reason
    short = walk_amd((low, high), (GUESTS._replace(size=3 * hole),))
    assert short.status is Outcome.FAIL


def test_device_that_reached_nothing_of_its_guest_proves_nothing() -> None:
    assert walk_own((FIRMWARE,), (NEWER,)).status is Outcome.ERROR


def test_guest_whose_memory_was_not_found_proves_nothing() -> None:
    memory = replace(GOOD.hops[0].memory[0], pfns_after=None)
    check = check_of("iommu.mappings", make.with_hop(stop()(GOOD), memory=(memory,)), OWN)
    assert check.status is Outcome.ERROR
    assert "where its memory lies" in check.reason


def test_runs_are_cut_where_memory_of_the_guest_begins_and_ends() -> None:
    frames = struct.pack("<4Q", 7, 0, 3, 4)
    ranges = Ranges.of_frames(frames)
    assert (ranges.starts, ranges.ends) == ((0x3000, 0x7000), (0x5000, 0x8000))
    run = Run(0x100000, 0x2000, 0x7000, READ, 4096)
    assert [(inside, each.iova, each.phys, each.size) for inside, each in ranges.cut(run)] == [
        (False, 0x100000, 0x2000, 0x1000),
        (True, 0x101000, 0x3000, 0x2000),
        (False, 0x103000, 0x5000, 0x2000),
        (True, 0x105000, 0x7000, 0x1000),
        (False, 0x106000, 0x8000, 0x1000),
    ]
