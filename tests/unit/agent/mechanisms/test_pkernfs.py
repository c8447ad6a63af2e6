# SPDX-License-Identifier: Apache-2.0
"""The agent's way into pkernfs: the region it asks for, and what it says when it gets none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from liveupdate.agent.mechanisms import pkernfs
from liveupdate.agent.mechanisms.base import MechanismError


def test_region_is_the_one_that_the_command_line_names() -> None:
    line = "console=ttyS0 memmap=0x20000000$0x100000000 pkernfs.region=0x20000000!0x100000000 quiet"
    assert pkernfs.wanted_region(line) == "0x20000000!0x100000000"


@pytest.mark.parametrize("line", ["", "quiet", "memmap=1G$4G", "xpkernfs.region=1G!4G"])
def test_no_region_is_said(line: str) -> None:
    with pytest.raises(MechanismError, match=r"no pkernfs\.region="):
        pkernfs.wanted_region(line)


def test_what_the_kernel_said_is_in_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """errno alone would not tell a wrong version from a flipped bit."""
    loaded: list[tuple[str, str]] = []

    def refuse(*_: str) -> None:
        raise OSError(errno.EUCLEAN, "Structure needs cleaning")

    monkeypatch.setattr(pkernfs, "read_text", lambda path: "pkernfs.region=1G!4G")
    monkeypatch.setattr(pkernfs, "load", lambda *words: loaded.append(words))
    monkeypatch.setattr(pkernfs, "mount", refuse)
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    said = "pkernfs: region at 0x100000000 refused: version is 2, this kernel reads 1"
    monkeypatch.setattr("liveupdate.agent.base.host.read_kmsg", lambda: ["other", said])
    with pytest.raises(MechanismError, match="cleaning.*version is 2, this kernel reads 1"):
        pkernfs.PkernfsMechanism()
    assert loaded == [("pkernfs", "region=1G!4G")]


def test_size_of_the_region_is_what_the_module_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "region").write_text("0x20000000!0x100000000\n")
    monkeypatch.setattr(pkernfs, "SYSFS", str(tmp_path))
    mechanism = pkernfs.PkernfsMechanism.__new__(pkernfs.PkernfsMechanism)
    assert mechanism.region_bytes(1) == 0x20000000
