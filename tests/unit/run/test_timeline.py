# SPDX-License-Identifier: Apache-2.0
"""Phases and marks from moments: what was not seen is left out, not guessed."""

from __future__ import annotations

from dataclasses import dataclass

from liveupdate.model.evidence import Mark
from liveupdate.run.timeline import GUEST_PHASES, HOST_PHASES, find_moments, marks, phases


@dataclass(frozen=True)
class Event:
    name: str
    at_ns: int
    guest: str = ""


def test_moments_are_the_first_of_each_name_and_guest() -> None:
    events = [
        Event("paused", 5, "vm0"),
        Event("paused", 7, "vm1"),
        Event("paused", 9, "vm0"),
        Event("digests", 6, "vm0"),
        Event("jumping", 8),
    ]
    assert find_moments(events) == {("paused", "vm0"): 5, ("paused", "vm1"): 7, ("jumping", ""): 8}


def test_a_phase_has_two_ends_that_were_seen() -> None:
    moments = {("jump", ""): 1, ("jumping", ""): 4, ("hello", ""): 9, ("retrieved", "vm0"): 12}
    found = {(each.name, each.guest): (each.began_ns, each.ended_ns) for each in phases(
        3, moments, ("vm0", "vm1")
    )}  # fmt: skip
    # one that begins with a moment of the host is each guest's own
    assert found == {("freeze", ""): (1, 4), ("retrieve", "vm0"): (9, 12)}
    assert {each.hop for each in phases(3, moments, ("vm0",))} == {3}


def test_all_phases_are_there_when_all_was_seen() -> None:
    host = {end: number for number, (_, *ends) in enumerate(HOST_PHASES) for end in ends}
    guest = {end: number for number, (_, *ends) in enumerate(GUEST_PHASES) for end in ends}
    moments = {(name, ""): at for name, at in host.items()}
    moments |= {(name, "vm0"): at for name, at in guest.items()}
    names = [each.name for each in phases(1, moments, ("vm0",))]
    assert names == [name for name, *_ in (*HOST_PHASES, *GUEST_PHASES)]


def test_marks_are_the_ends_of_a_guests_blackout() -> None:
    moments = {
        ("paused", "vm0"): 5,
        ("resumed", "vm0"): 9,
        ("paused", "vm1"): 6,
        ("falling-asleep", "vm1"): 2,
    }
    # one that was put to sleep is out from then on, and vm1 was not seen to go on
    assert list(marks(moments, ("vm0", "vm1"))) == [
        Mark(what="paused", guest="vm0", at_ns=5),
        Mark(what="resumed", guest="vm0", at_ns=9),
        Mark(what="paused", guest="vm1", at_ns=2),
    ]
