# SPDX-License-Identifier: Apache-2.0
"""Tests of VT-d registers, fault records, interrupt entries and the monitor's memory dumps.

The dump is from QEMU 10.0.2, ``-machine q35 -device intel-iommu,intremap=on``, firmware not run.
"""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats.hmp_xp import MemoryDumpError, parse_xp
from liveupdate.formats.iommu import IommuFormatError
from liveupdate.formats.vtd.regs import (
    REGISTER_BYTES,
    decode_capabilities,
    decode_fault_records,
    is_clear,
)

QEMU_WORDS = """\
00000000fed90000: 0x00000010 0x00000000 0x222f0606 0x00d2008c\r
00000000fed90010: 0x00f00f4a 0x00000000 0x00000000 0x00000000\r
00000000fed90020: 0x00000000 0x00000000 0x00000000 0x00000000\r
00000000fed90030: 0x00000000 0x00000000 0x80000000 0x00000000\r
"""
QEMU_QUADS = """\
00000000fed90000: 0x0000000000000010 0x00d2008c222f0606\r
00000000fed90010: 0x0000000000f00f4a 0x0000000000000000\r
"""


def test_monitor_dump_of_words_and_quads_gives_the_same_bytes() -> None:
    words, quads = parse_xp(QEMU_WORDS, size=64), parse_xp(QEMU_QUADS)
    assert words[:32] == quads
    assert parse_xp("00000000fed90000: 0x10 0x00 0x00 0x00\r\n") == words[:4]
    assert parse_xp("00000000fed90000: 0x0010 0x0000") == words[:4]


def test_capabilities_of_qemu_are_decoded() -> None:
    capabilities = decode_capabilities(parse_xp(QEMU_WORDS))
    assert (capabilities.fault_offset, capabilities.fault_count) == (0x220, 1)


def test_queue_errors_and_overflow_are_not_clear() -> None:
    assert is_clear(0)
    for bit in (0, 4, 5, 6):
        assert not is_clear(1 << bit)


@pytest.mark.parametrize("data", [b"", bytes(REGISTER_BYTES - 1)])
def test_register_page_cut_short_is_refused(data: bytes) -> None:
    with pytest.raises(IommuFormatError, match="bytes of"):
        decode_capabilities(data)


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_hole_is_not_taken_for_a_unit(fill: bytes) -> None:
    with pytest.raises(IommuFormatError, match="no VT-d unit"):
        decode_capabilities(fill * REGISTER_BYTES)


def fault(*, low: int, source: int, reason: int, more: int = 0) -> bytes:
    return struct.pack("<QQ", low, source | reason << 32 | 1 << 63 | more)


def test_fault_records_are_decoded() -> None:
    data = (
        fault(low=0xDEAD_B123, source=0x0100, reason=6, more=1 << 62)
        + bytes(16)
        + fault(low=0x42 << 48, source=0x00FF, reason=0x22)
        + fault(low=0x1000, source=8, reason=0x58, more=1 << 31 | 0xABCDE << 40 | 1 << 28)
        + fault(low=0x42 << 48, source=8, reason=0x25)
    )
    dma, interrupt, pasid, compat = decode_fault_records(data)
    assert (dma.index, dma.address, dma.request, dma.pasid) == (0, 0xDEAD_B000, "read", None)
    assert str(dma) == "01:00.0 read 0x00000000deadb000: no read permission (0x6)"
    assert (interrupt.index, interrupt.interrupt_index, interrupt.address) == (2, 0x42, 0)
    assert str(interrupt).startswith("00:1f.7 interrupt 66:")
    assert (pasid.pasid, pasid.request) == (0xABCDE, "page-request")
    assert compat.interrupt_index is None
    assert "unknown" in str(decode_fault_records(fault(low=0, source=0, reason=0xEE))[0])


def test_fault_records_cut_short_are_refused() -> None:
    with pytest.raises(IommuFormatError):
        decode_fault_records(bytes(17))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("000ffffffffff000: Cannot access memory\r\n", "Cannot access"),
        ("00000000fed90000: 0x00000010 0x0000", "width"),
        ("00000000fed90000: 0x00000010 0x", "not a line"),
        ("00000000fed90000: 0x123\n", "width"),
        ("00000000fed90000: 0x00000010\n00000000fed90010: 0x00000000\n", "belongs"),
        ("unknown command: 'xp'", "not a line"),
    ],
)
def test_replies_that_are_no_dump_are_refused(text: str, message: str) -> None:
    with pytest.raises(MemoryDumpError, match=message):
        parse_xp(text)


def test_dump_of_another_size_is_refused() -> None:
    with pytest.raises(MemoryDumpError, match="instead of 64"):
        parse_xp(QEMU_QUADS, size=64)


@given(st.text(max_size=200))
def test_any_text_is_a_dump_or_refused(text: str) -> None:
    with contextlib.suppress(MemoryDumpError):
        assert parse_xp(text)


# ---------------------------------------------------------------- interrupt remapping
