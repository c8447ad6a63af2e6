# SPDX-License-Identifier: Apache-2.0
"""guest.vcpu-state: KVM knows the same of every vCPU before and after, register by register."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import UNSET

from liveupdate.core.units import format_ns
from liveupdate.formats.kvm_state import CLASSES, LayoutError, decode
from liveupdate.judging.check import Asked, CheckRow
from liveupdate.judging.context import Context, Finding, GuestHop, skipped
from liveupdate.model import slots
from liveupdate.model.vcpu_state import AFTER, BEFORE, VcpuState

#: registers that may differ, and why; the rest of a vCPU's state must not
MAY_DIFFER: Mapping[str, str] = {
    "clock.clock": "the VMM sets kvmclock when vCPUs first run (QEMU hw/i386/kvm/clock.c)",
    "clock.flags": "says how KVM has read the clock",
    "clock.realtime": "the host's own clock",
    "clock.host_tsc": "the host's own TSC",
    "tsc_offset.cycles": "counts from the TSC of the host; the guest's TSC is compared",
    "events.interrupt.shadow": (
        "the VMM does not carry it (QEMU 11.1): an instruction after STI may be interrupted"
    ),
    "lapic.390": "the timer's current count goes on while the vCPU stands still",
    "xsave.mxcsr_mask": "a CPU writes it whenever it saves its state, and loads it from nowhere",
    "msr.8b": "the revision of the host CPU's microcode",
    "msr.40000010": "Hyper-V: run time of the thread that runs the vCPU",
    "msr.40000020": "Hyper-V: a reference clock that goes on",
}
#: a TSC goes on while its vCPU stands still
TSC = "msr.10"
_KHZ = "tsc_khz.khz"
#: how many registers a reason names
_NAMED = 4
#: by how much a TSC's frequency may be off
_TSC_SHARE = 0.01
#: by how much the TSCs of two vCPUs may move against each other, ms
_APART_MS = 1


def judge_vcpus(context: Context) -> Iterator[Finding]:
    """Require the state of each vCPU to be the same when it stopped and before it runs again."""
    if context.plan.vcpu_state is UNSET:
        yield skipped("an earlier version made the run, which did not read it")
        return
    if not context.plan.vcpu_state:
        yield skipped("it was left out (vcpu_state = false)")
        return
    for at in context.reached():
        yield from _judge_guest(at.on(slots.VCPUS))


def _judge_guest(at: GuestHop) -> Iterator[Finding]:
    if at.is_rolled_back:
        yield at.skipped("rolled back, it went on where it was")
        return
    rows = at.trace.vcpus if at.trace else ()
    if at.is_unreadable or not rows:
        yield at.missing("the state of vCPUs")
        return
    if list(rows) != sorted(rows, key=lambda row: row.at_ns):
        yield at.error("the states of vCPUs are not in the order in which they came")
        return
    moments = {moment: [row for row in rows if row.moment == moment] for moment in (BEFORE, AFTER)}
    for moment, found in moments.items():
        numbers = [row.vcpu for row in found]
        if sorted(numbers) != list(range(at.guest.vcpus)):
            if found:
                yield at.error(f"states of vCPUs {numbers} {moment} the update")
            else:
                yield at.missing(f"the state of vCPUs {moment} the update")
            return
    said: list[str] = []
    for before in moments[BEFORE]:
        after = next(row for row in moments[AFTER] if row.vcpu == before.vcpu)
        finding = _judge_vcpu(at, before, after)
        if isinstance(finding, Finding):
            yield finding
        else:
            said.append(finding)
    if apart := _tscs_apart(moments):
        yield at.failed(apart, expected="TSCs of all vCPUs as far apart as before")
    elif said:
        yield at.passed("; ".join(said), said[0])


def _judge_vcpu(at: GuestHop, before: VcpuState, after: VcpuState) -> Finding | str:
    """Compare one vCPU's registers; return what is wrong, or what to say."""
    name = f"vCPU {before.vcpu}"
    span = (at.paused_ns, at.resumed_ns)
    if span[0] is None or span[1] is None:
        return at.on(slots.MARKS).missing("the moments of pause and resume")
    if not span[0] <= before.at_ns <= after.at_ns <= span[1]:
        return at.error(f"{name}: its state was not read between pause and resume")
    lacking = [each for each in CLASSES for row in (before, after) if each not in row.classes]
    if lacking:
        why = before.refused.get(lacking[0]) or after.refused.get(lacking[0]) or "not reported"
        return at.error(f"{name}: {lacking[0]} was not read: {why}")
    try:
        old, new = (decode(row.classes, row.msrs) for row in (before, after))
    except LayoutError as error:
        return at.error(f"{name}: {error}")
    # of XSAVE behind AVX, only words that are not zero are there
    lost = sorted(each for each in old.keys() - new.keys() if not each.startswith("xsave.0x"))
    if lost:
        return at.error(f"{name}: {_list(lost)} known before the update only")
    # a kernel may know more registers than the one before it
    more = {each for each in new.keys() - old.keys() if each.startswith("msr.")}
    known = sorted((old.keys() | new.keys()) - more)
    wrong = [
        f"{each} {old.get(each, 0):#x} → {new.get(each, 0):#x}"
        for each in known
        if old.get(each, 0) != new.get(each, 0) and each != TSC and each not in MAY_DIFFER
    ]
    if not (TSC in old and old[_KHZ]):
        return at.error(f"{name}: its TSC was not read")
    ahead_ns = (new[TSC] - old[TSC]) * 1e6 / old[_KHZ]
    limit_ns = after.at_ns - before.at_ns
    # the VMM keeps the TSC of the moment at which it stopped the vCPU, which was read later
    late_ns = before.at_ns - _pause_began(at, span[0])
    if not -late_ns <= ahead_ns <= limit_ns * (1 + _TSC_SHARE):
        wrong.append(f"the TSC went from {old[TSC]} to {new[TSC]} in {format_ns(limit_ns)}")
    if wrong:
        return at.failed(
            f"{name}: {_list(wrong)}", f"{len(wrong)} registers differ", "no register differs"
        )
    said = f"{name}: {len(known)} registers as before, {len(before.msrs)} of them MSRs"
    if before.refused:
        said += f", {len(before.refused)} that KVM does not tell"
    if more:
        said += f", {len(more)} MSRs that the outgoing KVM does not know"
    return said


def _tscs_apart(moments: Mapping[str, Sequence[VcpuState]]) -> str | None:
    """Say which vCPU's TSC moved against the first one's; None: none did, or it is not known."""
    apart: dict[str, dict[int, int]] = {}
    khz = 0
    for moment, rows in moments.items():
        offsets = {row.vcpu: row.classes.get("tsc_offset") for row in rows}
        first = next(row for row in rows if row.vcpu == 0)
        khz = int.from_bytes(bytes.fromhex(first.classes.get("tsc_khz", "")), "little")
        values = {
            vcpu: int.from_bytes(bytes.fromhex(text), "little")
            for vcpu, text in offsets.items()
            if text is not None
        }
        if len(values) != len(rows) or not khz:
            return None  # said by the comparison of each
        apart[moment] = {vcpu: value - values[0] for vcpu, value in values.items()}
    for vcpu, cycles in apart[BEFORE].items():
        moved = (apart[AFTER][vcpu] - cycles + (1 << 63)) % (1 << 64) - (1 << 63)
        if abs(moved) > khz * _APART_MS:
            ms = moved / khz
            return f"vCPU {vcpu}: its TSC moved by {ms:+.1f} ms against that of vCPU 0"
    return None


def _pause_began(at: GuestHop, paused_ns: int) -> int:
    """Return when the host was told to pause the guest, as far as that is known."""
    facts = at.context.hop(at.hop)
    phases = facts.phases if facts else ()
    began = [
        each.began_ns for each in phases if (each.name, each.guest) == ("pause", at.guest.name)
    ]
    return min([paused_ns, *began])


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _left_out(asked: Asked) -> str | None:
    return None if asked.scenario.vcpu_state else "vcpu_state is false"


CHECKS = (CheckRow(id="guest.vcpu-state", judge=judge_vcpus, skip=_left_out),)
