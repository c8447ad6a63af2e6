# SPDX-License-Identifier: Apache-2.0
"""Decode the lines that QEMU's ``log`` trace backend writes for devices and IOMMUs.

One event per line: its name, a space, its text; with ``-msg timestamp=on`` a thread id and a time
stand before it. Names and texts are those of QEMU's ``hw/i386/trace-events``,
``hw/pci/trace-events``, ``hw/net/trace-events`` and ``hw/core/trace-events`` (10.0). Other lines
may be in the same file and are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from liveupdate.formats.iommu import format_source_id
from liveupdate.formats.malformed import MalformedError
from liveupdate.model.iommu_samples import DeviceEvent

#: what a :class:`DeviceEvent` can be
TRANSLATION, ROOT, FAULT = "translation", "root-pointer", "fault"
CONFIG_WRITE, POWER, RESET, SOFT_RESET = "config-write", "power-state", "reset", "software-reset"
#: notes of a software reset: a NIC's, and that of an NVMe controller
NIC_RESET, NVME_RESET = "Doing SW reset", "cleared controller enable bit"


class QemuTraceError(MalformedError):
    """A line of an event that is known, with a text that is not."""


_HEX = "0x([0-9a-f]+)"
_FUNCTION = r"(?P<note>\S+) (?P<where>[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"
#: what each event is, and its text; groups with a name are fields of the event, numbers in hex
_TEXTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "vtd_dmar_enable": (TRANSLATION, "enable (?P<value>[01])"),
        "vtd_reg_dmar_root": (ROOT, f"addr {_HEX} scalable ([01])"),
        "vtd_dmar_fault": (FAULT, rf"sid {_HEX} fault (\d+) addr {_HEX} write ([01])"),
        # it calls the control register a status
        "amdvi_control_status": (TRANSLATION, f"MMIO_STATUS state {_HEX}"),
        # of which device is not said
        "amdvi_page_fault": (FAULT, f"error: page fault accessing guest physical address {_HEX}"),
        "amdvi_mode_invalid": (
            FAULT,
            f"error: translation level 0x[0-9a-f]+ translating addr {_HEX}",
        ),
        "amdvi_get_pte_hwerror": (FAULT, f"hardware error eccessing PTE at addr {_HEX}"),
        "amdvi_invalid_dte": (FAULT, f"PTE entry at {_HEX} is invalid"),
        "amdvi_dte_get_fail": (
            FAULT,
            f"error: failed to access Device Entry devtab {_HEX} offset 0x[0-9a-f]+",
        ),
        "pci_cfg_write": (
            CONFIG_WRITE,
            f"{_FUNCTION} @0x(?P<offset>[0-9a-f]+) <- 0x(?P<value>[0-9a-f]+)",
        ),
        "pci_pm_transition": (POWER, rf"{_FUNCTION} PM transition D\d->D(?P<value>\d)"),
        # instances have no name here, only a type
        "resettable_phase_hold_exec": (RESET, r"obj=\S+\((?P<note>.+)\) method=[01]"),
        # both NICs, e1000e and igb, say so in the same words
        "e1000e_core_ctrl_sw_reset": (SOFT_RESET, f"(?P<note>{NIC_RESET})"),
        "pci_nvme_mmio_stopped": (SOFT_RESET, f"(?P<note>{NVME_RESET})"),
    }
)
_ACCESS = MappingProxyType({"0": "read", "1": "write"})
#: what an AMD unit could not use when it refused a request
_AMD_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "amdvi_page_fault": "page fault",
        "amdvi_mode_invalid": "levels",
        "amdvi_get_pte_hwerror": "page table",
        "amdvi_invalid_dte": "entry",
        "amdvi_dte_get_fail": "device table",
    }
)

#: what QEMU says of every command of its monitor, with which the registers are read as well
HEARTBEAT = "handle_hmp_command"
EVENTS = tuple(_TEXTS)
"""Names of the trace events, as QMP's ``trace-event-set-state`` takes them."""

_LINE = re.compile(r"(?:\d+@\d+\.\d+:)?([a-z0-9_]+) (.*)")


def decode_line(line: str, host_ns: int) -> DeviceEvent | None:
    """Decode one line; None: not one of :data:`EVENTS`.

    :param host_ns: when it was read.
    :raises QemuTraceError: it names a known event, and its text is not that of the event.
    """
    match = _LINE.fullmatch(line.rstrip("\r\n"))
    if match is None or match[1] not in _TEXTS:
        return None
    name = match[1]
    what, pattern = _TEXTS[name]
    text = re.fullmatch(pattern, match[2].rstrip())
    if text is None:
        raise QemuTraceError(f"'{line[:120]}' is not what '{name}' says", where="trace line")
    fields = text.groupdict()
    where, note = fields.get("where", ""), fields.get("note", _AMD_FAULTS.get(name, ""))
    offset, value = (int(fields.get(field, "0"), 16) for field in ("offset", "value"))
    if name in _AMD_FAULTS:
        value = int(text[1], 16)
    elif name == "amdvi_control_status":
        value = int(text[1], 16) & 1  # bit 0 enables (AMD 48882, 3.4.4)
    elif name == "vtd_reg_dmar_root":
        # address and mode, as RTADDR_REG holds them
        value = int(text[1], 16) | int(text[2]) << 10
    elif name == "vtd_dmar_fault":
        where, note = format_source_id(int(text[1], 16) & 0xFFFF), _ACCESS[text[4]]
        offset, value = int(text[2]), int(text[3], 16)
    where = where and f"0000:{where}"
    return DeviceEvent(
        host_ns=host_ns, what=what, where=where, offset=offset, value=value, note=note
    )
