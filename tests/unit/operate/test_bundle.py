# SPDX-License-Identifier: Apache-2.0
"""A bundle for the change ticket: what was altered in it is refused, wherever that was."""

from __future__ import annotations

import random
from pathlib import Path

from liveupdate.core.errors import EvidenceError
from liveupdate.operate.bundle import make_bundle, unpack

#: every so many bytes one is damaged
STEP = 211


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_any_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "20260101T000000Z-abcdef"
    (run / "evidence").mkdir(parents=True)
    # some that compress badly and some that compress well: streams break in different ways
    (run / "evidence" / "digests").write_bytes(random.Random(1).randbytes(30_000))
    (run / "journal.jsonl").write_text('{"kind": "end"}\n' * 20_000)
    bundle = make_bundle(run).path
    good = bundle.read_bytes()
    expected = contents(run)
    out = tmp_path / "good"
    out.mkdir()
    assert contents(unpack(bundle, out)) == expected
    refused = 0
    for at in range(0, len(good), STEP):
        damaged = bytearray(good)
        damaged[at] ^= 1 << at % 8
        bundle.write_bytes(damaged)
        out = tmp_path / f"out-{at}"
        out.mkdir()
        try:
            unpacked = unpack(bundle, out)
        except EvidenceError:
            refused += 1
        else:  # gzip's own time stamp, say
            assert contents(unpacked) == expected
    assert refused > len(good) // STEP * 9 // 10
