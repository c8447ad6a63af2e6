# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from liveupdate.images.cpio import (
    Entry,
    compress,
    make_char_device,
    make_directory,
    make_initramfs,
    make_program,
    pack_cpio,
)


def test_same_input_gives_same_bytes() -> None:
    assert compress(make_initramfs(b"init")) == compress(make_initramfs(b"init"))
    # neither time nor name in the gzip header
    assert compress(b"")[3:8] == bytes(5)


def test_members_are_aligned_and_end_with_the_trailer() -> None:
    archive = pack_cpio([make_directory("dev"), make_program("init", b"12345")])
    assert len(archive) % 4 == 0
    assert archive.count(b"070701") == 3
    assert b"TRAILER!!!\0" in archive


def test_console_node_has_its_device_number() -> None:
    header = pack_cpio([make_char_device("console", 5, 1)])
    # mode, then rdevmajor and rdevminor: the tenth and eleventh field
    assert header[14:22] == b"00002180"
    assert header[78:94] == b"0000000500000001"


@pytest.mark.parametrize("name", ["", "/init", "TRAILER!!!"])
def test_impossible_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        pack_cpio([Entry(name=name, mode=0)])


def test_cpio_reads_it(tmp_path: Path) -> None:
    cpio = shutil.which("cpio")
    if not cpio:
        pytest.skip("no cpio; install cpio")
    archive = gzip.decompress(compress(make_initramfs(b"#!/init")))
    done = subprocess.run([cpio, "-t"], input=archive, capture_output=True, check=True)
    assert done.stdout.split() == [b"dev", b"dev/console", b"proc", b"sys", b"init"]
