# SPDX-License-Identifier: Apache-2.0
"""A guest runs again whether its clock could be carried over the blackout or not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from liveupdate.agent.guest import kvm_clock
from liveupdate.agent.guest.guests import Guest
from liveupdate.agent.guest.kvm_clock import SavedClock
from liveupdate.agent.guest.spec import GuestSpec

CLOCK = {"clock_ns": 5, "tsc": 10, "khz": 2_000_000}


def make_guest(told: list[tuple[str, dict[str, Any]]], calls: list[str]) -> Guest:
    spec = GuestSpec({"name": "vm0", "index": 0, "memory_bytes": 256 << 20})
    none = cast("Any", None)
    guest = Guest(spec, none, none, lambda name, data: told.append((name, data)), none)
    guest.vmm = cast("Any", SimpleNamespace(cont=lambda: calls.append("cont"), pid=1))
    return guest


def test_vcpus_run_even_if_the_vmm_cannot_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_vmm: object, _saved: object) -> int:
        raise PermissionError(1, "ptrace(0x4206, 1): Operation not permitted")

    monkeypatch.setattr(kvm_clock, "continue_with", refuse)
    told: list[tuple[str, dict[str, Any]]] = []
    calls: list[str] = []
    guest = make_guest(told, calls)
    guest.clock = SavedClock(CLOCK)
    guest._go_on()
    assert calls == ["cont"]
    assert [name for name, _ in told] == ["clock-carried"]
    assert "not permitted" in told[0][1]["error"]


def test_clock_that_is_to_stand_still_is_left_to_the_vmm() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    calls: list[str] = []
    make_guest(told, calls)._go_on()
    assert calls == ["cont"] and told == []
