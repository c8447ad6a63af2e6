# SPDX-License-Identifier: Apache-2.0
"""A guest that does not tick before the update is no guest to update."""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from liveupdate.core.errors import LostMachine
from liveupdate.formats.tickpage import TickPage, encode_tick
from liveupdate.model.scenario import GuestSpec
from liveupdate.run import bringup
from liveupdate.run.observers.ticks import GuestStopped
from liveupdate.run.testbed import GuestHandle, Testbed
from tests.support import evidence_builder


class _Ram:
    """A tick page whose sequence advances by ``step`` with every look, ``torn`` of them torn."""

    def __init__(self, step: int, torn: int = 0) -> None:
        self.looks = 0
        self._seq = 1
        self._step = step
        self._torn = torn

    def read(self, address: int, size_bytes: int) -> bytes:
        assert address == 0x1000
        self.looks += 1
        self._seq += self._step
        page = TickPage(
            lock=0, boot=1, seq=self._seq, tsc=0, monotonic_ns=0, boottime_ns=0, realtime_ns=0,
            seed=0, pattern_pages=0, pattern_bad=0, journal_seq=0, echo_count=0,
        )  # fmt: skip
        whole = encode_tick(page)[:size_bytes]
        self._torn -= 1
        return whole if self._torn < 0 else whole[:-1] + bytes([whole[-1] ^ 1])


def _bed(ram: _Ram, **guest: str) -> Testbed:
    handle = GuestHandle(
        spec=replace(GuestSpec(name="vm0"), **guest),
        index=0,
        ready=SimpleNamespace(tick_gpa=0x2000),  # type: ignore[arg-type]
        pfns=(1).to_bytes(8, "little") * 3,
    )
    machine = SimpleNamespace(ram=ram)
    bed = SimpleNamespace(guests=(handle,), machine=machine)
    bed.read_tick_page = functools.partial(Testbed.read_tick_page, cast(Testbed, bed))
    return cast(Testbed, bed)


class _Agent:
    """Answers ``read_ram`` from a :class:`_Ram`, or not at all."""

    def __init__(self, ram: _Ram, silent: int = 0) -> None:
        self._ram = ram
        self._silent = silent

    def call(self, name: str, args: dict[str, object], _deadline: object) -> dict[str, object]:
        assert (name, args["guest"], args["offset"]) == ("read_ram", "vm0", 0x2000)
        self._silent -= 1
        if self._silent >= 0:
            raise LostMachine("SSH is gone", how="no-answer")
        size = args["bytes"]
        assert isinstance(size, int)
        return {"data": base64.b64encode(self._ram.read(0x1000, size)).decode()}


def _bed_of_a_lab(ram: _Ram, silent: int = 0) -> Testbed:
    bed = _bed(ram)
    bed.machine = None  # type: ignore[misc]
    bed.host = SimpleNamespace(agent=_Agent(ram, silent))
    return bed


def test_ticks_of_a_lab_machines_guest_are_asked_for() -> None:
    ram = _Ram(step=1)
    bringup._check_ticks(_bed_of_a_lab(ram, silent=3))
    assert ram.looks >= 2


def test_dead_timers_on_a_lab_machine_stop_the_bring_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bringup, "_TICKS_S", 0.05)
    for bed in (_bed_of_a_lab(_Ram(step=0)), _bed_of_a_lab(_Ram(step=1), silent=1 << 30)):
        with pytest.raises(GuestStopped, match="'vm0' does not tick any more"):
            bringup._check_ticks(bed)


def test_ticking_guest_is_let_through() -> None:
    ram = _Ram(step=1)
    bringup._check_ticks(_bed(ram))
    assert ram.looks >= 2


def test_guest_with_dead_timers_stops_the_bring_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bringup, "_TICKS_S", 0.05)
    with pytest.raises(GuestStopped, match="'vm0' does not tick any more, at tick 1"):
        bringup._check_ticks(_bed(_Ram(step=0)))


def test_page_found_torn_is_looked_at_again() -> None:
    # read_tick() gives up after 8 copies: a guest lost its CPU within a write
    ram = _Ram(step=1, torn=12)
    bringup._check_ticks(_bed(ram))
    assert ram.looks > 12


def test_users_own_image_has_no_ticks_to_see() -> None:
    ram = _Ram(step=0)
    bringup._check_ticks(_bed(ram, image="disk.qcow2", liveness="agent"))
    assert ram.looks == 0


@pytest.mark.parametrize("change", [{"vcpu_state": False}, {"clock": "continuous"}, {"seed": 7}])
def test_a_saved_host_is_not_loaded_for_guests_that_are_started_otherwise(
    change: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(b"")
    monkeypatch.setattr(bringup, "_resolve_program", lambda _name: program)
    plan, kit = evidence_builder.make_plan(), tmp_path / "kit"
    assert bringup.warm_key(plan, kit) == bringup.warm_key(plan, kit)
    assert bringup.warm_key(replace(plan, **change), kit) != bringup.warm_key(plan, kit)
