# SPDX-License-Identifier: Apache-2.0
"""What the agent makes of what the kernel says."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveupdate.agent.base import host

#: the whole unit suite has seconds, and shares its CPUs
QUICK = settings(deadline=None, max_examples=40)

#: captured from linux 7.3.4 with kho=on liveupdate=on, second kernel of a chain
WARM_LOG = [
    "Linux version 7.3.4-lu-b (liveupdate@liveupdate) #2 SMP\n",
    "KHO: found kexec handover data.\n",
    "luo_core: Retrieved live update data, liveupdate number: 2\n",
    "KHO: exec from: 7.3.4-lu-a (count 2)\n",
]


def test_log_of_a_warm_boot() -> None:
    assert host.parse_handover_log(WARM_LOG) == (True, 2, 2)


def test_log_of_a_cold_boot() -> None:
    assert host.parse_handover_log(WARM_LOG[:1]) == (False, 0, None)


@QUICK
@given(st.lists(st.text()))
def test_any_log_is_survived(messages: list[str]) -> None:
    found, generation, number = host.parse_handover_log([f"KHO: exec from: {m}" for m in messages])
    assert (found, number) == (False, None)
    assert generation >= 0
    found, generation, number = host.parse_handover_log(
        [f"x liveupdate number: {m}" for m in messages]
    )
    assert (found, generation) == (False, 0)
    assert number is None or number >= 0


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(desc), kind) + pad(name) + pad(desc)


def test_build_id_is_found_among_other_notes() -> None:
    notes = note(b"Xen\0", 6, b"linux") + note(b"GNU\0", 3, bytes(range(20)))
    assert host.build_id(notes) == bytes(range(20)).hex()


@QUICK
@given(st.binary(max_size=300))
def test_any_notes_are_survived(notes: bytes) -> None:
    assert bytes.fromhex(host.build_id(notes)) in notes


def test_mem_free() -> None:
    assert host.meminfo_bytes("MemTotal: 9 kB\nMemFree:      12 kB\n", "MemFree") == 12 << 10
    with pytest.raises(ValueError, match="MemFree"):
        host.meminfo_bytes("MemTotal: 9 kB\n", "MemFree")


def test_page_frames_has_one_entry_per_page() -> None:
    fd = os.memfd_create("pages")
    try:
        os.ftruncate(fd, 37 * 4096)
        frames = host.page_frames(fd, 30 * 4096, offset=7 * 4096)
    finally:
        os.close(fd)
    assert len(frames) == 30  # all 0 without CAP_SYS_ADMIN


def test_extents_join_frames_that_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "page_frames", lambda *_args: [7, 8, 3, 4])
    assert host.find_extents(-1, 3 * 4096 + 10) == [(7 * 4096, 8192), (3 * 4096, 4096 + 10)]
    monkeypatch.setattr(host, "page_frames", lambda *_args: [7, 0])
    with pytest.raises(OSError, match="page 1 has no frame"):
        host.find_extents(-1, 8192)


def test_missing_disk_names_those_that_are_there() -> None:
    assert host.find_disk("/dev/vdz") == "/dev/vdz"
    with pytest.raises(FileNotFoundError, match="no disk with serial 'nowhere'"):
        host.find_disk("nowhere")


@pytest.mark.parametrize("name", ["scratch_len", "bootmem_len"])
def test_scratch_has_its_size_under_either_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "KHO_DEBUGFS", str(tmp_path))
    assert host.scratch_bytes() is None
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("0x1000\n0x2000\n")
    assert host.scratch_bytes() == 0x3000
