# SPDX-License-Identifier: Apache-2.0
"""What the running kernel says of its VT-d tables: debugfs, read over SSH; the inside view.

Facts in the same form as those of :mod:`liveupdate.probes.iommu`. What it says is not believed: the
judge compares it with what was seen from outside.
"""

from __future__ import annotations

import time
import zlib

from liveupdate.deadline import Deadline
from liveupdate.errors import EvidenceError
from liveupdate.formats.iommu import Binding, MappingSet, Requester, Translation
from liveupdate.formats.malformed import MalformedError
from liveupdate.formats.vtd_debugfs import parse_dmar_translation, parse_domain_translation
from liveupdate.model.evidence import MappingFacts
from liveupdate.probes.iommu import to_facts
from liveupdate.transport.ssh import Ssh

DEBUGFS = "/sys/kernel/debug/iommu/intel"
#: 65,000 mappings are 8 MB of text
_MAX_TEXT_BYTES = 256 << 20


def read_inside(
    ssh: Ssh, requester: Requester, moment: str, deadline: Deadline
) -> tuple[MappingFacts, ...]:
    """Read a device's translation, one set per PASID.

    :raises EvidenceError: the kernel has no such files, or what they hold makes no sense.
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
        # It lists entries that are present, and says nothing of those that are not.
        blocked = Binding(requester=requester, translation=Translation.BLOCKED, access=0)
        sets = [MappingSet(binding=blocked)]
    return tuple(to_facts(each, moment, "inside", began, took) for each in sets)


def _path(binding: Binding) -> str:
    pasid = binding.requester.pasid
    # PASID 0 stands for requests without one: the device's own domain (intel/pasid.h)
    below = f"/{pasid:x}" if pasid else ""
    return f"{DEBUGFS}/{binding.requester.bdf}{below}/domain_translation_struct"


def _read(ssh: Ssh, path: str, deadline: Deadline) -> str:
    """Read a file, packed on its way: the text is long and says the same again and again."""
    raw = ssh.run(("gzip", "-1", "-c", "--", path), deadline, check=True).stdout
    try:
        text = zlib.decompressobj(wbits=31).decompress(raw, _MAX_TEXT_BYTES)
        return text.decode("ascii")
    except (zlib.error, UnicodeDecodeError) as error:
        raise EvidenceError(f"'{path}' does not unpack: {error}") from error
