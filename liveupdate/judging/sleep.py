# SPDX-License-Identifier: Apache-2.0
"""Guests that sleep in S3 over the update: which clocks count the sleep, and how exactly.

Source: Linux 7.3. ``timekeeping_suspend()`` reads the persistent clock, ``timekeeping_resume()``
reads it again, and ``__timekeeping_inject_sleeptime()`` (all in kernel/time/timekeeping.c) adds the
difference to CLOCK_REALTIME and CLOCK_BOOTTIME; CLOCK_MONOTONIC does not count sleep. Only a
difference above zero is added: no clock goes back, and none loses more than the sleep.

The persistent clock of our payload's kernel is its host's CLOCK_REALTIME (``kvm_get_wallclock()``
in arch/x86/kernel/kvmclock.c). The incoming kernel sets that from an RTC when it boots, and
``mach_get_cmos_time()`` (arch/x86/kernel/rtc.c) reads an RTC in whole seconds. docs/judging.md
derives from this that a guest gains at most 1 s.
"""

from __future__ import annotations

from liveupdate.judging.context import GuestHop
from liveupdate.model import slots

#: clocks of a tick to which Linux adds the time asleep
SLEEP_CLOCKS = frozenset({"boottime", "realtime"})
#: what such a clock may gain over a sleep: the second to which an RTC sets its host's clock
RTC_SECOND_NS = 1_000_000_000


def has_slept(at: GuestHop) -> bool | None:
    """Say whether a guest slept over a hop, as its VMM reported.

    :returns: None when it had to sleep and the evidence of none of its devices says whether it did.
    """
    traces = [at.context.device(at.hop, name) for name in _devices(at)]
    uses = [trace.facts.use if trace and trace.facts else None for trace in traces]
    if any(use is not None and use.asleep_ns is not None for use in uses):
        return True
    return None if None in uses else False


def sleep_files(at: GuestHop) -> tuple[str, ...]:
    """Return the files of the run directory that say whether a guest slept."""
    return tuple(slots.DEVICE.path(at.hop, name) for name in _devices(at))


def _devices(at: GuestHop) -> list[str]:
    """Name the devices that a guest has of its own: only a guest with one is sent to sleep."""
    return [each.name for each in at.context.plan.devices if each.guest == at.guest.name]
