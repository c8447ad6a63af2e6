# SPDX-License-Identifier: Apache-2.0
"""From a plan to a testbed whose guests tick: cold by booting, warm by loading a saved host.

The key of a warm state is a digest of everything it was made from, so that only a matching run
loads it. A state that does not load is removed; the run then starts cold and says so.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from liveupdate.core import paths
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LiveUpdateError, PlanError, RemoteError
from liveupdate.core.steps import Steps
from liveupdate.core.units import GIB, MIB
from liveupdate.evidence import RunDir
from liveupdate.formats import payload
from liveupdate.formats.pattern import STEP
from liveupdate.images import catalogue
from liveupdate.model import codec
from liveupdate.model.guest_kinds import Watch
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import CONTINUOUS, GuestSpec
from liveupdate.model.targets import TARGETS, Capability
from liveupdate.run.devices import find_guests_own, start_devices, stop_devices
from liveupdate.run.observers.ticks import GuestStopped, see_ticks
from liveupdate.run.testbed import GuestHandle, Testbed, field_of
from liveupdate.target.base import Host, Order, find_entry
from liveupdate.target.machines import Registry
from liveupdate.target.qemu.host import QemuHost
from liveupdate.target.warm import WarmMeta, WarmStateError, WarmStore, make_key

#: saved states together may take this much of the cache
WARM_BYTES = 12 * GIB
_SAVE_S = 60.0
_LOAD_S = 60.0
_CONT_S = 10.0
#: nearly all of the host's memory is touched, page by page
_FRAGMENT_S = 120.0
#: a loaded guest has booted already and only has to say so
_WARM_READY_S = 20.0
#: of a pattern whose size the scenario does not say
_PATTERN_BYTES = 8 * MIB
#: so many ticks within so many seconds are a guest whose timers run
_TICKS_SEEN = 20
_TICKS_S = 10.0


TakeHost = Callable[[Plan, RunDir], Host]
"""Makes the host of a plan, not entered."""


@contextmanager
def bring_up(
    plan: Plan, record: RunDir, steps: Steps, take: TakeHost | None = None
) -> Iterator[Testbed]:
    """Yield a host under update with all guests ready; the host ends with the block.

    :param take: makes the host instead of :func:`take_host`; it is booted cold then.
    :raises LiveUpdateError: it did not come up; the run directory has its console.
    """
    with ExitStack() as stack:
        with steps.step("bring-up"):
            if take is None:
                bed = _start(plan, record, steps, stack, catalogue.make_kit(plan.images))
            else:
                bed = _start_cold(plan, record, steps, stack, take)
            stack.callback(stop_devices, bed, steps)
            _start_devices(bed, steps)
        stack.callback(bed.close_ssh)
        yield bed


def _start_devices(bed: Testbed, steps: Steps) -> None:
    """Start the devices while the guests stand still, and see these tick again.

    Taking a device changes the machine's memory map again and again, and TCG has trouble with that
    while other CPUs are busy: guests that died, and a QEMU that did (docs/adr/0006).
    """
    if all(spec.guest is not None for spec in bed.plan.devices):
        return
    bed.call("stop_guests")
    start_devices(bed, steps)
    bed.call("cont_guests")
    _check_ticks(bed)


def _start(plan: Plan, record: RunDir, steps: Steps, stack: ExitStack, kit: Path) -> Testbed:
    """Start warm if it is allowed and possible, else cold; a cold host is saved if that is
    allowed.
    """
    take = partial(take_host, kit=kit)
    if plan.cold:
        return _start_cold(plan, record, steps, stack, take)
    store = WarmStore(paths.cache_dir() / "warm")
    key = warm_key(plan, kit)
    state = store.find(key)
    if state is not None:
        try:
            return _start_warm(plan, record, steps, stack, kit, store, state)
        except WarmStateError as error:
            steps.note("warm-state-discarded", reason=str(error))
    bed = _start_cold(plan, record, steps, stack, take)
    try:
        with steps.step("save-warm-state"):
            _save(bed, store, key, steps)
    except GuestStopped:
        store.discard(key)
        raise
    return bed


def warm_key(plan: Plan, kit: Path) -> str:
    """Digest everything that a saved host was made from, without what only the update itself
    uses.
    """
    images = plan.images
    return make_key(
        {
            "machine": codec.encode(plan.machine),
            "qemu": hashlib.sha256(_resolve_program(plan.machine.qemu).read_bytes()).hexdigest(),
            "kernel": images.outgoing.sha256,
            "rootfs": images.rootfs_sha256,
            # content-addressed: the path says what is in it, agent and guest images included
            "kit": str(kit),
            "append": plan.boot_append,
            "guests": [codec.encode(guest) for guest in plan.guests],
            "told": _told_to_agent(plan),
            "user-images": [_stat(guest.image) for guest in plan.guests if guest.image],
            "seed": str(plan.seed),
        }
    )


def _resolve_program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise PlanError(f"no program '{name}' in PATH", hint="run 'make setup'")
    return Path(found)


def _stat(path: str) -> list[object]:
    status = Path(path).stat()
    return [str(Path(path).absolute()), status.st_size, status.st_mtime_ns]


def make_host(plan: Plan, run_id: str, run_dir: Path, kit: Path) -> QemuHost:
    """Make the machine of a plan's target, not started.

    :raises PlanError: the target is a machine that already runs.
    """
    host = _take(plan, run_id, run_dir, kit) if plan.target_has(Capability.MADE) else None
    if host is None or host.outside is None:
        raise PlanError(
            f"'{plan.place}' is a machine that is there already", hint="log in with ssh itself"
        )
    return host.outside


def take_host(plan: Plan, record: RunDir, kit: Path) -> Host:
    """Make a machine for this run, or take one of a lab; not entered."""
    return _take(plan, record.run_id, record.path, kit)


def _take(plan: Plan, run_id: str, run_dir: Path, kit: Path) -> Host:
    order = Order(
        plan=plan,
        kit=kit,
        run_id=run_id,
        run_dir=run_dir,
        registry=Registry(paths.runtime_dir()),
    )
    return find_entry(TARGETS[plan.target]).make(order)


def _testbed(plan: Plan, host: Host, record: RunDir) -> Testbed:
    guests = tuple(GuestHandle(spec=spec, index=index) for index, spec in enumerate(plan.guests))
    return Testbed(plan=plan, host=host, record=record, guests=guests)


def _enter(host: Host, stack: ExitStack, steps: Steps) -> None:
    """Have the host shut down when the stack ends, and what that leaves behind be said."""

    def leave() -> None:
        for problem in host.shutdown():
            steps.note("cleanup", problem=problem)

    stack.callback(leave)


def _start_warm(
    plan: Plan,
    record: RunDir,
    steps: Steps,
    stack: ExitStack,
    kit: Path,
    store: WarmStore,
    state: WarmMeta,
) -> Testbed:
    """Load a saved host, set the clocks and let the guests run.

    :raises WarmStateError: it does not load; it was removed, and nothing runs.
    """
    host = make_host(plan, record.run_id, record.path, kit)
    try:
        with steps.step("load-warm-state"):
            store.load(host, state, Deadline.after(_LOAD_S, "the saved host to load"))
            host.resume(Deadline.after(_CONT_S, "the loaded host to go on"))
            bed = _testbed(plan, host, record)
            bed.start = "warm"
            bed.agent_pid = field_of(state.facts, "agent_pid", int) or 0
            bed.guest_qemu_version = field_of(state.facts, "guest_qemu", str)
            set_clock_and_nonce(bed)
            bed.call("cont_guests")
            mark = host.agent.mark()
            for guest in bed.guests:
                if guest.spec.kind.payload:
                    bed.command(guest, payload.set_time(time.time_ns()))
                    bed.command(guest, payload.HELLO)
            wait_guests(bed, timeout_s=_WARM_READY_S, since=mark)
            _check_ticks(bed)
    except LiveUpdateError as error:
        host.shutdown()
        store.discard(state.key)
        if isinstance(error, WarmStateError):
            raise
        raise WarmStateError(f"the loaded host does not work: {error}") from error
    except BaseException:
        host.shutdown()
        raise
    _enter(host, stack, steps)
    return bed


def _save(bed: Testbed, store: WarmStore, key: str, steps: Steps) -> None:
    """Save the host while its guests' VMMs stand still; a failure is not fatal."""
    bed.call("stop_guests")
    try:
        facts = {"agent_pid": bed.agent_pid, "guest_qemu": bed.guest_qemu_version}
        figures = store.save(
            bed.own_machine, key, facts, Deadline.after(_SAVE_S, "the host to be saved")
        )
        steps.note("warm-state-saved", ram_bytes=figures.ram_bytes, state_bytes=figures.state_bytes)
        store.prune(WARM_BYTES)
    except WarmStateError as error:
        steps.note("warm-state-not-saved", reason=str(error))
    finally:
        bed.call("cont_guests")
    _check_ticks(bed)


def _check_ticks(bed: Testbed) -> None:
    """See every payload tick on: a guest that is dead before the update says nothing about it.

    Seen under TCG before the host was told that its TSC is constant (docs/adr/0006): timers that
    never came, in a guest that QEMU called running.

    :raises GuestStopped: one does not.
    """
    for guest in bed.guests:
        if guest.spec.kind.payload:
            see_ticks(bed, guest, _TICKS_SEEN, _TICKS_S)


def _start_cold(
    plan: Plan, record: RunDir, steps: Steps, stack: ExitStack, take: TakeHost
) -> Testbed:
    """Boot the host, then its guests."""
    host = take(plan, record)
    _enter(host, stack, steps)
    host.__enter__()
    bed = _testbed(plan, host, record)
    with steps.step("boot-host"):
        deadline = Deadline.after(plan.timeouts.boot_s, "the agent's first hello")
        hello = host.agent.wait_event("hello", deadline)
        bed.agent_pid = field_of(hello.data, "pid", int) or 0
    set_clock_and_nonce(bed)
    if plan.observe.hugetlb:
        _try_hugetlb(bed, steps)
    if plan.fragment:
        with steps.step("fragment-memory"):
            said = bed.call("fragment", {"share": plan.fragment}, timeout_s=_FRAGMENT_S)
            steps.note("memory-fragmented", **said)
    found = find_guests_own(bed)
    with steps.step("boot-guests", guests=len(bed.guests)):
        answer = bed.call(
            "start_guests",
            {"guests": [_start_args(plan, guest, found) for guest in bed.guests]},
            timeout_s=plan.timeouts.guest_boot_s,
        )
        bed.guest_qemu_version = field_of(answer, "qemu_version", str)
        wait_guests(bed, timeout_s=plan.timeouts.guest_boot_s)
        _check_ticks(bed)
    return bed


def _try_hugetlb(bed: Testbed, steps: Steps) -> None:
    """Time the allocation that the guests' RAM is compared with; note a host that has none."""
    size = sum(guest.memory_bytes for guest in bed.plan.guests)
    try:
        bed.call("hugetlb", {"bytes": size}, timeout_s=_FRAGMENT_S)
    except RemoteError as error:
        steps.note("hugetlb-not-tried", reason=str(error))


def _told_to_agent(plan: Plan) -> dict[str, object]:
    """Return what the agent remembers of a run with each guest, and so does a saved host."""
    return {
        "vcpu_state": plan.vcpu_state is True,
        "has_continuous_clock": plan.clock == CONTINUOUS,
    }


def _start_args(plan: Plan, guest: GuestHandle, found: Mapping[str, str]) -> dict[str, object]:
    """:param found: addresses of guests' own devices, by name."""
    spec = guest.spec
    return {
        "name": spec.name,
        "index": guest.index,
        "memory_bytes": spec.memory_bytes,
        "vcpus": spec.vcpus,
        "pattern_bytes": pattern_bytes(spec),
        # far apart, so that no two guests have a page in common
        "seed": str((plan.seed + guest.index * STEP) % (1 << 64)),
        "append": "",
        "disk": plan.guest_disks[guest.index] if plan.guest_disks else spec.name,
        # digests come from inside where memory cannot be read from outside
        "digest": not plan.target_has(Capability.PHYSICAL_MEMORY) and plan.observe.memory,
        **_told_to_agent(plan),
        "image": "disk" if spec.image else "",
        "qga": Watch.PINGS in spec.kind.watches,
        "cpu": _guest_cpu(plan),
        "devices": [
            {"name": each.name, "kind": each.kind, "access": each.access, "bdf": found[each.name]}
            for each in plan.devices
            if each.guest == spec.name
        ],
    }


def _guest_cpu(plan: Plan) -> int:
    """Give the only CPU that guests may use, or -1 for any.

    Two nested guests that run at the same time on two emulated CPUs reset, or take the host with
    them, within seconds: seen with QEMU 10.0.2 and multi-threaded TCG in 5 of 8 starts, and in none
    with the guests on one CPU. A single guest that may move between them was reset, too, in 2 of 30
    cold runs (docs/adr/0006).
    """
    return plan.machine.vcpus - 1 if plan.machine.accel == "tcg" else -1


def pattern_bytes(spec: GuestSpec) -> int:
    """Return how much of its RAM the payload fills: as requested, or an eighth, at most 8 MiB.

    Digests cover all of it from outside; reading a pattern back from inside costs a nested page
    fault for each page that the guest has not touched since it was resumed.
    """
    if spec.pattern_bytes is not None:
        return spec.pattern_bytes
    return min(spec.memory_bytes // 8, _PATTERN_BYTES)


def set_clock_and_nonce(bed: Testbed) -> None:
    """Set the host's wall clock, and write the nonce that SSH reads back."""
    bed.call("set_time", {"realtime_ns": time.time_ns()})
    bed.call("set_nonce", {"nonce": bed.nonce})


def wait_guests(bed: Testbed, *, timeout_s: float, since: int = 0) -> None:
    """Wait until every payload reports that it is ready, and learn where its pages are.

    :raises DeadlineExceeded: names the guest that is not ready.
    """
    deadline = Deadline.after(timeout_s, "the guests to be ready")
    for guest in bed.guests:
        if guest.spec.kind.payload:
            guest.ready = bed.wait_payload(guest, payload.Ready, deadline, since=since)
    bed.refresh_pfns()
