# SPDX-License-Identifier: Apache-2.0
"""Guest RAM where huge folios are not to be had; the rest is seen by the vm tests."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from liveupdate.agent.mechanisms import shmem

SIZE = 4 << 20


def _row(zone: str, kind: str, **orders: str) -> str:
    counts = "".join(f"{orders.get(f'o{order}', '0'):>6} " for order in range(11))
    return f"Node    0, zone {zone:>8}, type {kind:>12} {counts}"


def _free_lists(*rows: str) -> str:
    """Return what pagetypeinfo_showfree() in mm/vmstat.c prints, and what follows it."""
    return "\n".join(
        (
            "Page block order: 9",
            "Pages per block:  512",
            "",
            "Free pages count per migrate type at order       0      1      2      3      4      5",
            *rows,
            "",
            "Number of blocks type     Unmovable      Movable  Reclaimable          CMA",
            "Node 0, zone    DMA32           17          813            2          192",
            "",
        )
    )


PLENTY = _free_lists(_row("DMA32", "Movable", o9="1", o10="200"))
FRAGMENTED = _free_lists(
    _row("DMA32", "Movable", o0="9", o8="766", o9="1"),
    _row("DMA32", "CMA", o9="34", o10="70"),
)


def _kernel(
    code: int, free_lists: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[str]:
    """Have a kernel with such free lists that refuses to mount; what it was asked is returned."""
    asked = []

    def mount(source: str, where: str, kind: str, options: str, *, remount: bool = False) -> None:
        asked.append(options)
        raise OSError(code, os.strerror(code), where)

    monkeypatch.setattr(shmem, "read_text", lambda _path: free_lists)
    monkeypatch.setattr(shmem, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(shmem, "mount", mount)
    return asked


def test_kernel_without_huge_pages_gives_a_memfd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = _kernel(errno.EINVAL, PLENTY, monkeypatch, tmp_path)
    fd = shmem.create("vm0", SIZE)
    try:
        assert os.fstat(fd).st_size == SIZE
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    assert list(tmp_path.iterdir()) == []
    assert len(asked) == 1


def test_any_other_refusal_is_told_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _kernel(errno.EPERM, PLENTY, monkeypatch, tmp_path)
    with pytest.raises(PermissionError):
        shmem.create("vm0", SIZE)
    assert list(tmp_path.iterdir()) == []


def test_fragmented_memory_gives_a_memfd_and_no_huge_folios(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = _kernel(errno.EPERM, FRAGMENTED, monkeypatch, tmp_path)
    fd = shmem.create("vm0", SIZE)
    os.close(fd)
    assert asked == []


@pytest.mark.parametrize(
    ("rows", "blocks"),
    [
        ((), 0),
        ((_row("DMA32", "Movable", o8="1000", o9="3", o10="2"),), 7),
        ((_row("DMA", "Unmovable", o9="1"), _row("Normal", "Reclaimable", o10=">100000")), 200_001),
        ((_row("DMA32", "CMA", o10="70"), _row("DMA32", "Isolate", o9="9")), 0),
    ],
)
def test_huge_blocks_are_counted_where_a_long_pin_may_stay(
    rows: tuple[str, ...], blocks: int
) -> None:
    assert shmem.count_huge(_free_lists(*rows)) == blocks
