# SPDX-License-Identifier: Apache-2.0
"""The breadcrumb's stream: what is written is read back, and nothing else is believed."""

from __future__ import annotations

from binascii import crc32
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.agent.mechanisms import stream
from liveupdate.agent.mechanisms.stream import (
    DATA,
    END,
    HEAD,
    LU_BUNDLE,
    LU_DATA,
    LU_END,
    LU_OPTIONAL,
    LU_RAM,
    LU_VERSION,
    RAM,
    RECORD,
    Parts,
    StreamError,
)

RAM0 = (0x100000000, 256 << 20)
RAM1 = (0x110000000, 128 << 20)
GOOD = {
    "lu.guest.vm0": Parts(RAM0, {2: b"state of vm0"}),
    "lu.guest.vm1": Parts(RAM1, {2: b"", 3: b"x" * 4097}),
    "lu.agent": Parts(None, {1: b"manifest"}),
}

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=63)
datas = st.dictionaries(st.integers(0, 2**64 - 1), st.binary(max_size=40), max_size=4)


def plain(sets: dict[str, Parts]) -> dict[str, object]:
    return {name: (parts.ram, parts.data) for name, parts in sets.items()}


def record(kind: int, body: bytes) -> bytes:
    return RECORD.pack(kind, len(body)) + body + bytes(-len(body) % 8)


def sign(records: Iterable[bytes], **wrong: int) -> bytes:
    """Return a stream of any records, with a head and an end that are right but for ``wrong``."""
    records = list(records)
    body = b"".join(records)
    total = wrong.get("total", HEAD.size + len(body) + END.size)
    version = wrong.get("version", stream.VERSION)
    head = HEAD.pack(LU_VERSION, 16, version, wrong.get("reserved", 0), total)
    count = wrong.get("count", len(records) + 1)
    return head + body + END.pack(LU_END, 8, count, crc32(head + body))


BUNDLE = record(LU_BUNDLE, b"lu.guest.vm0")
OTHER = record(LU_BUNDLE, b"lu.guest.vm1")


@given(st.dictionaries(names, datas, max_size=5), st.data())
def test_what_is_written_is_read_back(
    contents: dict[str, dict[int, bytes]], data: st.DataObject
) -> None:
    sets = {}
    for index, (name, held) in enumerate(contents.items()):
        pages = data.draw(st.one_of(st.none(), st.integers(1, 1 << 20)))
        ram = None if pages is None else ((index + 1) << 40, pages * 4096)
        sets[name] = Parts(ram, held)
    raw = stream.encode(sets)
    assert stream.read_head(raw[: HEAD.size], len(raw)) == len(raw)
    assert len(raw) % 8 == 0
    found = stream.decode(raw)
    assert plain(found) == plain(sets)
    assert list(found) == list(sets)


@given(st.integers(0, len(stream.encode(GOOD)) * 8 - 1))
def test_no_bit_can_be_flipped(bit: int) -> None:
    raw = bytearray(stream.encode(GOOD))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StreamError):
        stream.decode(bytes(raw))


@given(st.binary(max_size=200))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(StreamError):
        stream.decode(raw)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=48).map(lambda raw: raw[: len(raw) // 8 * 8]),
            st.builds(
                record,
                st.sampled_from([LU_VERSION, LU_BUNDLE, LU_RAM, LU_DATA, LU_END, LU_OPTIONAL, 0]),
                st.binary(max_size=24),
            ),
            st.builds(
                lambda start, size: record(LU_RAM, RAM.pack(start, size)),
                st.integers(0, 2**64 - 1),
                st.integers(0, 2**64 - 1),
            ),
            st.just(BUNDLE),
            st.just(OTHER),
        ),
        max_size=8,
    )
)
def test_a_right_checksum_makes_nonsense_no_better(records: list[bytes]) -> None:
    """Whatever is accepted is what it would be written as; nothing but StreamError is raised."""
    try:
        found = stream.decode(sign(records))
    except StreamError:
        return
    assert plain(stream.decode(stream.encode(found))) == plain(found)
    spans = sorted(parts.ram for parts in found.values() if parts.ram is not None)
    assert all(a + size <= b for (a, size), (b, _) in pairwise(spans))


@given(st.integers(0, len(stream.encode(GOOD)) - 1))
def test_every_shorter_stream_is_refused(length: int) -> None:
    with pytest.raises(StreamError):
        stream.decode(stream.encode(GOOD)[:length])


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (sign([], version=2), "version 2, this agent reads 1"),
        (sign([], reserved=1), "fields of another version"),
        (sign([], total=48), "says 48 bytes, there is room for 40"),
        (sign([], total=41), "says 41 bytes"),
        (sign([], total=32), "says 32 bytes"),
        (sign([]) + bytes(8), "says 40 bytes, there are 48"),
        (sign([BUNDLE], count=1), "more than the 1 records"),
        (sign([BUNDLE], count=3), "2 records, LU_END counts 3"),
        (sign([BUNDLE], count=5000), "5000 records, at most 4096"),
        (sign([BUNDLE, record(LU_RAM, RAM.pack(*RAM0))])[:-8] + bytes(8), "checksum"),
        (record(LU_BUNDLE, b"x") + sign([]), "does not begin with LU_VERSION"),
        (HEAD.pack(LU_VERSION, 16, 1, 0, 64) + bytes(40), "does not end with LU_END"),
        (sign([record(LU_RAM, RAM.pack(*RAM0))]), "LU_RAM comes before any LU_BUNDLE"),
        (sign([record(LU_DATA, DATA.pack(1))]), "LU_DATA comes before any LU_BUNDLE"),
        (sign([BUNDLE, BUNDLE]), "two preserved sets are called 'lu.guest.vm0'"),
        (sign([record(LU_BUNDLE, b"")]), "no name"),
        (sign([record(LU_BUNDLE, b"a b")]), "no name"),
        (sign([record(LU_BUNDLE, b"a\0")]), "no name"),
        (sign([record(LU_BUNDLE, b"x" * 64)]), "no name"),
        (sign([BUNDLE, record(LU_RAM, bytes(8))]), "LU_RAM of 8 bytes"),
        (sign([BUNDLE, *[record(LU_RAM, RAM.pack(*RAM0))] * 2]), "must come once"),
        (sign([BUNDLE, record(LU_DATA, DATA.pack(1)), record(LU_RAM, RAM.pack(*RAM0))]),
         "before LU_DATA"),
        (sign([BUNDLE, record(LU_RAM, RAM.pack(4096, 0))]), "are no RAM"),
        (sign([BUNDLE, record(LU_RAM, RAM.pack(4097, 4096))]), "are no RAM"),
        (sign([BUNDLE, record(LU_RAM, RAM.pack(2**64 - 4096, 8192))]), "are no RAM"),
        (sign([BUNDLE, record(LU_RAM, RAM.pack(*RAM0)), OTHER,
               record(LU_RAM, RAM.pack(RAM0[0] + RAM0[1] - 4096, 4096))]),
         "belongs to two preserved sets"),
        (sign([BUNDLE, record(LU_DATA, b"1234")]), "LU_DATA of 4 bytes"),
        (sign([BUNDLE, *[record(LU_DATA, DATA.pack(1))] * 2]), "token 1 is not above"),
        (sign([record(0x1234, b"")]), "type 0x1234 is not known and not optional"),
        (sign([record(LU_VERSION, bytes(16))]), "is not known"),
        (sign([RECORD.pack(LU_OPTIONAL | 1, 8)]), "reaches beyond LU_END"),
        (sign([RECORD.pack(LU_OPTIONAL | 1, 2**32 - 1)]), "reaches beyond LU_END"),
        (sign([RECORD.pack(LU_OPTIONAL | 1, 1) + b"\0\0\0\0\0\0\0\1"]), "not padded with zeroes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(raw: bytes, text: str) -> None:
    with pytest.raises(StreamError, match=text):
        stream.decode(raw)


def test_optional_record_that_is_not_known_is_skipped() -> None:
    more = record(LU_OPTIONAL | 0x1234, b"later")
    data = record(LU_DATA, DATA.pack(2) + b"state")
    found = stream.decode(sign([more, BUNDLE, more, data, more]))
    assert plain(found) == {"lu.guest.vm0": (None, {2: b"state"})}


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(StreamError, match="no name"):
        stream.encode({"ü": Parts()})
    with pytest.raises(StreamError, match="4097 records"):
        stream.encode({f"b{n}": Parts() for n in range(4096)})
