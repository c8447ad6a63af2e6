# SPDX-License-Identifier: Apache-2.0
"""What the host reports of translations: the inside view.

With VT-d that is the kernel's debugfs, read over SSH. AMD's shows no mappings; there it is the list
of what the driver in user space has mapped, with the page frames from the kernel's pagemap, or for
a guest's device the page frames of the guest's memory.

The facts have the form of those of :mod:`liveupdate.probes.iommu`. They are not trusted: the judge
compares them with what was seen from outside.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterable
from itertools import chain

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import EvidenceError
from liveupdate.core.units import PAGE_BYTES
from liveupdate.formats.iommu import (
    READ,
    WRITE,
    Binding,
    MappingSet,
    Requester,
    RunBuilder,
    Translation,
)
from liveupdate.formats.malformed import MalformedError
from liveupdate.formats.vtd.debugfs import parse_dmar_translation, parse_domain_translation
from liveupdate.model.evidence import MappingFacts
from liveupdate.probes.iommu import to_facts
from liveupdate.transport.ssh import Ssh

DEBUGFS = "/sys/kernel/debug/iommu/intel"
#: 65,000 mappings are 8 MB of text
_MAX_TEXT_BYTES = 256 << 20
_PFN = struct.Struct("<Q")


def read_inside(
    ssh: Ssh, requester: Requester, moment: str, deadline: Deadline
) -> tuple[MappingFacts, ...]:
    """Read a device's translation, one set per PASID.

    :raises EvidenceError: the kernel has no such files, or their content is not valid.
    :raises LiveUpdateError: as the connection.
    """
    began = time.monotonic_ns()
    try:
        text = _read(ssh, f"{DEBUGFS}/dmar_translation_struct", deadline)
        bindings = [
            binding
            for unit in parse_dmar_translation(text)
            for binding in unit.bindings
            if binding.requester.bdf == requester.bdf
        ]
        sets = [
            parse_domain_translation(_read(ssh, _path(binding), deadline), binding)
            for binding in bindings
        ]
    except MalformedError as error:
        raise EvidenceError(f"debugfs of {requester.bdf}: {error}") from error
    took = time.monotonic_ns() - began
    if not sets:
        # It lists the entries that are present only.
        blocked = Binding(requester=requester, translation=Translation.BLOCKED, access=0)
        sets = [MappingSet(binding=blocked)]
    return tuple(to_facts(each, moment, "inside", began, took) for each in sets)


def from_driver(
    requester: Requester,
    ranges: Iterable[tuple[int, int]],
    pfns: bytes,
    moment: str,
    began: int,
    took: int,
) -> MappingFacts:
    """Make a set from what a driver, or a VMM for its guest, has mapped.

    :param ranges: IOVAs, ascending: start and size in bytes.
    :param pfns: frame numbers of all their pages, u64 little-endian.
    :raises EvidenceError: a page has no frame, or there are more or fewer than pages.
    """
    builder = RunBuilder()
    ranges = tuple(ranges)
    pages = sum(size for _start, size in ranges) // PAGE_BYTES
    if len(pfns) != pages * _PFN.size:
        raise EvidenceError(f"{len(pfns)} bytes of frames for {pages} pages of {requester.bdf}")
    addresses = chain.from_iterable(
        range(start, start + size, PAGE_BYTES) for start, size in ranges
    )
    for at, (frame,) in zip(addresses, _PFN.iter_unpack(pfns), strict=True):
        if not frame:
            raise EvidenceError(f"IOVA {at:#x} of {requester.bdf} has no frame")
        builder.add(at, frame * PAGE_BYTES, PAGE_BYTES, READ | WRITE, PAGE_BYTES)
    binding = Binding(requester=requester, translation=Translation.HOST, access=READ | WRITE)
    mappings = MappingSet(binding=binding, runs=builder.finish())
    return to_facts(mappings, moment, "inside", began, took)


def _path(binding: Binding) -> str:
    pasid = binding.requester.pasid
    # PASID 0 stands for requests without one: the device's own domain (intel/pasid.h)
    below = f"/{pasid:x}" if pasid else ""
    return f"{DEBUGFS}/{binding.requester.bdf}{below}/domain_translation_struct"


def _read(ssh: Ssh, path: str, deadline: Deadline) -> str:
    """Read a file, compressed on its way: the text is long and repetitive."""
    raw = ssh.run(("gzip", "-1", "-c", "--", path), deadline, check=True).stdout
    try:
        text = zlib.decompressobj(wbits=31).decompress(raw, _MAX_TEXT_BYTES)
        return text.decode("ascii")
    except (zlib.error, UnicodeDecodeError) as error:
        raise EvidenceError(f"'{path}' does not unpack: {error}") from error
