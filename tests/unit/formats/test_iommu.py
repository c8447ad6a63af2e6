# SPDX-License-Identifier: Apache-2.0
"""Tests of the values that IOMMU decoders produce."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings

from liveupdate.formats.iommu import (
    READ,
    SUPERVISOR,
    WRITE,
    IommuFormatError,
    Requester,
    Run,
    RunBuilder,
    format_access,
    pack_runs,
    parse_bdf,
    unpack_runs,
)
from tests.support.iommu_tables import Page, merge_pages, page_lists


@pytest.mark.parametrize(
    ("text", "bus", "devfn", "segment"),
    [("0000:01:00.0", 1, 0, 0), ("ff:1f.7", 0xFF, 0xFF, 0), ("000a:80:02.3", 0x80, 0x13, 10)],
)
def test_bdf_is_parsed(text: str, bus: int, devfn: int, segment: int) -> None:
    requester = parse_bdf(text)
    assert requester == Requester(segment=segment, bus=bus, devfn=devfn)
    assert requester.bdf.endswith(text)


@pytest.mark.parametrize("text", ["", "01:00", "0000:01:20.0", "01:00.8", "x1:00.0", "1:00.0"])
def test_text_that_is_no_bdf_is_refused(text: str) -> None:
    with pytest.raises(IommuFormatError, match="PCI address"):
        parse_bdf(text)


def test_requesters_sort_with_and_without_pasid() -> None:
    plain, pasid = parse_bdf("01:00.0"), parse_bdf("01:00.0", pasid=0)
    assert sorted([pasid, plain], key=Requester.sort_key) == [plain, pasid]
    assert str(pasid) == "0000:01:00.0 pasid 0x0"


def test_access_is_formatted() -> None:
    assert [format_access(x) for x in (READ, WRITE, READ | WRITE | SUPERVISOR)] == [
        "r-",
        "-w",
        "rws",
    ]


@settings(max_examples=40, deadline=None)
@given(page_lists())
def test_builder_merges_as_far_as_possible(pages: list[Page]) -> None:
    builder = RunBuilder()
    for page in pages:
        builder.add(page.iova, page.phys, page.size, page.access, page.size)
    assert builder.finish() == merge_pages(pages)


@settings(max_examples=40, deadline=None)
@given(page_lists())
def test_runs_survive_packing(pages: list[Page]) -> None:
    runs = merge_pages(pages)
    assert unpack_runs(pack_runs(runs)) == runs


def test_one_altered_byte_never_reads_as_the_same_runs() -> None:
    runs = (Run(0x1000, 0x5000, 0x2000, 3, 4096), Run(0x20_0000, 0x40_0000, 1 << 21, 1, 1 << 21))
    data = bytearray(pack_runs(runs))
    for index in range(len(data)):
        data[index] ^= 1
        with contextlib.suppress(IommuFormatError):
            assert unpack_runs(bytes(data)) != runs
        data[index] ^= 1


@pytest.mark.parametrize(
    "runs",
    [
        (Run(0, 0, 0x1000, 3, 0),),
        (Run(0, 0, 0, 3, 4096),),
        (Run(0x800, 0, 0x1000, 3, 4096),),
        (Run(0, 0, 0x1000, 0, 4096),),
        (Run(0, 0, 0x1000, 8, 4096),),
        (Run(0, 0, 0x2000, 3, 4096), Run(0x1000, 0, 0x1000, 3, 4096)),
    ],
)
def test_packed_runs_that_make_no_sense_are_refused(runs: tuple[Run, ...]) -> None:
    with pytest.raises(IommuFormatError):
        unpack_runs(pack_runs(runs))


def test_packed_runs_cut_short_are_refused() -> None:
    with pytest.raises(IommuFormatError, match="multiple"):
        unpack_runs(pack_runs([Run(0, 0, 0x1000, 3, 4096)])[:-1])
