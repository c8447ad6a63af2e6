# SPDX-License-Identifier: Apache-2.0
"""A guest's clock against the host's: steps, steps back, and rate error.

Pure. A reading is late by up to one sampling interval, sometimes by much more when the control host
was busy, and always in the same direction; so medians and a median slope are used, which a quarter
of bad readings does not move. Times in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from liveupdate.core.units import format_ns
from liveupdate.judging.compare import Gap
from liveupdate.model.evidence import Tick

#: readings (host, guest)
Reading = tuple[int, int]

#: readings on each side of a suspected step
_SIDE = 8
#: by which two clocks of a guest may differ between two ticks, in ns: a payload that has to wait
#: reads one of them later than another
_CLOCKS_NS = 100_000_000
_BESIDE_MONOTONIC = {
    "tsc": "the TSC",
    "boottime_ns": "the boottime clock",
    "realtime_ns": "the realtime clock",
}
#: more ticks than a payload makes: in a time, and beyond that
_TICK_NS, _TICKS_MORE = 500_000, 20
#: fewer readings, or a shorter span, give no rate worth a number
_MIN_RATE_READINGS = 10
_MIN_RATE_SPAN_NS = 400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockChange:
    """How one clock changed over an update. ``None``: too few readings."""

    #: jump of (guest - host) over the gap; minus the gap's length when the clock stood still in it
    step_ns: int | None
    #: largest jump of (guest - host) outside the gap, signed
    inner_step_ns: int | None
    #: first step back of the guest's own readings: (value, smaller value after it)
    went_back: tuple[int, int] | None
    #: rate error against the host's clock, parts per million
    ppm_before: float | None
    ppm_after: float | None


def fit_clock(readings: Sequence[Reading], gap: Gap | None) -> ClockChange:
    """Compare a guest's clock with the host's over an update.

    :param readings: (host, guest), at most one per value of the guest's clock.
    :param gap: the interval in which the guest did not run; ``None``: there was none, everything
        is "after".
    """
    ordered = sorted(readings)
    before = [reading for reading in ordered if gap and reading[0] <= gap.began_ns]
    after = [reading for reading in ordered if not gap or reading[0] >= gap.ended_ns]
    steps = [step for step in (_inner_step(before), _inner_step(after)) if step is not None]
    back = next(
        ((old[1], new[1]) for old, new in pairwise(ordered) if new[1] < old[1]),
        None,
    )
    return ClockChange(
        step_ns=_step(before, after),
        inner_step_ns=max(steps, key=abs) if steps else None,
        went_back=back,
        ppm_before=fit_rate(before),
        ppm_after=fit_rate(after),
    )


def _median(values: Sequence[float]) -> float:
    from statistics import median  # 10 ms, needed by a judge only

    return median(values)


def _offsets(readings: Sequence[Reading]) -> list[int]:
    return [guest - host for host, guest in readings]


def _step(before: Sequence[Reading], after: Sequence[Reading]) -> int | None:
    if not before or not after:
        return None
    return round(_median(_offsets(after[:_SIDE])) - _median(_offsets(before[-_SIDE:])))


def _inner_step(readings: Sequence[Reading]) -> int | None:
    """Find the largest jump that lasts: the median of some readings before against some after."""
    side = min(_SIDE, len(readings) // 2)
    if not side:
        return None
    from statistics import median

    offsets = _offsets(readings)
    # of the readings from each one on: each is "after" once and "before" once
    medians = [median(offsets[at : at + side]) for at in range(len(offsets) - side + 1)]
    jumps = [round(new - old) for old, new in zip(medians, medians[side:], strict=False)]
    return max(jumps, key=abs)


def fit_rate(readings: Sequence[Reading]) -> float | None:
    """Fit the rate error in parts per million: median slope over pairs half the window apart."""
    if len(readings) < _MIN_RATE_READINGS:
        return None
    if readings[-1][0] - readings[0][0] < _MIN_RATE_SPAN_NS:
        return None
    half = len(readings) // 2
    slopes = [
        ((new[1] - new[0]) - (old[1] - old[0])) / (new[0] - old[0])
        for old, new in zip(readings, readings[half:], strict=False)
        if new[0] > old[0]
    ]
    return _median(slopes) * 1e6 if slopes else None


def fit_slope(values: Sequence[float]) -> float | None:
    """Fit the change per step of an evenly spaced series (Theil and Sen); needs 3 values."""
    if len(values) < 3:
        return None
    slopes = [
        (values[late] - values[early]) / (late - early)
        for early in range(len(values))
        for late in range(early + 1, len(values))
    ]
    return _median(slopes)


def _has_restarted(old: Tick, new: Tick, rate: float, over: Sequence[tuple[Tick, Tick]]) -> bool:
    """Say whether a TSC counts from zero since some moment of the blackout.

    :param rate: cycles per ns of the guest's monotonic clock.
    :param over: the pairs of ticks that the blackout lies between.
    """
    return (old, new) in over and new.tsc <= rate * (new.host_ns - old.host_ns)


def find_disagreement(
    ticks: Sequence[Tick],
    paused_ns: int | None,
    resumed_ns: int | None,
    tsc_restarts: bool = False,
) -> tuple[str, bool] | None:
    """Say where a guest's clocks disagree among each other, and whether that lasts; None: nowhere.

    A tick has all of them from about one moment, so that a single reading shows it, however late it
    is seen. A payload whose vCPU is stopped between two of its reads has one tick that disagrees
    with both neighbours, and these agree: that does not last, and is no fault of the clocks. It is
    left alone when the guest made no tick for as long, and said when it did. Over the blackout only
    the TSC's direction is compared.

    :param tsc_restarts: whether the TSC may count from zero again after the blackout.
    """
    pairs: list[tuple[Tick, Tick]] = []
    over: list[tuple[Tick, Tick]] = []
    for old, new in pairwise(ticks):
        if new.seq < old.seq:
            return f"the tick count went back from {old.seq} to {new.seq}", True
        if (
            paused_ns is None
            or resumed_ns is None
            or new.host_ns < paused_ns
            or old.host_ns > resumed_ns
        ):
            pairs.append((old, new))
        else:
            over.append((old, new))
    rates = [
        (new.tsc - old.tsc) / (new.monotonic_ns - old.monotonic_ns)
        for old, new in pairs
        if new.monotonic_ns != old.monotonic_ns
    ]
    usual = _median(rates) if rates else 0.0

    for old, new in (*pairs, *over):
        if new.tsc < old.tsc and not (tsc_restarts and _has_restarted(old, new, usual, over)):
            return f"the TSC went back from {old.tsc} to {new.tsc}", True

    def gained(clock: str, old: Tick, new: Tick) -> int:
        more = getattr(new, clock) - getattr(old, clock)
        if clock == "tsc":
            more = round(more / usual) if usual else new.monotonic_ns - old.monotonic_ns
        return int(more) - (new.monotonic_ns - old.monotonic_ns)

    read_late: tuple[Tick, Tick] | None = None
    for (old, new), later in zip_longest(pairs, pairs[1:]):
        if read_late is not None and old is read_late[1]:
            old = read_late[0]
        ran_ns = new.monotonic_ns - old.monotonic_ns
        if new.seq - old.seq > ran_ns / _TICK_NS + _TICKS_MORE:
            return f"there were {new.seq - old.seq} ticks in {format_ns(ran_ns)}", True
        for clock, name in _BESIDE_MONOTONIC.items():
            apart_ns = gained(clock, old, new)
            if abs(apart_ns) > _CLOCKS_NS:
                follows = later is not None and later[0] is new
                lasts = follows and abs(gained(clock, old, later[1])) > _CLOCKS_NS
                if follows and not lasts and later[1].host_ns - old.host_ns >= abs(apart_ns):
                    read_late = (old, new)
                    continue
                text = f"{name} and the monotonic clock moved apart by {format_ns(abs(apart_ns))}"
                return f"{text} outside the blackout", lasts
    return None
