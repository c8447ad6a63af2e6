# SPDX-License-Identifier: Apache-2.0
"""Carry out the faults of :mod:`liveupdate.faults.table` at their moment of a hop.

One function per fault, one table per moment. What strikes is real: a bit in mapped RAM, a signal,
a closed socket, a command to the kernel. Faults with moment "plan" are the planner's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import EvidenceError
from liveupdate.core.units import MIB, PhysAddr, format_addr
from liveupdate.formats import keep_dma
from liveupdate.formats.iommu import Requester
from liveupdate.formats.iommu_walk import ADDRESS_MASK
from liveupdate.formats.qemu_pci import find_function
from liveupdate.formats.vtd.paging import find_leaf
from liveupdate.formats.vtd.tables import decode_unit, find_entry
from liveupdate.preserve.registry import MECHANISMS
from liveupdate.probes.qemu_machine import Machine
from liveupdate.run.testbed import Testbed
from liveupdate.target.qemu.argv import device_id, wire_id

Strike = Callable[[Testbed], None]
Table = Mapping[str, Strike]

#: how far ``clock-jump`` steps the guest's wall clock
CLOCK_JUMP_NS = 30_000_000_000
_CALL_S = 10.0
#: how many frames ``drop-frames`` lets get lost, and how many still get through before
DROPPED = 5
DROP_AFTER = 50
#: freeze of the LUO sessions and of the tables, under TCG
_RECORD_S = 10.0


def _agent(bed: Testbed, fault: str, **args: object) -> None:
    bed.host.agent.call(
        "inject",
        {"fault": fault, "args": args},
        Deadline.after(_CALL_S, f"the agent to take up '{fault}'"),
    )


def _flip_bit(bed: Testbed) -> None:
    guest = bed.first_guest
    bed.own_machine.ram.flip_bit(guest.pattern_address(), 3)


def _move_page(bed: Testbed) -> None:
    guest = bed.first_guest
    _agent(bed, "move-page", guest=guest.spec.name, page=guest.pattern_page())


def _close_session(bed: Testbed) -> None:
    _agent(bed, "close-session", guest=bed.first_guest.spec.name)


def _freeze_refused(bed: Testbed) -> None:
    _agent(bed, "refuse-state", guest=bed.first_guest.spec.name)


def _device(bed: Testbed) -> str:
    return bed.plan.devices[0].name


def _map_unpreserved(bed: Testbed) -> None:
    _agent(bed, "map-unpreserved", device=_device(bed))


def _dma_after_free(bed: Testbed) -> None:
    _agent(bed, "release-page", device=_device(bed))


def _reset_device(bed: Testbed) -> None:
    _agent(bed, "reset-device", device=_device(bed))


def _drop_frames(bed: Testbed) -> None:
    sender = bed.senders[_device(bed)]
    first = sender.next_number + DROP_AFTER
    sender.lost = frozenset(range(first, first + DROPPED))


def _guest_link_cut(bed: Testbed) -> None:
    link = {"name": wire_id(_device(bed)), "up": False}
    bed.own_machine.qmp.execute("set_link", link, Deadline.after(_CALL_S, "set_link"))


def _record_address(bed: Testbed) -> PhysAddr:
    """Where the outgoing kernel has left its record, which is there when it has said so."""
    deadline = Deadline.after(_RECORD_S, "the outgoing kernel to write its record of kept DMA")
    bed.host.console.wait_line(r"keep-dma: preserved \d+ table pages", deadline)
    for address in bed.own_machine.ram.find_pages(bed.own_machine.ram_fd, keep_dma.MAGIC):
        with contextlib.suppress(ValueError):  # some page that happens to begin like one
            if keep_dma.is_whole(_read_record(bed, address)):
                return address
    raise EvidenceError("the record of kept DMA is nowhere in the host's memory")


def _read_record(bed: Testbed, address: PhysAddr) -> bytes:
    header = bed.own_machine.ram.read(address, keep_dma.HEADER_BYTES)
    return bed.own_machine.ram.read(address, keep_dma.record_bytes(header))


def _corrupt_record(bed: Testbed) -> None:
    # The outgoing kernel still goes by the record when it stops all other devices: what it reads
    # must stay as it is, or this would break the DMA before the record is checked.
    address = PhysAddr(_record_address(bed) + keep_dma.PRESERVE_NS_AT)
    bed.own_machine.ram.flip_bit(address, 0)


def _record_version(bed: Testbed) -> None:
    address = _record_address(bed)
    record = keep_dma.with_version(_read_record(bed, address), keep_dma.VERSION + 1)
    bed.own_machine.ram.write(address, record)


def _region_corrupt(bed: Testbed) -> None:
    _flip_in_region(bed, MECHANISMS[bed.plan.mechanism].corrupt_at)


def _region_version(bed: Testbed) -> None:
    _flip_in_region(bed, MECHANISMS[bed.plan.mechanism].version_at)


def _flip_in_region(bed: Testbed, at: int) -> None:
    bed.own_machine.ram.flip_bit(_find_description(bed) + at, 1)


def _find_description(bed: Testbed) -> int:
    marker, region = MECHANISMS[bed.plan.mechanism].marker, bed.plan.region
    if marker is None:
        assert region is not None  # the planner refuses the fault without one
        assert region.start is not None
        return region.start
    found = bed.own_machine.ram.find_pages(bed.own_machine.ram_fd, marker)
    if len(found) != 1:
        places = ", ".join(map(format_addr, found)) or "nowhere"
        raise EvidenceError(f"what describes the region must be in one place, it is in: {places}")
    return found[0]


def _region_full(bed: Testbed) -> None:
    _agent(bed, "fill-region")


def _wrong_pointer(bed: Testbed) -> None:
    _agent(bed, "wrong-pointer")


def _hang_outgoing(bed: Testbed) -> None:
    _agent(bed, "spin-at-jump")


def _kill_agent(bed: Testbed) -> None:
    deadline = Deadline.after(_CALL_S, "the agent to be killed over SSH")
    pid = bed.agent_pid
    bed.ssh(deadline).run(("kill", "-9", str(pid)), deadline).check()


def _disk_full(bed: Testbed) -> None:
    bed.record.fill_disk()


def _cold_reset(bed: Testbed) -> None:
    bed.own_machine.qmp.execute("system_reset", {}, Deadline.after(_CALL_S, "system_reset"))


def _guest_disk_lost(bed: Testbed) -> None:
    disk = bed.own_machine.disks[bed.first_guest.spec.name]
    with disk.open("r+b") as stream:
        for offset in range(0, disk.stat().st_size, MIB):
            stream.seek(offset)
            stream.write(bytes(MIB))


def _ssh_drop(bed: Testbed) -> None:
    bed.own_machine.cut_ssh()


def _qmp_drop(bed: Testbed) -> None:
    bed.own_machine.qmp.drop()


def _qemu_killed(bed: Testbed) -> None:
    bed.own_machine.kill()


def _find_device(bed: Testbed) -> tuple[int, Requester]:
    """Find the root pointer and the first passed-through device, as they are right now."""
    qmp = bed.own_machine.qmp
    deadline = Deadline.after(_CALL_S, "QEMU's list of PCI devices")
    found = find_function(
        qmp.execute("query-pci", {}, deadline), device_id(bed.plan.devices[0].name)
    )
    if found is None:
        raise EvidenceError("the device to tamper with is not there")
    return Machine.find(qmp).read_status(qmp).rtaddr, found.address


def _xor_word(bed: Testbed, address: int, bits: int) -> None:
    with bed.own_machine.ram.view(address, 8) as view:
        view[:] = (int.from_bytes(view, "little") ^ bits).to_bytes(8, "little")


def _tamper_pte(bed: Testbed) -> None:
    """Let the device's last page lead to another page of its own, never to somebody else's."""
    rtaddr, device = _find_device(bed)
    (mappings, *_) = decode_unit(bed.own_machine.ram, rtaddr, only=[device]).sets
    last = mappings.runs[-1]
    offset = last.size - last.page
    target = last.phys + offset
    others = [run.phys for run in mappings.runs if run.page == last.page and run.phys != target]
    if not others:
        raise EvidenceError("the device has no two pages of one size to be mixed up")
    binding = mappings.binding
    leaf = find_leaf(bed.own_machine.ram, binding.top, binding.levels, last.iova + offset)
    _xor_word(bed, leaf, (target ^ others[0]) & ADDRESS_MASK)


def _tamper_context(bed: Testbed) -> None:
    """Take the present bit from the device's context entry."""
    rtaddr, device = _find_device(bed)
    _xor_word(bed, find_entry(bed.own_machine.ram, rtaddr, device), 1)


def _kill_vmm(bed: Testbed) -> None:
    _agent(bed, "kill-vmm", guest=bed.first_guest.spec.name)


def _payload(bed: Testbed, **command: object) -> None:
    bed.host.agent.call(
        "payload",
        {"guest": bed.first_guest.spec.name, "command": command},
        Deadline.after(_CALL_S, "the payload command"),
    )


def _dead_timer(bed: Testbed) -> None:
    _payload(bed, cmd="dead-timer")


def _guest_reboot(bed: Testbed) -> None:
    _agent(bed, "reset-guest", guest=bed.first_guest.spec.name)


def _clock_jump(bed: Testbed) -> None:
    _payload(bed, cmd="clock-jump", ns=str(CLOCK_JUMP_NS))


#: before anything is preserved
BEFORE: Table = MappingProxyType(
    {"dma-after-free": _dma_after_free, "wrong-pointer": _wrong_pointer}
)
#: the fault strikes before the jump, guests running
BROWNOUT: Table = MappingProxyType(
    {
        "map-unpreserved": _map_unpreserved,
        "reset-device": _reset_device,
        "move-page": _move_page,
        "close-session": _close_session,
        "freeze-refused": _freeze_refused,
        "region-full": _region_full,
        "hang-outgoing": _hang_outgoing,
        "kill-agent": _kill_agent,
        "disk-full": _disk_full,
    }
)
#: instead of the jump
JUMP: Table = MappingProxyType({"cold-reset": _cold_reset})
#: the guests are frozen and their memory has been digested
BLACKOUT: Table = MappingProxyType(
    {
        "flip-bit": _flip_bit,
        "drop-frames": _drop_frames,
        "corrupt-record": _corrupt_record,
        "record-version": _record_version,
        "region-corrupt": _region_corrupt,
        "region-version": _region_version,
        "guest-disk-lost": _guest_disk_lost,
        "guest-link-cut": _guest_link_cut,
        "ssh-drop": _ssh_drop,
        "qmp-drop": _qmp_drop,
        "qemu-killed": _qemu_killed,
    }
)
#: the incoming kernel has said its first word and has touched no device yet
INCOMING: Table = MappingProxyType({"tamper-pte": _tamper_pte, "tamper-context": _tamper_context})
#: the guests run again
RESUMED: Table = MappingProxyType(
    {
        "kill-vmm": _kill_vmm,
        "guest-dead-timer": _dead_timer,
        "guest-reboot": _guest_reboot,
        "clock-jump": _clock_jump,
    }
)
