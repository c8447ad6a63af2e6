# SPDX-License-Identifier: Apache-2.0
"""Decode the lines that QEMU's ``log`` trace backend writes for devices and IOMMUs.

One event per line: its name, a space, its text; with ``-msg timestamp=on`` a thread id and a time
stand before it. Names and texts are those of QEMU's ``hw/i386/trace-events``,
``hw/pci/trace-events``, ``hw/net/trace-events`` and ``hw/core/trace-events`` (10.0). Other lines
may be in the same file and are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


Decoder = Callable[[re.Match[str], int], DeviceEvent]


def _event(
    what: str, host_ns: int, *, where: str = "", offset: int = 0, value: int = 0, note: str = ""
) -> DeviceEvent:
    return DeviceEvent(
        host_ns=host_ns, what=what, where=where, offset=offset, value=value, note=note
    )


def _translation(match: re.Match[str], at: int) -> DeviceEvent:
    return _event(TRANSLATION, at, value=int(match[1]))


def _amd_control(match: re.Match[str], at: int) -> DeviceEvent:
    # it calls the control register a status; bit 0 enables (AMD 48882, 3.4.4)
    return _event(TRANSLATION, at, value=int(match[1], 16) & 1)


def _amd_fault(note: str) -> Decoder:
    def decode(match: re.Match[str], at: int) -> DeviceEvent:
        # of which device is not said
        return _event(FAULT, at, value=int(match[1], 16), note=note)

    return decode


def _root(match: re.Match[str], at: int) -> DeviceEvent:
    # the text gives address and mode, as RTADDR_REG holds them
    return _event(ROOT, at, value=int(match[1], 16) | int(match[2]) << 10)


def _fault(match: re.Match[str], at: int) -> DeviceEvent:
    where = f"0000:{format_source_id(int(match[1], 16) & 0xFFFF)}"
    access = "write" if match[4] == "1" else "read"
    return _event(
        FAULT, at, where=where, offset=int(match[2]), value=int(match[3], 16), note=access
    )


def _config_write(match: re.Match[str], at: int) -> DeviceEvent:
    return _event(
        CONFIG_WRITE,
        at,
        where=f"0000:{match[2]}",
        offset=int(match[3], 16),
        value=int(match[4], 16),
        note=match[1],
    )


def _power(match: re.Match[str], at: int) -> DeviceEvent:
    return _event(POWER, at, where=f"0000:{match[2]}", value=int(match[4]), note=match[1])


def _reset(match: re.Match[str], at: int) -> DeviceEvent:
    # instances have no name here, only a type
    return _event(RESET, at, note=match[1])


def _soft_reset(match: re.Match[str], at: int) -> DeviceEvent:
    return _event(SOFT_RESET, at, note=match[0])


_BDF = r"([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"
_DECODERS: Mapping[str, tuple[re.Pattern[str], Decoder]] = MappingProxyType(
    {
        "vtd_dmar_enable": (re.compile(r"enable ([01])"), _translation),
        "vtd_reg_dmar_root": (re.compile(r"addr 0x([0-9a-f]+) scalable ([01])"), _root),
        "vtd_dmar_fault": (
            re.compile(r"sid 0x([0-9a-f]+) fault (\d+) addr 0x([0-9a-f]+) write ([01])"),
            _fault,
        ),
        "amdvi_control_status": (re.compile(r"MMIO_STATUS state 0x([0-9a-f]+)"), _amd_control),
        "amdvi_page_fault": (
            re.compile(r"error: page fault accessing guest physical address 0x([0-9a-f]+)"),
            _amd_fault("page fault"),
        ),
        "amdvi_mode_invalid": (
            re.compile(r"error: translation level 0x[0-9a-f]+ translating addr 0x([0-9a-f]+)"),
            _amd_fault("levels"),
        ),
        "amdvi_get_pte_hwerror": (
            re.compile(r"hardware error eccessing PTE at addr 0x([0-9a-f]+)"),
            _amd_fault("page table"),
        ),
        "amdvi_invalid_dte": (
            re.compile(r"PTE entry at 0x([0-9a-f]+) is invalid"),
            _amd_fault("entry"),
        ),
        "amdvi_dte_get_fail": (
            re.compile(
                r"error: failed to access Device Entry devtab 0x([0-9a-f]+) offset"
                r" 0x[0-9a-f]+"
            ),
            _amd_fault("device table"),
        ),
        "pci_cfg_write": (
            re.compile(rf"(\S+) {_BDF} @0x([0-9a-f]+) <- 0x([0-9a-f]+)"),
            _config_write,
        ),
        "pci_pm_transition": (
            re.compile(rf"(\S+) {_BDF} PM transition D(\d)->D(\d)"),
            _power,
        ),
        "resettable_phase_hold_exec": (re.compile(r"obj=\S+\((.+)\) method=[01]"), _reset),
        # both NICs, e1000e and igb, say so in the same words
        "e1000e_core_ctrl_sw_reset": (re.compile(NIC_RESET), _soft_reset),
        "pci_nvme_mmio_stopped": (re.compile(NVME_RESET), _soft_reset),
    }
)

EVENTS = tuple(_DECODERS)
"""Names of the trace events, as QMP's ``trace-event-set-state`` takes them."""

_LINE = re.compile(r"(?:\d+@\d+\.\d+:)?([a-z0-9_]+) (.*)")


def decode_line(line: str, host_ns: int) -> DeviceEvent | None:
    """Decode one line; None: not one of :data:`EVENTS`.

    :param host_ns: when it was read.
    :raises QemuTraceError: it names a known event, and its text is not that of the event.
    """
    match = _LINE.fullmatch(line.rstrip("\r\n"))
    if match is None or match[1] not in _DECODERS:
        return None
    pattern, decode = _DECODERS[match[1]]
    text = pattern.fullmatch(match[2].rstrip())
    if text is None:
        raise QemuTraceError(f"'{line[:120]}' is not what '{match[1]}' says", where="trace line")
    return decode(text, host_ns)
