# SPDX-License-Identifier: Apache-2.0
"""Evidence that contradicts itself, the plan, or what the other hop shows. Pure.

Asked when every check would pass: a check looks at what it needs, and evidence that cannot be true
shows that something was not observed as it is told. Each finding is an ERROR.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

from liveupdate.core.units import PAGE_BYTES
from liveupdate.judging.context import Context, Finding, error_finding
from liveupdate.model import slots
from liveupdate.model.evidence import (
    GuestMemory,
    GuestTrace,
    HopEvidence,
    KernelFacts,
    PageDigests,
    PageFrames,
)
from liveupdate.model.mechanism import AGENT_SESSION, KHO, LUO
from liveupdate.model.plan import Hop, Plan
from liveupdate.model.targets import Capability

#: what comes in from the host or a guest may be stamped this much later than a watch has ended
_LATE_NS = 2_000_000_000
#: what is read before and after the watch is read within this time of it
_FAR_NS = 600_000_000_000
#: how long a look may take: the watch begins and ends with one
_LOOK_NS = 50_000_000
#: more records than a guest writes between the last scan of its journal and the last sample
_RECORDS_MORE = 10_000
#: so many tokens of one session make sense
_TOKENS_MAX = 10_000
_KHZ = range(1, 100_000_000)


def find_contradictions(context: Context) -> list[Finding]:
    """Return an ERROR for each kind of contradiction."""
    told = [*_of_run(context), *_of_hops(context)]
    return [error_finding(f"the evidence contradicts itself: {text}") for text in told]


def find_unproven(context: Context) -> list[Finding]:
    """Return an ERROR when a planned fault did not strike, as far as the evidence shows.

    Without it, what the checks say of the fault would be worth nothing. A plan of an earlier
    version demands no record.
    """
    planned, hops = context.plan.fault, context.plan.hops
    if planned is None or planned.proves is not True or not hops:
        return []
    facts = context.hop(hops[0].number)
    found = [each for each in facts.struck if each.fault == planned.name] if facts else []
    said = f"fault '{planned.name}' was planned, and"
    path = slots.STRUCK.path(hops[0].number)
    if not found:
        return [error_finding(f"{said} no record says that it struck", evidence=(path,))]
    if any(each.before == each.after for each in found):
        return [error_finding(f"{said} what it struck is as it was before", evidence=(path,))]
    return []


def _of_run(context: Context) -> Iterator[str]:
    plan, origin = context.plan, context.evidence.provenance
    if origin is None:
        return
    wanted = {
        "outgoing": plan.images.outgoing.sha256,
        "incoming": plan.images.incoming.sha256,
        "rootfs": plan.images.rootfs_sha256,
    }
    if dict(origin.images) != wanted:
        yield "provenance.json names other images than the plan"
    if origin.accel != plan.machine.accel:
        yield f"the plan says '{plan.machine.accel}', the machine ran under '{origin.accel}'"
    if origin.kvm_enabled not in (None, origin.accel == "kvm"):
        yield f"'{origin.accel}' and query-kvm do not fit"
    is_ours = plan.target_has(Capability.PROCESS)
    if is_ours and (origin.kvm_enabled is None or not origin.qemu_argv or not origin.qemu_version):
        yield "provenance.json does not say what the machine was"
    if is_ours and origin.accel not in ",".join(origin.qemu_argv):
        yield f"QEMU's command line has no '{origin.accel}'"
    if not origin.run_id or not origin.tool_version or not origin.started_utc:
        yield "provenance.json does not say what was run"


def _of_hops(context: Context) -> Iterator[str]:
    plan, hops = context.plan, context.evidence.hops
    if [hop.number for hop in hops] != [hop.number for hop in plan.hops]:
        yield "the hops are not those of the plan"
    for early, late in pairwise(hops):
        if early.after and late.before and early.after.boot_id != late.before.boot_id:
            yield f"hop {late.number} begins in another boot than hop {early.number} ended in"
    wanted = plan.fault.name if plan.fault else None
    if struck := [each for hop in hops for each in hop.struck if each.fault != wanted]:
        yield f"a fault '{struck[0].fault}' struck that was not planned"
    for planned, hop in zip(plan.hops, hops, strict=False):
        where = f"hop {hop.number}"
        append = plan.boot_append if planned is plan.hops[0] else ""
        yield from (f"{where}: {each}" for each in _of_kernels(context, planned, hop, append))
        yield from (f"{where}: {each}" for each in _of_parts(plan, hop))
        for trace in hop.guests:
            yield from (f"{where}, {trace.guest}: {each}" for each in _of_trace(hop, trace))
        yield from (f"{where}: {each}" for each in _of_iommu(plan, hop))
        for memory in hop.memory:
            yield from (
                f"{where}, {memory.guest}: {each}" for each in _of_memory(plan, hop, memory)
            )


def _of_kernels(context: Context, planned: Hop, hop: HopEvidence, append: str) -> Iterator[str]:
    plan = context.plan
    sides = ((hop.before, append, "outgoing"), (hop.after, planned.append, "incoming"))
    for facts, words, which in sides:
        if facts is None:
            continue
        if not facts.boot_id:
            yield f"the {which} kernel has no boot id"
        given = set(facts.cmdline.split())
        missing = [each for each in words.split() if "{" not in each and each not in given]
        if missing and plan.target_has(Capability.PROCESS):
            yield f"the {which} kernel was not started with '{missing[0]}'"
        if KHO in plan.witnesses and facts.kho_found != (facts.generation > 0):
            yield f"generation {facts.generation} and whether KHO data was found do not fit"
        if LUO in plan.witnesses and not facts.liveupdate:
            yield f"the {which} kernel has no /dev/liveupdate"
        yield from _of_memory_counts(plan, facts, which)
        known = (facts.preserved_bytes, facts.scratch_bytes, facts.mem_available_bytes)
        if plan.target_has(Capability.PROCESS) and KHO in plan.witnesses and None in known:
            yield f"the {which} kernel does not say what memory it has"
    is_ours = plan.target_has(Capability.PROCESS)
    if is_ours and KHO in plan.witnesses and hop.after and hop.after.preserved_bytes == 0:
        yield "the incoming kernel has nothing preserved"
    if plan.calibration and hop.before and hop.after and None in (
        hop.before.tsc_khz, hop.after.tsc_khz,
    ):  # fmt: skip
        yield "a kernel's TSC rate is not known"


def _of_memory_counts(plan: Plan, facts: KernelFacts, which: str) -> Iterator[str]:
    total = plan.machine.memory_bytes if plan.target_has(Capability.MADE) else 1 << 50
    needed = {"free": facts.mem_free_bytes, "available": facts.mem_available_bytes}
    if KHO in plan.witnesses:
        needed["scratch"] = facts.scratch_bytes
    for name, count in needed.items():
        if count is not None and not 0 < count <= total:
            yield f"the {which} kernel has {count} bytes of {name} memory, the machine {total}"
    if facts.preserved_bytes is not None and not 0 <= facts.preserved_bytes <= total:
        yield f"the {which} kernel has preserved {facts.preserved_bytes} bytes"
    if facts.tsc_khz is not None and facts.tsc_khz not in _KHZ:
        yield f"the {which} kernel's TSC has {facts.tsc_khz} kHz"


def _of_parts(plan: Plan, hop: HopEvidence) -> Iterator[str]:
    guests = {guest.name for guest in plan.guests}
    for what, names in (
        ("session", [each.name for each in hop.sessions]),
        ("guest", [each.guest for each in hop.guests]),
        ("memory", [each.guest for each in hop.memory]),
        ("phase", [(each.name, each.guest) for each in hop.phases]),
    ):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            yield f"{what} {twice[0]} is there twice"
    if LUO in plan.witnesses and AGENT_SESSION not in {each.name for each in hop.sessions}:
        yield f"there is no session '{AGENT_SESSION}'"
    for session in hop.sessions:
        if not 0 < session.tokens <= _TOKENS_MAX or session.retrieve_ns < 0:
            yield f"session '{session.name}' has {session.tokens} tokens"
        if session.retrieve_ns > _span(hop):
            yield f"session '{session.name}' took longer than the blackout"
    for phase in hop.phases:
        if phase.hop != hop.number or phase.guest not in {"", *guests} or not phase.name:
            yield f"phase '{phase.name}' is of hop {phase.hop}, '{phase.guest}'"
        if phase.began_ns > phase.ended_ns:
            yield f"phase '{phase.name}' ended before it began"
    for guest, resumed_ns in hop.resumed_ns.items():
        if hop.paused_ns.get(guest, 0) > resumed_ns:
            yield f"'{guest}' was resumed before it was paused"


def _span(hop: HopEvidence) -> int:
    """Return the time from the first pause to the last resume, in ns; very long when unknown."""
    paused, resumed = hop.paused_ns.values(), hop.resumed_ns.values()
    return max(resumed) - min(paused) if paused and resumed else 1 << 62


def _of_memory(plan: Plan, hop: HopEvidence, memory: GuestMemory) -> Iterator[str]:
    digests = (
        ("freeze", slots.FREEZE, memory.freeze),
        ("boot", slots.BOOT, memory.boot),
    )
    frames = (
        ("placement before", slots.PFNS_BEFORE, memory.pfns_before),
        ("placement after", slots.PFNS_AFTER, memory.pfns_after),
    )
    sizes = {guest.name: guest.memory_bytes for guest in plan.guests}
    tables: tuple[tuple[str, slots.Slot[Any], PageDigests | PageFrames | None], ...] = (
        *digests,
        *frames,
    )
    for what, slot, table in tables:
        if table is None or not table.artifact.path:
            continue  # not read from a file
        path = slot.raw_path(hop.number, memory.guest, table)
        if (table.artifact.path, table.artifact.size_bytes) != (path, table.pages * 8):
            yield f"the table of {what} is in another file than it says"
        if table.pages * PAGE_BYTES != sizes.get(memory.guest, table.pages * PAGE_BYTES):
            yield f"the table of {what} has {table.pages} pages"
    for what, _slot, each in digests:
        if each is not None and each.began_ns > each.ended_ns:
            yield f"the pass of {what} ended before it began"


def _of_trace(hop: HopEvidence, trace: GuestTrace) -> Iterator[str]:
    watched = trace.watched
    began, ended = (watched.began_ns, watched.ended_ns) if watched else (0, 1 << 62)
    if watched and not 0 <= watched.longest_hole_ns <= ended - began:
        yield "it was watched for less than nothing"
    yield from _series("tick", trace.ticks, lambda each: each.host_ns, began, ended)
    yield from _series("journal sample", trace.journal, lambda each: each.host_ns, began, ended)
    yield from _series("answer", trace.agent_pings, lambda each: each.host_ns, began, ended)
    yield from _series("echo", trace.echoes, lambda each: each.sent_ns, began, ended)
    if any(late.seq != early.seq + 1 for early, late in pairwise(trace.echoes)):
        yield "echoes are missing, or there twice"
    for echo in trace.echoes:
        if echo.received_ns is not None and not 0 <= echo.received_ns - echo.sent_ns < 1 << 38:
            yield f"echo {echo.seq} was answered before it was sent, or far too late"
            break
    boots = {echo.boot for echo in trace.echoes if echo.boot is not None}
    if trace.ticks and boots - {tick.boot for tick in trace.ticks}:
        yield "echoes come from another boot than the ticks"
    yield from _of_journal(trace, hop.paused_ns.get(trace.guest))


def _of_journal(trace: GuestTrace, paused_ns: int | None) -> Iterator[str]:
    samples, before, after = trace.journal, trace.journal_before, trace.journal_after
    if samples and before and min(each.seq for each in samples) < before.first_seq:
        yield "the journal had a record that its first scan has not"
    if paused_ns is not None and samples and samples[0].host_ns > paused_ns:
        yield "the journal was not looked at before the pause"
    if any(late.seq < early.seq for early, late in pairwise(samples)):
        yield "the newest record of the journal became an older one"
    if samples and after and max(each.seq for each in samples) > after.last_seq + _RECORDS_MORE:
        yield "the journal had a record that its last scan has not"
    for scan in (before, after):
        if scan is not None and scan.records and not scan.missing and (
            scan.records > scan.last_seq - scan.first_seq + 1
        ):  # fmt: skip
            yield "a scan of the journal has more records than numbers"


def _series(
    what: str, rows: Iterable[Any], at: Callable[[Any], int], began: int, ended: int
) -> Iterator[str]:
    """Require that what was seen from here is in order, and in the time of the watch."""
    times = [at(row) for row in rows]
    if any(late <= early for early, late in pairwise(times)):
        yield f"a {what} is out of order, or there twice"
    if times and not (began - _LATE_NS <= min(times) and max(times) <= ended + _LATE_NS):
        yield f"a {what} is from outside the time of the watch"


def _of_iommu(plan: Plan, hop: HopEvidence) -> Iterator[str]:
    found = hop.iommu
    watch = found.watch if found else None
    if found is None or watch is None:
        return
    began, ended, samples = watch.began_ns, watch.ended_ns, found.samples
    if watch.unit != plan.machine.iommu and plan.target_has(Capability.MADE):
        yield f"the IOMMU is '{watch.unit}', planned was '{plan.machine.iommu}'"
    if watch.samples != len(samples):
        yield f"{watch.samples} samples of the IOMMU were taken, {len(samples)} are there"
    times = [began, *(each.host_ns for each in samples), ended]
    if max(late - early for early, late in pairwise(times)) > watch.longest_hole_ns + _LOOK_NS:
        yield "samples of the IOMMU are farther apart than the watch says"
    spent = ended - began
    if not (0 < watch.interval_ns <= spent and 0 <= watch.cpu_ns <= spent * 2):
        yield "the IOMMU was watched for less than nothing"
    if watch.trace_lines < len(found.events):
        yield "QEMU's trace has more events than lines"
    yield from _series("sample of the IOMMU", samples, lambda each: each.host_ns, began, ended)
    ram = plan.machine.memory_bytes or 1 << 52
    bits = 32 if watch.unit == "intel" else 64
    for each in samples:
        if not (0 <= each.gsts < 1 << bits and 0 <= each.fsts < 1 << bits):
            yield "a register of the IOMMU has more bits than it has"
        elif not 0 < each.rtaddr < ram or (each.fault_records and not each.fsts):
            yield "a sample of the IOMMU cannot be"
        else:
            continue
        break
    functions = {device.function for device in found.devices}
    rows_of_requesters: tuple[Any, ...] = (*found.bindings, *found.tables, *found.mappings)
    places = {each.requester for each in rows_of_requesters}
    if places and {place.partition(" ")[0] for place in places} - functions:
        yield f"a requester was watched that is none of {', '.join(sorted(functions))}"
    led = {row.translation for row in found.bindings if row.top}
    for row in found.bindings:
        leads = int(not row.fault and row.translation in led)
        if not (leads <= row.top < ram and leads <= row.levels <= 6):
            yield f"{row.requester}: page tables at {row.top:#x} with {row.levels} levels"
            break
    for what, rows in (("binding", found.bindings), ("event", found.events)):
        stamps = [row.host_ns for row in rows]
        if stamps != sorted(stamps) or any(
            not began - _LATE_NS <= at <= ended + _LATE_NS for at in stamps
        ):
            yield f"a {what} of the IOMMU is out of order, or from another time"
    taken = [each.taken_ns for each in found.mappings]
    taken += [each.taken_ns for each in found.configs]
    if any(not max(1, began - _FAR_NS) <= at <= ended + _FAR_NS for at in taken):
        yield "tables or configuration spaces are from another time"
    names = [
        *((each.view, each.moment, each.requester) for each in found.mappings),
        *((each.function, each.moment) for each in found.configs),
        *((each.name,) for each in found.devices),
        *((device.name, bridge) for device in found.devices for bridge in device.bridges),
    ]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        yield f"{' '.join(twice[0])} is there twice"
    seen = functions | {bridge for device in found.devices for bridge in device.bridges}
    if found.configs and {each.function for each in found.configs} != seen:
        yield "configuration spaces are not those of the devices and the bridges above them"
    for each_map in found.mappings:
        path = slots.MAPPINGS.raw_path(hop.number, value=each_map)
        artifact = each_map.artifact
        if artifact.path and (artifact.path, artifact.size_bytes) != (path, len(each_map.runs)):
            yield "a table of mappings is in another file than it says"
        if not 0 <= each_map.took_ns <= spent:
            yield "a walk of the tables took longer than the watch"
