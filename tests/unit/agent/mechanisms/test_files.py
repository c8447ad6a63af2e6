# SPDX-License-Identifier: Apache-2.0
"""The agent's mechanisms on file systems: what goes in comes out once, and nothing stale does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liveupdate.agent.mechanisms import files, reserved_dax
from liveupdate.agent.mechanisms.base import TOKEN_STATE, MechanismError, open_mechanism, wanted
from liveupdate.agent.mechanisms.fault_tools import fill, take_token
from liveupdate.agent.mechanisms.files import FileMechanism
from liveupdate.core.units import MIB

SIZE = 4 * MIB


@pytest.fixture
def mechanism(tmp_path: Path) -> FileMechanism:
    return FileMechanism("test", str(tmp_path))


def memfd(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.pwrite(fd, content, 0)
    return fd


def test_ram_and_state_come_back(mechanism: FileMechanism, tmp_path: Path) -> None:
    ram = mechanism.allocate_ram("vm0", SIZE)
    assert os.fstat(ram.fd).st_blocks * 512 >= SIZE  # no holes
    os.pwrite(ram.fd, b"guest", 12345)
    out = mechanism.create("lu.guest.vm0")
    out.preserve_ram(ram)
    out.preserve(memfd(b"state" * 1000), TOKEN_STATE)
    out.seal()
    ram.close()

    incoming = FileMechanism("test", str(tmp_path)).retrieve("lu.guest.vm0")
    back = incoming.retrieve_ram(SIZE)
    assert os.pread(back.fd, 5, 12345) == b"guest"
    assert os.pread(incoming.retrieve(TOKEN_STATE), 10**6, 0) == b"state" * 1000
    assert (out.tokens, incoming.tokens) == (2, 2)


def test_what_was_written_after_preserve_is_carried_by_seal(mechanism: FileMechanism) -> None:
    fd = memfd(b"empty...")
    out = mechanism.create("lu.agent")
    out.preserve(fd, 1)
    os.pwrite(fd, b"manifest", 0)
    out.seal()
    assert os.pread(mechanism.retrieve("lu.agent").retrieve(1), 100, 0) == b"manifest"


def test_preserve_reserves_room_and_copies_nothing(
    mechanism: FileMechanism, tmp_path: Path
) -> None:
    """A copy that is made again by ``seal`` would be time of the blackout."""
    out = mechanism.create("lu.guest.vm0")
    out.preserve(memfd(b"state" * 1000), TOKEN_STATE)
    room = tmp_path / "lu.guest.vm0" / str(TOKEN_STATE)
    assert room.read_bytes() == bytes(5000)
    out.seal()
    assert room.read_bytes() == b"state" * 1000


def test_what_grew_shorter_is_carried_as_it_is(mechanism: FileMechanism) -> None:
    fd = memfd(b"long enough")
    out = mechanism.create("lu.agent")
    out.preserve(fd, 1)
    os.ftruncate(fd, 4)
    out.seal()
    assert os.pread(mechanism.retrieve("lu.agent").retrieve(1), 100, 0) == b"long"


def test_state_is_found_once_only(mechanism: FileMechanism) -> None:
    mechanism.create("lu.agent").preserve(memfd(b"x"), 1)
    mechanism.retrieve("lu.agent").retrieve(1)
    with pytest.raises(FileNotFoundError):
        mechanism.retrieve("lu.agent").retrieve(1)


def test_what_is_given_up_or_broken_off_is_not_found(mechanism: FileMechanism) -> None:
    given_up = mechanism.create("lu.agent")
    given_up.preserve(memfd(b"x"), 1)
    given_up.close()
    with pytest.raises(OSError, match="given up"):
        given_up.preserve(memfd(b"x"), 2)
    with pytest.raises(FileNotFoundError):
        mechanism.retrieve("lu.agent").retrieve(1)
    mechanism.create("lu.agent").preserve(memfd(b"old"), 1)
    mechanism.create("lu.agent")  # the next update
    with pytest.raises(FileNotFoundError):
        mechanism.retrieve("lu.agent").retrieve(1)


def test_finish_keeps_ram_and_nothing_else(mechanism: FileMechanism, tmp_path: Path) -> None:
    mechanism.allocate_ram("vm0", SIZE)
    mechanism.create("lu.guest.vm0").preserve(memfd(b"x"), 7)
    mechanism.retrieve("lu.guest.vm0").finish()
    assert os.listdir(tmp_path / "lu.guest.vm0") == ["ram"]


def test_ram_of_another_size_is_refused(mechanism: FileMechanism) -> None:
    mechanism.allocate_ram("vm0", SIZE)
    with pytest.raises(MechanismError, match="has 4194304 bytes, the manifest says 2097152"):
        mechanism.retrieve("lu.guest.vm0").retrieve_ram(SIZE // 2)


def test_ram_in_use_is_not_handed_out_again(mechanism: FileMechanism) -> None:
    ram = mechanism.allocate_ram("vm0", SIZE)
    with pytest.raises(FileExistsError):
        mechanism.allocate_ram("vm0", SIZE)
    mechanism.free_ram("vm0", ram)
    mechanism.allocate_ram("vm0", SIZE)


def test_taken_token_is_refused(mechanism: FileMechanism) -> None:
    out = mechanism.create("lu.guest.vm0")
    take_token(out, TOKEN_STATE)
    with pytest.raises(FileExistsError):
        out.preserve(memfd(b"x"), TOKEN_STATE)


def test_filling_ends_when_the_carrier_is_full(
    mechanism: FileMechanism, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 5 * MIB

    def fallocate(fd: int, offset: int, length: int) -> None:
        nonlocal left
        if length > left:
            raise OSError(28, "No space left on device")
        left -= length
        os.ftruncate(fd, length)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    before, after = fill(mechanism)
    assert before == f"{4 * MIB} bytes for guests, 0 beside them"
    assert after.endswith(f"{2 * MIB} more bytes are refused: No space left on device")
    assert left == 1 * MIB


def test_command_line_names_the_mechanism() -> None:
    assert wanted("a=1 quiet") == "luo-memfd"
    assert wanted("lu.mechanism=x lu.mechanism=reserved-dax") == "reserved-dax"
    with pytest.raises(MechanismError, match="no mechanism 'nonesuch'"):
        open_mechanism("nonesuch")
    with pytest.raises(MechanismError, match="memmap="):
        reserved_dax.DaxMechanism()


def head(magic: bytes, label: bytes) -> bytes:
    block = bytearray(4096)
    block[1024 + 0x38 : 1024 + 0x3A] = magic
    block[1024 + 0x78 : 1024 + 0x78 + len(label)] = label
    return bytes(block)


def test_only_what_is_ours_or_was_never_used_is_touched() -> None:
    assert reserved_dax.describe(bytes(4096)) is None
    assert reserved_dax.describe(head(b"\x53\xef", b"lu-keep")) == "lu-keep"
    with pytest.raises(MechanismError, match="'root', not that of liveupdate"):
        reserved_dax.describe(head(b"\x53\xef", b"root"))
    with pytest.raises(MechanismError, match="no ext4 and is not blank"):
        reserved_dax.describe(head(b"\x00\x01", b""))


def find_extents(fd: int, size: int, offset: int = 0) -> list[tuple[int, int]]:
    """Say of a file that its first byte is at its inode, as if that were memory."""
    return [(os.fstat(fd).st_ino + offset, size)]


def test_a_state_lies_in_the_file_of_its_token(
    mechanism: FileMechanism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "find_extents", find_extents)
    out = mechanism.create("lu.guest.vm0")
    fd = memfd(b"state")
    out.preserve(fd, TOKEN_STATE)
    out.seal()
    inode = (tmp_path / "lu.guest.vm0" / str(TOKEN_STATE)).stat().st_ino
    assert out.places(TOKEN_STATE, fd) == [(inode, 5)]
