# SPDX-License-Identifier: Apache-2.0
"""Outcomes, checks, verdicts, exit codes. Values; policy: :mod:`liveupdate.judging.judge`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum


class Outcome(Enum):
    """FAIL: the system under test violated a guarantee. ERROR: the tool could not find out."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"
    ERROR = "ERROR"


_WORST_FIRST = (Outcome.ERROR, Outcome.FAIL, Outcome.PASS, Outcome.SKIP)


def reduce(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst outcome: ERROR before FAIL before PASS before SKIP; ERROR for none at
    all.
    """
    seen = set(outcomes)
    return next((outcome for outcome in _WORST_FIRST if outcome in seen), Outcome.ERROR)


class ExitCode(IntEnum):
    """Exit status of the CLI; stable, documented in README."""

    PASS = 0
    FAIL = 1
    USAGE = 2
    ERROR = 3
    SKIP = 4
    ROLLED_BACK = 5
    TIMEOUT = 124
    CANNOT_JUDGE = 125
    END_BISECT = 128
    SIGINT = 130
    SIGTERM = 143


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One judged claim. ``evidence`` names files of the run directory, relative to it."""

    id: str
    status: Outcome
    reason: str
    observed: str = ""
    expected: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number with its unit, such as ``gap.vcpu`` of guest vm0 in hop 1, in ns."""

    name: str
    value: float
    unit: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge concludes. ``rolled_back`` and ``timed_out`` only choose the exit code."""

    outcome: Outcome
    checks: tuple[Check, ...]
    metrics: tuple[Metric, ...] = ()
    #: one line for people when the outcome is not PASS
    reason: str = ""
    rolled_back: bool = False
    timed_out: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """The exit status of the CLI for this verdict."""
        if self.timed_out:
            return ExitCode.TIMEOUT
        if self.rolled_back:
            return ExitCode.ROLLED_BACK
        return ExitCode[self.outcome.name]
