# SPDX-License-Identifier: Apache-2.0
"""The agent's mechanism on a pool: objects are reserved, copied once, sealed, and found once."""

from __future__ import annotations

import os

import pytest

from liveupdate.agent.mechanisms import pool as pool_module
from liveupdate.agent.mechanisms.base import TOKEN_STATE, MechanismError
from liveupdate.agent.mechanisms.pool import PoolMechanism, PoolSet, region_of
from liveupdate.core.units import MIB
from tests.support.fake_pool import FakePool, memfd

STATE = b"state" * 1000


def content(pool: FakePool, name: str) -> bytes:
    size, offset = pool.find(name)
    return os.pread(pool.fd, size, offset)


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def mechanism(pool: FakePool) -> PoolMechanism:
    made = PoolMechanism.__new__(PoolMechanism)
    made.name, made.pool = "pool", pool
    return made


def test_state_is_copied_once_and_comes_back_once(mechanism: PoolMechanism, pool: FakePool) -> None:
    ram = mechanism.allocate_ram("vm0", 2 * MIB)
    out = mechanism.create("lu.guest.vm0")
    out.preserve_ram(ram)
    out.preserve(memfd(STATE), TOKEN_STATE)
    # reserved only: a copy that is made again by ``seal`` would be time of the blackout
    assert content(pool, "lu.guest.vm0/2") == b""
    out.seal()
    assert content(pool, "lu.guest.vm0/2") == STATE
    assert pool.sealed == ["lu.guest.vm0/2"]

    incoming = mechanism.retrieve("lu.guest.vm0")
    assert incoming.retrieve_ram(2 * MIB).offset == ram.offset
    assert os.pread(incoming.retrieve(TOKEN_STATE), 10**6, 0) == STATE
    with pytest.raises(FileNotFoundError):
        incoming.retrieve(TOKEN_STATE)


def test_what_was_never_sealed_is_not_believed(mechanism: PoolMechanism) -> None:
    mechanism.create("lu.agent").preserve(memfd(STATE), 1)
    with pytest.raises(MechanismError, match="never sealed"):
        mechanism.retrieve("lu.agent").retrieve(1)


def test_content_that_became_too_short_is_said(mechanism: PoolMechanism) -> None:
    fd = memfd(STATE)
    out = mechanism.create("lu.agent")
    out.preserve(fd, 1)
    os.ftruncate(fd, 10)
    with pytest.raises(OSError, match="copied 10 of 5000 bytes"):
        out.seal()


def test_what_is_given_up_leaves_ram_only(mechanism: PoolMechanism, pool: FakePool) -> None:
    mechanism.allocate_ram("vm0", 2 * MIB)
    out = mechanism.create("lu.guest.vm0")
    out.preserve(memfd(STATE), TOKEN_STATE)
    out.close()
    assert pool.names() == ["lu.guest.vm0/ram"]
    with pytest.raises(OSError, match="given up"):
        out.seal()


def test_taken_token_and_other_size_are_refused(mechanism: PoolMechanism, pool: FakePool) -> None:
    mechanism.allocate_ram("vm0", 2 * MIB)
    out = PoolSet(pool, "lu.guest.vm0", incoming=False)
    out.preserve(memfd(STATE), TOKEN_STATE)
    with pytest.raises(FileExistsError):
        out.preserve(memfd(STATE), TOKEN_STATE)
    with pytest.raises(MechanismError, match="the manifest says 4194304"):
        mechanism.retrieve("lu.guest.vm0").retrieve_ram(4 * MIB)
    with pytest.raises(FileNotFoundError):
        mechanism.retrieve("lu.guest.vm1")


def test_metadata_are_what_is_neither_free_nor_content(mechanism: PoolMechanism) -> None:
    assert mechanism.metadata_bytes() == 2 * MIB
    mechanism.allocate_ram("vm0", 4 * MIB)
    assert mechanism.metadata_bytes() == 2 * MIB
    mechanism.create("lu.agent").preserve(memfd(STATE), 1)
    assert mechanism.metadata_bytes() == 4 * MIB - len(STATE)


def test_region_is_the_one_on_the_command_line() -> None:
    assert region_of("quiet memmap=384M$0x60000000") == "start=0x60000000 size=384M"
    with pytest.raises(MechanismError, match="has 0 times"):
        region_of("memmap=384M!0x60000000")
    with pytest.raises(MechanismError, match="has 2 times"):
        region_of("memmap=1M$1M memmap=1M$4M")


def find_extents(fd: int, size: int, offset: int = 0) -> list[tuple[int, int]]:
    """Say of a file that its first byte is at its inode, as if that were memory."""
    return [(os.fstat(fd).st_ino + offset, size)]


def test_a_state_lies_in_the_object_of_its_token(
    mechanism: PoolMechanism, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "find_extents", find_extents)
    mechanism.allocate_ram("vm0", 2 * MIB)
    out = mechanism.create("lu.guest.vm0")
    fd = memfd(STATE)
    out.preserve(fd, TOKEN_STATE)
    out.seal()
    assert out.places(TOKEN_STATE, fd) == [(os.fstat(pool.fd).st_ino + 2 * MIB, len(STATE))]
