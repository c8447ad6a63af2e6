# SPDX-License-Identifier: Apache-2.0
"""Faults of passed-through devices, and of the IOMMU's tables for them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import EvidenceError
from liveupdate.core.units import PhysAddr, format_addr
from liveupdate.faults.base import (
    HopChange,
    Later,
    Moment,
    Part,
    ask_agent,
    fails,
    fault,
    flip,
    planned_fault,
    struck,
    write_memory,
)
from liveupdate.model.evidence import Struck

if TYPE_CHECKING:
    from liveupdate.run.testbed import Testbed

DROPPED = 5
"""How many frames ``drop-frames`` loses."""
DROP_AFTER = 50
"""How many frames still get through before."""
_RECORD_S = 10.0
"""Freeze of the LUO sessions and of the tables, under TCG."""

# --- translation

drop_translation = planned_fault(
    "drop-translation",
    "the incoming kernel does not use the IOMMU (intel_iommu=off)",
    HopChange(drop=("intel_iommu",), add="intel_iommu=off"),
    needs={Part.DEVICE},
    expect=fails("iommu.translation"),
)


@fault(
    "tamper-pte",
    "one page-table entry of a device is changed from outside during the blackout",
    at=Moment.INCOMING,
    needs={Part.DEVICE},
    expect=fails("iommu.mappings"),
)
def tamper_pte(bed: Testbed) -> Struck:
    """Let the entry of the device's last page lead to its first page."""
    from liveupdate.formats.iommu import ADDRESS_MASK
    from liveupdate.formats.vtd.paging import find_leaf
    from liveupdate.formats.vtd.tables import decode_unit

    # The device's last page leads to another page of its own then, never to another owner's.
    root, device = bed.find_device(_first(bed))
    (mappings, *_) = decode_unit(bed.own_machine.ram, root, only=[device]).sets
    last = mappings.runs[-1]
    offset = last.size - last.page
    target = last.phys + offset
    others = [run.phys for run in mappings.runs if run.page == last.page and run.phys != target]
    if not others:
        raise EvidenceError("the device has no two pages of one size to be mixed up")
    binding = mappings.binding
    leaf = find_leaf(bed.own_machine.ram, binding.top, binding.levels, last.iova + offset)
    what = f"the page-table entry of IOVA {format_addr(last.iova + offset)}"
    return _xor_word(bed, what, leaf, (target ^ others[0]) & ADDRESS_MASK)


@fault(
    "tamper-context",
    "the context entry of a device is made not present from outside during the blackout",
    at=Moment.INCOMING,
    needs={Part.DEVICE},
    expect=fails("iommu.translation"),
)
def tamper_context(bed: Testbed) -> Struck:
    """Clear the present bit of the device's context entry."""
    from liveupdate.formats.vtd.tables import find_entry

    root, device = bed.find_device(_first(bed))
    return _xor_word(
        bed, "the device's context entry", find_entry(bed.own_machine.ram, root, device), 1
    )


# --- DMA

stock_kernel = planned_fault(
    "stock-kernel",
    "both kernels are built without the option that keeps DMA running",
    # an outgoing kernel that can keep DMA would leave it running into one that cannot
    HopChange(kernels={"outgoing": "kernel-stock", "incoming": "kernel-stock"}),
    needs={Part.DEVICE},
    expect=fails("device.dma-continuity"),
)


@fault(
    "drop-frames",
    "five frames get lost on their way to the device during the blackout",
    at=Moment.BLACKOUT,
    needs={Part.DEVICE, Part.FRAMES},
    expect=fails("device.dma-continuity"),
)
def drop_frames(bed: Testbed) -> Later:
    """Drop five numbered frames on the control host, after a few that get through."""
    sender = bed.senders[_first(bed)]
    first = sender.next_number + DROP_AFTER
    sender.lost = frozenset(range(first, first + DROPPED))

    def look() -> Struck | None:
        dropped = sender.dropped
        if not dropped:
            return None  # the blackout was over before
        after = f"dropped: number {', '.join(str(each.number) for each in dropped)}"
        where = f"the sender of {_first(bed)}"
        at_ns = dropped[-1].sent_ns or 0
        return struck("frames for the device", where, "dropped: none", after, at_ns=at_ns)

    return look


@fault(
    "map-unpreserved",
    "the device gets a mapping of memory that is not preserved",
    at=Moment.BROWNOUT,
    needs={Part.DEVICE},
    expect=fails("handover.session", 5),
)
def map_unpreserved(bed: Testbed) -> Struck:
    """Let the agent map memory for the device that the kernel does not preserve."""
    before = bed.device_mappings(_first(bed))
    ask_agent(bed, "map-unpreserved", device=_first(bed))
    after = bed.device_mappings(_first(bed))
    new = " and ".join(sorted(after - before)) or "nothing new"
    where = f"IOMMU tables of {_first(bed)}"
    return struck("mappings of the device", where, f"{len(before)} runs of pages", new)


@fault(
    "corrupt-record",
    "one bit of the record of kept DMA is flipped from outside before it is read",
    at=Moment.BLACKOUT,
    needs={Part.DEVICE},
    expect=fails("device.dma-continuity"),
)
def corrupt_record(bed: Testbed) -> Struck:
    """Flip a bit of the record of kept DMA in the host's RAM, in a field that the outgoing
    kernel does not use.
    """
    from liveupdate.formats import keep_dma

    # The outgoing kernel still goes by the record when it stops all other devices: what it reads
    # must stay as it is, or this would break the DMA before the record is checked.
    address = PhysAddr(_find_record(bed) + keep_dma.PRESERVE_NS_AT)
    return flip(bed, "the record of kept DMA", address, 0)


@fault(
    "record-version",
    "the record of kept DMA says another version, with a checksum that is right",
    at=Moment.BLACKOUT,
    needs={Part.DEVICE},
    expect=fails("device.dma-continuity"),
)
def record_version(bed: Testbed) -> Struck:
    """Change the version in the record of kept DMA, and correct its checksum."""
    from liveupdate.formats import keep_dma

    address = _find_record(bed)
    record = keep_dma.with_version(_read_record(bed, address), keep_dma.VERSION + 1)
    # version and checksum are in the header
    what = "the header of the record of kept DMA"
    return write_memory(bed, what, address, record[: keep_dma.HEADER_BYTES])


@fault(
    "reset-device",
    "the incoming kernel resets the device before it is taken over",
    at=Moment.BROWNOUT,
    needs={Part.DEVICE},
    expect=fails("device.dma-continuity"),
)
def reset_device(bed: Testbed) -> Later:
    """Let the incoming agent reset the function before it takes the device over."""
    return ask_agent(bed, "reset-device", device=_first(bed))


@fault(
    "dma-after-free",
    "a page of the ring's buffers is released while the device may still write to it",
    at=Moment.PREPARE,
    needs={Part.DEVICE},
    expect=fails("handover.session", 5),
)
def dma_after_free(bed: Testbed) -> Later:
    """Let the agent free a page that the device may still write to."""
    return ask_agent(bed, "release-page", device=_first(bed))


# --- a guest's own devices


@fault(
    "guest-link-cut",
    "the cable of a guest's own network card is pulled out during the blackout",
    at=Moment.BLACKOUT,
    needs={Part.GUEST_CARD},
    expect=fails("device.dma-continuity"),
)
def guest_link_cut(bed: Testbed) -> Struck:
    """Switch the link of the guest's network card off, through QEMU's monitor."""
    name = _first(bed)
    before = bed.read_link(name)
    bed.cut_cable(name)
    return struck("link of the guest's network card", name, before, bed.read_link(name))


def _first(bed: Testbed) -> str:
    return bed.plan.devices[0].name


def _find_record(bed: Testbed) -> PhysAddr:
    """Return the address of the outgoing kernel's record; it exists once the kernel has logged
    it.
    """
    from liveupdate.formats import keep_dma

    deadline = Deadline.after(_RECORD_S, "the outgoing kernel to write its record of kept DMA")
    bed.host.console.wait_line(r"keep-dma: preserved \d+ table pages", deadline)
    for address in bed.own_machine.ram.find_pages(bed.own_machine.ram_fd, keep_dma.MAGIC):
        with contextlib.suppress(ValueError):  # some page that happens to begin like one
            if keep_dma.is_whole(_read_record(bed, address)):
                return address
    raise EvidenceError("the host's memory has no record of kept DMA")


def _read_record(bed: Testbed, address: PhysAddr) -> bytes:
    from liveupdate.formats import keep_dma

    header = bed.own_machine.ram.read(address, keep_dma.HEADER_BYTES)
    return bed.own_machine.ram.read(address, keep_dma.record_bytes(header))


def _xor_word(bed: Testbed, what: str, address: int, bits: int) -> Struck:
    word = int.from_bytes(bed.own_machine.ram.read(address, 8), "little") ^ bits
    return write_memory(bed, what, address, word.to_bytes(8, "little"))
