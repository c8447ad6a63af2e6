# SPDX-License-Identifier: Apache-2.0
"""The record of kept DMA, as far as the faults have to know it."""

from __future__ import annotations

import struct

import pytest

from liveupdate.formats import keep_dma
from tests.support.keep_dma_record import make_record


def test_record_is_whole_until_a_bit_flips() -> None:
    record = make_record()
    assert keep_dma.record_bytes(record) == len(record)
    assert keep_dma.is_whole(record)
    for at in (0, 30, 100, 159):
        assert not keep_dma.is_whole(record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :])


def test_another_version_is_all_that_changes() -> None:
    changed = keep_dma.with_version(make_record(), 7)
    assert keep_dma.is_whole(changed)
    assert changed == make_record(version=7)


@pytest.mark.parametrize(
    "header",
    [b"", bytes(96), make_record()[:95]],
    ids=["empty", "zeros", "cut"],
)
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        keep_dma.record_bytes(header)


def test_what_the_kernel_says_of_kept_tables_is_read() -> None:
    line = "[   61.2] keep-dma: preserved 142 table pages of 2 devices in 2269 us"
    kept = keep_dma.parse_preserved(line)
    assert kept is not None
    assert (kept.table_pages, kept.devices, kept.took_ns) == (142, 2, 2_269_000)
    for other in ("", "keep-dma: incoming record: 1 units", "keep-dma: preserved x table pages"):
        assert keep_dma.parse_preserved(other) is None


def test_impossible_size_is_refused() -> None:
    header = struct.pack("<QIIQII", keep_dma.MAGIC, 1, 96, 1 << 40, 0, 12).ljust(96, b"\0")
    with pytest.raises(ValueError, match="cannot be"):
        keep_dma.record_bytes(header)
