# SPDX-License-Identifier: Apache-2.0
"""Faults of guests, their VMMs and their disks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.units import MIB
from liveupdate.faults.base import (
    CALL_S,
    HopChange,
    Later,
    Moment,
    Part,
    ask_agent,
    fails,
    fault,
    planned_fault,
    struck,
)
from liveupdate.model.evidence import Struck
from liveupdate.model.plan import TSC_KHZ_SKEWED
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    from liveupdate.formats.tickpage import TickPage
    from liveupdate.run.testbed import Testbed

CLOCK_JUMP_NS = 30_000_000_000
"""How far ``clock-jump`` steps the guest's wall clock."""
STILL_S = 1.0
"""How long no tick is to come before ``guest-dead-timer`` says that the timers have stopped."""


@fault(
    "kill-vmm",
    "the VMM is killed after the guest was resumed",
    at=Moment.RESUMED,
    expect=fails("guest.liveness"),
)
def kill_vmm(bed: Testbed) -> Later:
    """Let the agent kill the VMM after the resume."""
    return ask_agent(bed, "kill-vmm", guest=bed.first_guest.spec.name)


@fault(
    "guest-dead-timer",
    "the guest's timers stop while its VMM says running",
    at=Moment.RESUMED,
    needs={Part.PAYLOAD},
    expect=fails("guest.liveness"),
)
def guest_dead_timer(bed: Testbed) -> Struck:
    """Let the payload stop the guest's timers after the resume."""
    first = _read_tick(bed).seq

    def go_on() -> int | None:
        seq = _read_tick(bed).seq
        return seq if seq != first else None

    def stand_still() -> int | None:
        seq = _read_tick(bed).seq
        time.sleep(STILL_S)
        return seq if _read_tick(bed).seq == seq else None

    later = wait_until(go_on, Deadline.after(CALL_S, "the guest to tick before its timers stop"))
    _command(bed, cmd="dead-timer")
    last = wait_until(stand_still, Deadline.after(CALL_S, "the guest's ticks to stop"))
    before, after = f"tick {first}, then {later}", f"tick {last}, the same {STILL_S:g} s later"
    return struck("the guest's timers", _tick_page(bed), before, after, view=_view(bed))


@fault(
    "guest-reboot",
    "the guest is reset after it was resumed",
    at=Moment.RESUMED,
    expect=fails("guest.liveness"),
)
def guest_reboot(bed: Testbed) -> Later:
    """Let the agent reset the guest after the resume."""
    return ask_agent(bed, "reset-guest", guest=bed.first_guest.spec.name)


@fault(
    "guest-disk-lost",
    "the guest's disk is emptied during the blackout",
    at=Moment.BLACKOUT,
    needs={Capability.PROCESS, Part.PAYLOAD},
    expect=fails("guest.storage"),
)
def guest_disk_lost(bed: Testbed) -> Struck:
    """Overwrite the guest's journal disk with zeros, from outside."""
    disk = bed.own_machine.disks[bed.first_guest.spec.name]

    def look() -> str:
        with disk.open("rb") as stream:
            pieces = iter(lambda: stream.read(MIB), b"")
            return f"{sum(len(piece) - piece.count(0) for piece in pieces)} bytes that are not zero"

    before = look()
    with disk.open("r+b") as stream:
        for offset in range(0, disk.stat().st_size, MIB):
            stream.seek(offset)
            stream.write(bytes(MIB))
    return struck("the guest's disk", str(disk), before, look())


@fault(
    "clock-jump",
    "the guest's wall clock is stepped by 30 s after the update",
    at=Moment.RESUMED,
    needs={Capability.CLOCK, Part.PAYLOAD},
    expect=fails("guest.clock"),
)
def clock_jump(bed: Testbed) -> Struck:
    """Let the payload step the guest's CLOCK_REALTIME."""

    def look() -> int:
        tick = _read_tick(bed)
        return tick.realtime_ns - tick.boottime_ns

    def see_step() -> int | None:
        ahead = look()
        return ahead if abs(ahead - before) > CLOCK_JUMP_NS // 2 else None

    before = look()
    _command(bed, cmd="clock-jump", ns=str(CLOCK_JUMP_NS))
    after = wait_until(see_step, Deadline.after(CALL_S, "the guest's wall clock to be stepped"))
    what = "CLOCK_REALTIME of the guest, less CLOCK_BOOTTIME"
    return struck(what, _tick_page(bed), f"{before} ns", f"{after} ns", view=_view(bed))


tsc_skew = planned_fault(
    "tsc-skew",
    "no calibration handover, and the incoming kernel believes in a TSC that is 3 % too fast",
    HopChange(
        drop=("tsc_early_khz", "tsc"),
        # without nowatchdog the kernel finds out by the HPET and gives its TSC up
        add=f"tsc_early_khz={TSC_KHZ_SKEWED} setcpuid=tsc_known_freq tsc=nowatchdog",
        calibration=False,
    ),
    needs={Capability.CLOCK},
    expect=fails("guest.clock"),
)


def _command(bed: Testbed, **command: object) -> None:
    args = {"guest": bed.first_guest.spec.name, "command": command}
    bed.call("payload", args, timeout_s=CALL_S)


def _read_tick(bed: Testbed) -> TickPage:
    from liveupdate.formats.tickpage import read_tick

    return read_tick(lambda: bed.read_tick_page(bed.first_guest))


def _tick_page(bed: Testbed) -> str:
    return f"the tick page of {bed.first_guest.spec.name}"


def _view(bed: Testbed) -> str:
    """Say who reads the tick page: the control host, or the host's agent."""
    return "outside" if bed.machine is not None else "inside"
