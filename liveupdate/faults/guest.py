# SPDX-License-Identifier: Apache-2.0
"""Faults of guests, their VMMs and their disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liveupdate.core.units import MIB
from liveupdate.faults.base import (
    CALL_S,
    HopChange,
    Moment,
    Part,
    ask_agent,
    fails,
    fault,
    planned_fault,
)
from liveupdate.model.plan import TSC_KHZ_SKEWED
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    from liveupdate.run.testbed import Testbed

CLOCK_JUMP_NS = 30_000_000_000
"""How far ``clock-jump`` steps the guest's wall clock."""


@fault(
    "kill-vmm",
    "the VMM is killed after the guest was resumed",
    at=Moment.RESUMED,
    expect=fails("guest.liveness"),
)
def kill_vmm(bed: Testbed) -> None:
    """Let the agent kill the VMM after the resume."""
    ask_agent(bed, "kill-vmm", guest=bed.first_guest.spec.name)


@fault(
    "guest-dead-timer",
    "the guest's timers stop while its VMM says running",
    at=Moment.RESUMED,
    needs={Part.PAYLOAD},
    expect=fails("guest.liveness"),
)
def guest_dead_timer(bed: Testbed) -> None:
    """Let the payload stop the guest's timers after the resume."""
    _command(bed, cmd="dead-timer")


@fault(
    "guest-reboot",
    "the guest is reset after it was resumed",
    at=Moment.RESUMED,
    expect=fails("guest.liveness"),
)
def guest_reboot(bed: Testbed) -> None:
    """Let the agent reset the guest after the resume."""
    ask_agent(bed, "reset-guest", guest=bed.first_guest.spec.name)


@fault(
    "guest-disk-lost",
    "the guest's disk is emptied during the blackout",
    at=Moment.BLACKOUT,
    needs={Capability.PROCESS, Part.PAYLOAD},
    expect=fails("guest.storage"),
)
def guest_disk_lost(bed: Testbed) -> None:
    """Overwrite the guest's journal disk with zeros, from outside."""
    disk = bed.own_machine.disks[bed.first_guest.spec.name]
    with disk.open("r+b") as stream:
        for offset in range(0, disk.stat().st_size, MIB):
            stream.seek(offset)
            stream.write(bytes(MIB))


@fault(
    "clock-jump",
    "the guest's wall clock is stepped by 30 s after the update",
    at=Moment.RESUMED,
    needs={Capability.CLOCK, Part.PAYLOAD},
    expect=fails("guest.clock"),
)
def clock_jump(bed: Testbed) -> None:
    """Let the payload step the guest's CLOCK_REALTIME."""
    _command(bed, cmd="clock-jump", ns=str(CLOCK_JUMP_NS))


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
