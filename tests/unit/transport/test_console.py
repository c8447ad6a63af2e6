# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.transport import console
from liveupdate.transport.console import (
    MAX_LINE_BYTES,
    ConsoleLine,
    LineSplitter,
)

BANNER = b"[    0.000000] Linux version 7.3.4-lu-a (liveupdate@liveupdate) #1 SMP\r\n"
BANNER_B = b"[    0.000000][    T0] Linux version 7.3.4-lu-b (liveupdate@liveupdate) #1 SMP\r\n"


def split(*chunks: bytes) -> list[ConsoleLine]:
    splitter = LineSplitter()
    lines = [
        line for number, chunk in enumerate(chunks) for line, _ in splitter.feed(chunk, number)
    ]
    return lines + [line for line, _ in splitter.flush()]


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([BANNER, BANNER_B, b"\n", b"\r", b"\0", b"[    1.0] half a li"]),
    ),
    max_size=12,
)


@given(PIECES, st.lists(st.integers(1, 40), max_size=30))
def test_nothing_is_lost_and_chunks_do_not_matter(pieces: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(pieces)
    chunks, at = [], 0
    for size in sizes:
        chunks.append(stream[at : at + size])
        at += size
    chunks.append(stream[at:])
    cut, whole = split(*chunks), split(stream)
    assert b"".join(line.data for line in cut) == stream
    assert [(line.boot, line.offset, line.data) for line in cut] == [
        (line.boot, line.offset, line.data) for line in whole
    ]


@given(PIECES)
def test_offsets_are_those_of_each_boots_own_log(pieces: list[bytes]) -> None:
    logs: dict[int, bytes] = {}
    for line in split(b"".join(pieces)):
        assert line.offset == len(logs.get(line.boot, b""))
        logs[line.boot] = logs.get(line.boot, b"") + line.data
    assert list(logs) == list(range(len(logs)))


def test_firmware_belongs_to_boot_zero() -> None:
    lines = split(b"SeaBIOS\r\n", BANNER, b"init\n")
    assert [line.boot for line in lines] == [0, 0, 0]


def test_a_banner_in_the_middle_of_a_cut_line_starts_a_boot() -> None:
    lines = split(BANNER, b"[    9.1] kexec_core: Starting new ker", BANNER_B)
    assert [(line.boot, line.data) for line in lines] == [
        (0, BANNER),
        (0, b"[    9.1] kexec_core: Starting new ker"),
        (1, BANNER_B),
    ]
    assert lines[2].offset == 0


def test_proc_version_on_the_console_is_no_boot() -> None:
    lines = split(BANNER, b"# Linux version 7.3.4\n", b"[    5.000000] Linux version 7.3.4\n")
    assert {line.boot for line in lines} == {0}


def test_a_line_without_end_is_let_go() -> None:
    lines = split(b"x" * (2 * MAX_LINE_BYTES + 1))
    assert [len(line.data) for line in lines] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 1]


def test_a_line_has_the_time_of_its_first_byte() -> None:
    assert [line.at_ns for line in split(b"a", b"b\nc", b"\n")] == [0, 1]


def test_banner_after_a_loaded_state_is_that_of_the_next_kernel() -> None:
    splitter = LineSplitter(booted=True)
    lines = [*splitter.feed(b"old kernel\n[    0.000000] Linux version 7.3.4\n", 1)]
    assert [(line.boot, is_banner) for line, is_banner in lines] == [(0, False), (1, True)]


# --- a host that prints without end


def test_forged_banners_make_no_more_kernels_than_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "BOOTS_MAX", 3)
    splitter = LineSplitter()
    fed = splitter.feed(b"[    0.000000] Linux version 7\n" * 50, 1)
    assert {line.boot for line, _ in fed} == {0, 1, 2, 3}


def test_a_log_has_an_end_and_the_console_is_watched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LOG_BYTES_MAX", 100)
    monkeypatch.setattr(console, "KEPT_BYTES_MAX", 60)
    ours, theirs = socket.socketpair()
    reader = console.Console(tmp_path / "socket", tmp_path)
    theirs.sendall(b"0123456789\n" * 50 + b"Kernel panic - not syncing: " + b"x" * 9000 + b"\n")
    theirs.close()
    reader._read(ours)
    ours.close()
    assert reader.write_error is not None and "100 bytes of console" in str(reader.write_error)
    assert (tmp_path / "boot-0" / "console.log").stat().st_size <= 100
    assert sum(len(line.data) for line in reader.lines()) <= 60
    assert reader.panic is not None
