# SPDX-License-Identifier: Apache-2.0
"""What QEMU says of devices: trace lines and ``query-pci``, as QEMU 10.0.2 printed them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats import qemu_trace
from liveupdate.formats.iommu import parse_bdf
from liveupdate.formats.qemu_pci import find_bar, find_function, list_functions
from liveupdate.formats.qemu_trace import QemuTraceError, decode_line
from tests.support.query_pci import PCI

#: line, then what, where, offset, value, note
LINES = [
    ("vtd_dmar_enable enable 0", "translation", "", 0, 0, ""),
    ("amdvi_control_status MMIO_STATUS state 0x7ff1", "translation", "", 0, 1, ""),
    ("amdvi_control_status MMIO_STATUS state 0x1e", "translation", "", 0, 0, ""),
    (
        "amdvi_page_fault error: page fault accessing guest physical address 0x10010000",
        "fault",
        "",
        0,
        0x1001_0000,
        "page fault",
    ),
    (
        "amdvi_mode_invalid error: translation level 0x7 translating addr 0x9000",
        "fault",
        "",
        0,
        0x9000,
        "levels",
    ),
    (
        "amdvi_get_pte_hwerror hardware error eccessing PTE at addr 0x7e000",
        "fault",
        "",
        0,
        0x7_E000,
        "page table",
    ),
    ("amdvi_invalid_dte PTE entry at 0x7f00 is invalid ", "fault", "", 0, 0x7F00, "entry"),
    (
        "amdvi_dte_get_fail error: failed to access Device Entry devtab 0x7f000 offset 0x2000",
        "fault",
        "",
        0,
        0x7_F000,
        "device table",
    ),
    ("vtd_dmar_enable enable 1", "translation", "", 0, 1, ""),
    ("vtd_reg_dmar_root addr 0x1f9000 scalable 1", "root-pointer", "", 0, 0x1F9400, ""),
    (
        "vtd_dmar_fault sid 0x100 fault 6 addr 0xfffff000 write 0",
        "fault",
        "0000:01:00.0",
        6,
        0xFFFFF000,
        "read",
    ),
    (
        "pci_cfg_write igb 01:00.0 @0x4 <- 0x507",
        "config-write",
        "0000:01:00.0",
        4,
        0x507,
        "igb",
    ),
    (
        "pci_pm_transition igb 01:00.0 PM transition D0->D3",
        "power-state",
        "0000:01:00.0",
        0,
        3,
        "igb",
    ),
    ("resettable_phase_hold_exec obj=0x55bb(e1000e) method=1", "reset", "", 0, 0, "e1000e"),
    ("e1000e_core_ctrl_sw_reset Doing SW reset", "software-reset", "", 0, 0, "Doing SW reset"),
    (
        "pci_nvme_mmio_stopped cleared controller enable bit",
        *("software-reset", "", 0, 0, "cleared controller enable bit"),
    ),
]


@pytest.mark.parametrize("row", LINES, ids=[row[0].split()[0] for row in LINES])
@pytest.mark.parametrize("prefix", ["", "4711@1795472958.123456:"])
def test_lines_of_the_trace_are_decoded(
    row: tuple[str, str, str, int, int, str], prefix: str
) -> None:
    line, *expected = row
    event = decode_line(f"{prefix}{line}\r", 17)
    assert event is not None
    found = [event.what, event.where, event.offset, event.value, event.note]
    assert (found, event.host_ns) == (expected, 17)


def test_every_event_that_is_asked_for_is_decoded() -> None:
    assert {row[0].split()[0] for row in LINES} == set(qemu_trace.EVENTS)


@pytest.mark.parametrize(
    "line", ["", "pci_cfg_read igb 01:00.0 @0x4 -> 0x507", "Invalid read at addr 0x0", "x"]
)
def test_other_lines_are_none_of_ours(line: str) -> None:
    assert decode_line(line, 0) is None


@pytest.mark.parametrize(
    "line", ["vtd_dmar_enable enable", "pci_cfg_write igb 01:00.0 @0x4", "vtd_dmar_fault sid 1"]
)
def test_cut_lines_are_an_error_and_not_nothing(line: str) -> None:
    with pytest.raises(QemuTraceError, match="is not what"):
        decode_line(line + " ", 0)


@given(st.sampled_from([row[0] for row in LINES]), st.data())
def test_any_damaged_line_is_decoded_refused_or_passed_over(line: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(line)))
    damaged = line[:at] + data.draw(st.text(max_size=8)) + line[at:]
    try:
        decode_line(damaged.replace("\n", " "), 0)
    except QemuTraceError as error:
        assert error.where


def test_device_is_found_by_its_id_with_the_bridges_above() -> None:
    found = find_function(PCI, "dev-nic0")
    assert found is not None
    assert found.address == parse_bdf("01:00.0")
    assert found.bridges == (parse_bdf("00:10.0"),)
    assert find_function(PCI, "dev-nic1") is None
    assert len(list_functions(PCI)) == 3


@pytest.mark.parametrize(
    ("card", "number", "address"),
    [("dev-nic0", 0, 0xFEA00000), ("dev-nic0", 2, None), ("dev-nic0", 3, None), ("dev-x", 0, None)],
)
def test_bar_is_found_by_its_number_unless_it_is_ports_or_has_no_address(
    card: str, number: int, address: int | None
) -> None:
    assert find_bar(PCI, card, number) == address


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        [None, {"devices": 3}],
        [{"devices": [{"bus": "0", "slot": 0, "function": 0}]}],
        [{"devices": [{"bus": 0, "slot": 99, "function": 0}]}],
        [{"devices": [{"bus": 0, "slot": 1, "function": 0, "pci_bridge": "x"}]}],
    ],
)
def test_misshapen_answers_are_passed_over(answer: object) -> None:
    assert find_function(answer, "dev-nic0") is None


def test_bridges_without_end_are_cut() -> None:
    device: dict[str, object] = {"bus": 0, "slot": 1, "function": 0, "qdev_id": "x"}
    device["pci_bridge"] = {"devices": [device]}
    assert 1 < len(list_functions([{"devices": [device]}])) < 20
