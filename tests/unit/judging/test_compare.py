# SPDX-License-Identifier: Apache-2.0
"""Tables, gaps and clocks compared, from nothing at all to a million pages."""

from __future__ import annotations

import random
import time
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from liveupdate.judging.clockfit import find_disagreement, fit_clock, fit_rate, fit_slope
from liveupdate.judging.compare import (
    Asked,
    Gap,
    compare_words,
    count_distinct,
    count_zero,
    first_regress,
    gap_over,
    longest_silence,
    network_gap,
    storage_gap,
    tick_changes,
    vcpu_gap,
)
from liveupdate.model.evidence import AgentPing, Echo, Tick
from tests.support import evidence_builder as make
from tests.support.evidence_builder import MS, SECOND

BASE = 100 * SECOND
PAUSED = BASE + make.PAUSED_NS
RESUMED = BASE + make.RESUMED_NS


def words(*values: int) -> bytes:
    return array("Q", values).tobytes()


# --- tables


def test_equal_tables_have_no_difference() -> None:
    diff = compare_words(words(1, 2), words(1, 2))
    assert (diff.pages, diff.changed, diff.first, diff.ranges) == (2, 0, None, ())


def test_ranges_are_inclusive_and_counted() -> None:
    diff = compare_words(words(0, 1, 2, 3, 4, 5), words(0, 9, 9, 3, 9, 5))
    assert (diff.changed, diff.first, diff.ranges) == (3, 1, ((1, 2), (4, 4)))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=200), st.data())
def test_exactly_the_changed_pages_are_found(values: list[int], data: st.DataObject) -> None:
    pages = data.draw(st.sets(st.integers(0, max(len(values) - 1, 0)), max_size=len(values)))
    changed = [value ^ 1 if page in pages else value for page, value in enumerate(values)]
    diff = compare_words(words(*values), words(*changed))
    assert diff.changed == len(pages)
    found = {page for first, last in diff.ranges for page in range(first, last + 1)}
    assert found <= pages and (len(diff.ranges) == 64 or found == pages)
    assert diff.first == min(pages, default=None)


@pytest.mark.parametrize("sizes", [(8, 16), (7, 7)])
def test_tables_that_do_not_fit_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        compare_words(bytes(sizes[0]), bytes(sizes[1]))


def test_a_million_pages_take_no_time_worth_mentioning() -> None:
    table = random.Random(1).randbytes(8 << 20)
    for after, changed in (
        (table, 0),
        (make.flip(table, 8 * 777_777), 1),
        (bytes(8 << 20), 1 << 20),
    ):
        began = time.process_time()
        diff = compare_words(table, after)
        assert diff.changed == changed
        # the worst case, all pages differ, takes some 0.2 s
        assert time.process_time() - began < 3.0


def test_counts() -> None:
    assert count_distinct(words(1, 1, 2)) == 2
    assert count_zero(words(0, 1, 0)) == 2
    assert count_distinct(b"") == count_zero(b"") == 0


# --- gaps


def test_vcpu_gap_is_between_the_last_tick_before_and_the_first_after() -> None:
    gap = vcpu_gap(make.make_ticks(), PAUSED, RESUMED)
    assert gap == Gap(began_ns=BASE + 992 * MS, ended_ns=RESUMED + 2 * MS)
    assert gap.length_ns == 4010 * MS


def test_gap_does_not_care_whether_still_readings_were_kept() -> None:
    """A watcher may keep every reading, or only those that moved."""
    ticks = make.make_ticks()
    last = next(tick for tick in reversed(ticks) if tick.host_ns < PAUSED)
    still = tuple(
        Tick(
            host_ns=at,
            boot=last.boot,
            seq=last.seq,
            tsc=last.tsc,
            monotonic_ns=last.monotonic_ns,
            boottime_ns=last.boottime_ns,
            realtime_ns=last.realtime_ns,
        )
        for at in range(PAUSED, RESUMED, 5 * MS)
    )
    assert vcpu_gap((*still, *ticks), PAUSED, RESUMED) == vcpu_gap(ticks, PAUSED, RESUMED)


@pytest.mark.parametrize("late_ns", [0, 300 * MS])
def test_gap_is_found_although_the_messages_came_late(late_ns: int) -> None:
    gap = vcpu_gap(make.make_ticks(), PAUSED + late_ns, RESUMED + late_ns)
    assert gap is not None and gap.length_ns == 4010 * MS


def test_a_longer_stall_elsewhere_is_not_the_gap() -> None:
    times = [BASE, BASE + 8 * SECOND, BASE + 9 * SECOND, BASE + 10 * SECOND, BASE + 30 * SECOND]
    gap = gap_over(times, BASE + 8 * SECOND + MS, BASE + 9 * SECOND - MS)
    assert gap == Gap(began_ns=BASE + 8 * SECOND, ended_ns=BASE + 9 * SECOND)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_give_no_gap(count: int) -> None:
    assert vcpu_gap(make.make_ticks()[:count], PAUSED, RESUMED) is None
    assert network_gap(make.make_echoes()[:count], PAUSED, RESUMED) is None
    assert storage_gap(make.make_journal()[:count], PAUSED, RESUMED) is None
    assert gap_over([1, 2], None, None) is None


def test_guest_that_never_came_back_has_no_gap() -> None:
    before = [tick for tick in make.make_ticks() if tick.host_ns < PAUSED]
    assert vcpu_gap(before, PAUSED, None) is None


def test_network_and_storage_gaps() -> None:
    network = network_gap(make.make_echoes(), PAUSED, RESUMED)
    storage = storage_gap(make.make_journal(), PAUSED, RESUMED)
    assert network is not None and network.length_ns == 4020 * MS
    assert storage is not None and storage.length_ns == 4050 * MS


def test_first_reading_is_no_change() -> None:
    ticks = make.make_ticks()[:3]
    assert tick_changes((ticks[0], ticks[0], *ticks[1:])) == ticks[1:]


def test_longest_silence_counts_both_ends() -> None:
    assert longest_silence([], 0, 10).length_ns == 10
    assert longest_silence([3, 5], 0, 10) == Gap(began_ns=5, ended_ns=10)
    assert longest_silence([6, -5, 50], 0, 10) == Gap(began_ns=0, ended_ns=6)


def test_silence_is_between_answers_and_a_hole_between_questions() -> None:
    pings = [
        AgentPing(host_ns=at + 4, asked_ns=at, realtime_ns=1 if at in (30, 80) else None)
        for at in range(0, 100, 10)
    ]
    asked = Asked.by_pings(pings)
    assert asked.silence(0, 100) == Gap(began_ns=34, ended_ns=84)
    assert asked.hole_ns(34, 84) == 6
    # a question that was open when the window began was not asked in it
    assert asked.hole_ns(1, 50) == 9
    assert asked.hole_ns(90, 200) == 106
    assert Asked.by_pings([]).hole_ns(0, 100) == 100
    old = Asked.by_pings([replace(ping, asked_ns=None) for ping in pings])
    assert (old.silence(0, 100), old.hole_ns(34, 84)) == (asked.silence(0, 100), 10)
    echo = Echo(seq=1, sent_ns=5, received_ns=9, boot=1)
    assert Asked.by_echoes([echo, replace(echo, sent_ns=7, received_ns=None)]) == Asked(
        spans_ns=((5, 5), (7, 7)), answers_ns=(9,)
    )


def test_first_regress() -> None:
    assert first_regress([1, 2, 2, 5]) is None
    assert first_regress([1, 5, 4, 3]) == (5, 4)


# --- clocks


def clock(
    count: int, *, rate: float = 1.0, noise_ns: int = 0, seed: int = 1
) -> list[tuple[int, int]]:
    """Readings every 10 ms, late by up to ``noise_ns``, one in twenty by 50 ms."""
    late = random.Random(seed)
    readings: list[tuple[int, int]] = []
    host = 0
    for at in range(count):
        lateness = late.randrange(noise_ns + 1) + (50 * MS if noise_ns and at % 20 == 7 else 0)
        # one thread reads: what was late holds up what comes after
        host = max(host + 1, BASE + at * 10 * MS + lateness)
        readings.append((host, round(at * 10 * MS * rate)))
    return readings


@pytest.mark.parametrize("ppm", [0, 50, -1500, 30_000])
def test_rate_is_found_through_late_readings(ppm: int) -> None:
    for seed in range(5):
        rate = fit_rate(sorted(clock(300, rate=1 + ppm / 1e6, noise_ns=5 * MS, seed=seed)))
        assert rate == pytest.approx(ppm, abs=600)


@pytest.mark.parametrize("count", [0, 1, 9, 30])
def test_rate_of_few_readings_is_not_determinable(count: int) -> None:
    assert fit_rate(clock(count)) is None


def test_clock_that_stood_still_over_the_gap() -> None:
    gap = Gap(began_ns=BASE + 1000 * MS, ended_ns=BASE + 5000 * MS)
    readings = [
        (host + (4000 * MS - 10 * MS if host > gap.began_ns else 0), guest)
        for host, guest in clock(300, noise_ns=2 * MS)
    ]
    change = fit_clock(readings, gap)
    assert change.step_ns == pytest.approx(-3990 * MS, abs=5 * MS)
    assert change.inner_step_ns is not None and abs(change.inner_step_ns) < 20 * MS
    assert change.went_back is None


@pytest.mark.parametrize("step_ns", [SECOND, -SECOND, 30 * SECOND])
@pytest.mark.parametrize("where", [5, 100, 290])
def test_step_outside_the_gap_is_found(step_ns: int, where: int) -> None:
    readings = [
        (host, guest + (step_ns if index >= where else 0))
        for index, (host, guest) in enumerate(clock(300, noise_ns=2 * MS))
    ]
    change = fit_clock(readings, None)
    assert change.inner_step_ns is not None
    # near an edge the medians see half of it at least
    assert abs(change.inner_step_ns) >= abs(step_ns) / 3 or change.went_back is not None
    assert (change.went_back is not None) is (step_ns < 0)


def test_nothing_follows_from_nothing() -> None:
    change = fit_clock([], Gap(began_ns=0, ended_ns=1))
    assert change.step_ns is None and change.inner_step_ns is None
    assert change.went_back is None and change.ppm_after is None


def test_slope_is_robust_and_needs_three_values() -> None:
    assert fit_slope([1.0, 2.0]) is None
    assert fit_slope([10.0, 8.0, 6.0, 4.0, 2.0]) == -2.0
    assert fit_slope([10.0, 8.0, 600.0, 4.0, 2.0]) == pytest.approx(-2.0)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=40))
def test_any_readings_can_be_fitted(readings: list[tuple[int, int]]) -> None:
    guest = [reading[1] for reading in sorted(readings)]
    for gap in (Gap(began_ns=10**11, ended_ns=2 * 10**11), None):
        change = fit_clock(readings, gap)
        assert (change.went_back is None) is (guest == sorted(guest))


@pytest.mark.parametrize(
    ("clock", "lasts"),
    [
        ("tsc", True),
        ("boottime_ns", False),
        ("boottime_ns", True),
        ("realtime_ns", False),
        ("realtime_ns", True),
    ],
)
def test_a_tick_that_was_altered_is_told_from_a_clock_that_was_stepped(
    clock: str, lasts: bool
) -> None:
    ticks = list(make.make_ticks()[:95])
    assert find_disagreement(ticks, None, None) is None
    for number in range(40, 95 if lasts else 41):
        ticks[number] = late(ticks[number], clock)
    found = find_disagreement(ticks, None, None)
    assert found is not None and "moved apart by" in found[0]
    assert found[1] is lasts


def late(tick: Tick, clock: str) -> Tick:
    """A tick whose vCPU was stopped for 400 ms before it read this clock."""
    ahead = 400 * MS * (2 if clock == "tsc" else 1)  # a TSC of 2 GHz
    return replace(tick, **{clock: getattr(tick, clock) + ahead})


@pytest.mark.parametrize("clock", ["tsc", "boottime_ns", "realtime_ns"])
def test_a_tick_that_was_read_late_explains_itself_by_the_silence_around_it(clock: str) -> None:
    ticks = list(make.make_ticks()[:95])
    ticks[40] = late(ticks[40], clock)
    del ticks[41:82]  # a vCPU that is stopped makes no ticks meanwhile
    assert find_disagreement(ticks, None, None) is None
    stepped = [replace(tick, tsc=tick.tsc + 10**12) for tick in ticks[41:]]
    found = find_disagreement([*ticks[:41], *stepped], None, None)
    assert found is not None and "the TSC and the monotonic clock moved apart" in found[0]
    too_short = [*ticks[:41], replace(ticks[41], host_ns=ticks[40].host_ns + 10 * MS), *ticks[42:]]
    assert find_disagreement(too_short, None, None) is not None
