# SPDX-License-Identifier: Apache-2.0
"""A bundle for the change ticket: what was altered in it is refused, wherever that was."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from liveupdate.core.errors import EvidenceError
from liveupdate.evidence import RunDir
from liveupdate.evidence.chain import read_seal
from liveupdate.operate.bundle import SEAL_DIGITS, make_bundle, unpack
from tests.support.evidence_builder import make_plan

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


def test_it_is_private_and_named_after_the_seal(tmp_path: Path) -> None:
    record = RunDir.create(tmp_path, plan=make_plan(), scenario="")
    record.close()
    bundle = make_bundle(record.path).path
    assert read_seal(record.path)[:SEAL_DIGITS] in bundle.name
    assert bundle.stat().st_mode & 0o777 == 0o600
    other = bundle.rename(bundle.with_name(f"x.{'0' * SEAL_DIGITS}.bundle.tar.gz"))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EvidenceError, match="another seal"):
        unpack(other, out)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.SYMTYPE])
def test_members_that_are_no_plain_files_are_refused_unread(tmp_path: Path, kind: bytes) -> None:
    """A header that describes the next one may be of any size, a sparse member, too."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("manifest.json")
        info.type, info.size = kind, 1 << 32
        tar.addfile(info)
    path = tmp_path / "x.bundle.tar.gz"
    path.write_bytes(out.getvalue())
    with pytest.raises(EvidenceError, match="no plain file"):
        unpack(path, tmp_path)


def test_more_than_there_is_room_for_is_refused(tmp_path: Path) -> None:
    manifest = {"bundle": 1, "run": "x", "files": {"a": {"bytes": 60 << 30, "sha256": "0" * 64}}}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("manifest.json")
        raw = json.dumps(manifest).encode()
        info.size = len(raw)
        tar.addfile(info, io.BytesIO(raw))
    path = tmp_path / "x.bundle.tar.gz"
    path.write_bytes(out.getvalue())
    with pytest.raises(EvidenceError, match=r"there are less|is missing"):
        unpack(path, tmp_path)
