# SPDX-License-Identifier: Apache-2.0
"""The agent's way into pkram: when it saves, and what it says when it gets no file system."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from liveupdate.agent.mechanisms import pkram
from liveupdate.agent.mechanisms.base import TOKEN_STATE, MechanismError
from liveupdate.core.paths import guest_images_dir
from liveupdate.core.units import MIB


@pytest.fixture
def mechanism(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pkram.PkramMechanism:
    """A mechanism whose file system is a directory of this machine."""
    monkeypatch.setattr(pkram, "MOUNT_POINT", str(tmp_path / "keep"))
    monkeypatch.setattr(pkram, "SYSFS", str(tmp_path))
    monkeypatch.setattr(pkram, "load", lambda *_: None)
    monkeypatch.setattr(pkram, "mount", lambda *_: None)
    return pkram.PkramMechanism()


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch, mechanism: pkram.PkramMechanism) -> list[bytes | None]:
    """What the state's file held at each save; None: there was no such file."""
    found: list[bytes | None] = []
    path = Path(mechanism.root, "lu.guest.vm0", str(TOKEN_STATE))

    def note(root: str) -> None:
        assert root == mechanism.root
        found.append(path.read_bytes() if path.exists() else None)

    monkeypatch.setattr(pkram, "save", note)
    return found


def test_ram_is_saved_with_the_guest_running_and_state_when_it_is_final(
    mechanism: pkram.PkramMechanism, saves: list[bytes | None]
) -> None:
    ram = mechanism.allocate_ram("vm0", 2 * MIB)
    out = mechanism.create("lu.guest.vm0")
    out.preserve_ram(ram)
    assert saves == [None]
    state = os.memfd_create("test")
    os.pwrite(state, b"empty", 0)
    out.preserve(state, TOKEN_STATE)
    os.pwrite(state, b"state", 0)
    out.seal()
    assert saves == [None, b"state"]
    assert mechanism.retrieve("lu.guest.vm0").retrieve_ram(2 * MIB).size == 2 * MIB


def test_save_that_the_kernel_refuses_says_what(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        pkram.save(str(tmp_path))  # no pkram
    assert caught.value.errno in (errno.ENOTTY, errno.EINVAL)


def test_metadata_are_what_the_module_says(mechanism: pkram.PkramMechanism, tmp_path: Path) -> None:
    (tmp_path / "metadata_bytes").write_text("12288\n")
    assert mechanism.metadata_bytes() == 12288


def test_full_is_a_limit(mechanism: pkram.PkramMechanism, monkeypatch: pytest.MonkeyPatch) -> None:
    """To take all memory would be another fault."""
    found = os.statvfs_result((4096, 4096, 1000, 900, 900, 0, 0, 0, 0, 255))
    mounts: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    monkeypatch.setattr(pkram, "mount", lambda *words, **more: mounts.append((*words, more)))
    mechanism.exhaust()
    assert mounts == [("pkram", mechanism.root, "pkram", "size=409600", {"remount": True})]


def test_what_the_kernel_said_is_in_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """errno alone would not tell a wrong version from a flipped bit."""

    def refuse(*_: str) -> None:
        raise OSError(errno.EUCLEAN, "Structure needs cleaning")

    monkeypatch.setattr(pkram, "load", lambda *_: None)
    monkeypatch.setattr(pkram, "mount", refuse)
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    said = "pkram: 'liveupdate' refused: version is 3, this kernel reads 1; memory of all saves"
    monkeypatch.setattr("liveupdate.agent.base.host.read_kmsg", lambda: ["other", said])
    with pytest.raises(MechanismError, match="cleaning.*version is 3, this kernel reads 1"):
        pkram.PkramMechanism()


def test_numbers_are_those_of_the_headers() -> None:
    include = guest_images_dir() / "modules/include"
    abi = (include / "linux/kho/abi/pkram.h").read_text()
    uapi = (include / "uapi/linux/pkram.h").read_text()
    magic = re.search(r"PKRAM_DIR_MAGIC\s+(0x[0-9a-f]+)ULL", abi)
    request = re.search(r"PKRAM_SAVE\s+_IO\('(.)', (0x[0-9a-f]+)\)", uapi)
    assert magic is not None
    assert request is not None
    assert int(magic[1], 16) == pkram.REQUIREMENTS["marker"]
    assert ord(request[1]) << 8 | int(request[2], 16) == pkram._SAVE
