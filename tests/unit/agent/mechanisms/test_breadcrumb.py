# SPDX-License-Identifier: Apache-2.0
"""The agent's mechanism of the breadcrumb: what one kernel leaves, the next one finds, once."""

from __future__ import annotations

import os

import pytest

from liveupdate.agent.mechanisms import breadcrumb, fault_tools, modules, stream
from liveupdate.agent.mechanisms import pool as pool_module
from liveupdate.agent.mechanisms.base import TOKEN_STATE, MechanismError
from liveupdate.agent.mechanisms.breadcrumb import BreadcrumbMechanism
from liveupdate.core.units import MIB
from liveupdate.planning.mechanisms import MECHANISMS
from tests.support.fake_pool import FakePool, memfd

START = 0x100000000
STATE = b"state" * 1000
REGION = f"memmap=384M${START:#x}"


class Kernels:
    """One kernel after the other, on one pool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = FakePool()
        self.pool.start = START
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(modules, "load", lambda *_: None)
        monkeypatch.setattr(pool_module, "Pool", lambda: self.pool)

    def boot(self, words: str = "") -> BreadcrumbMechanism:
        self._monkeypatch.setattr(breadcrumb, "read_text", lambda path: f"{REGION} {words}")
        return BreadcrumbMechanism()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    return Kernels(monkeypatch)


def leave(kernels: Kernels, mechanism: BreadcrumbMechanism) -> str:
    """Have a guest and the agent's manifest in the stream, as a jump does."""
    ram = mechanism.allocate_ram("vm0", 2 * MIB)
    agent, guest = mechanism.create("lu.agent"), mechanism.create("lu.guest.vm0")
    agent.preserve(memfd(b"manifest"), 1)
    guest.preserve_ram(ram)
    guest.preserve(memfd(STATE), TOKEN_STATE)
    guest.seal()
    agent.seal()
    return mechanism.next_words()


def head(kernels: Kernels) -> bytes:
    return os.pread(kernels.pool.fd, 8, kernels.pool.find(breadcrumb.OBJECT)[1])


def test_what_one_kernel_leaves_the_next_one_finds_once(kernels: Kernels) -> None:
    words = leave(kernels, kernels.boot())
    assert words == f"lu.breadcrumb={START + kernels.pool.find(breadcrumb.OBJECT)[1]:#x}"
    following = kernels.boot(words)
    agent = following.retrieve("lu.agent")
    assert os.pread(agent.retrieve(1), 99, 0) == b"manifest"
    guest = following.retrieve("lu.guest.vm0")
    ram = guest.retrieve_ram(2 * MIB)
    assert ram.offset == kernels.pool.find("lu.guest.vm0/ram")[1]
    assert os.pread(guest.retrieve(TOKEN_STATE), 10**6, 0) == STATE
    for missing in (lambda: guest.retrieve(TOKEN_STATE), lambda: following.retrieve("lu.agent")):
        with pytest.raises(FileNotFoundError):
            missing()
    # an agent that is started anew in the same boot finds that all has been taken
    with pytest.raises(FileNotFoundError):
        kernels.boot(words).retrieve("lu.agent")
    guest.finish()
    assert following.next_words() == words


def test_kernel_that_was_told_of_none_believes_none(kernels: Kernels) -> None:
    words = leave(kernels, kernels.boot())
    with pytest.raises(FileNotFoundError):
        kernels.boot().retrieve("lu.agent")
    kernels.boot(words).retrieve("lu.agent")  # it is left alone until something is preserved


@pytest.mark.parametrize("wrong", ["0x100000000", "0x0", "0xffffffffffffffffffff", "-0x1"])
def test_pointer_to_something_else_is_refused(kernels: Kernels, wrong: str) -> None:
    leave(kernels, kernels.boot())
    with pytest.raises(MechanismError, match="the pool has no stream there"):
        kernels.boot(f"lu.breadcrumb={wrong if wrong != '0x100000000' else hex(START + 4096)}")


@pytest.mark.parametrize("words", ["lu.breadcrumb=x", "lu.breadcrumb=", "lu.breadcrumb=1 " * 2])
def test_word_that_is_no_pointer_is_refused(kernels: Kernels, words: str) -> None:
    with pytest.raises(MechanismError, match="is not one address"):
        kernels.boot(words)


def test_stream_that_cannot_be_believed_is_left_alone(kernels: Kernels) -> None:
    words = leave(kernels, kernels.boot())
    at = kernels.pool.find(breadcrumb.OBJECT)[1]
    found = os.pread(kernels.pool.fd, 64, at)
    mechanism = MECHANISMS["breadcrumb"]
    assert int.from_bytes(found[:8], "little") == mechanism.marker
    for place, text in ((mechanism.corrupt_at, "checksum"), (mechanism.version_at, "version 3")):
        os.pwrite(kernels.pool.fd, bytes([found[place] ^ 2]), at + place)
        with pytest.raises(MechanismError, match=f"is refused: .*{text}.*; it is left alone"):
            kernels.boot(words)
        assert os.pread(kernels.pool.fd, 8, at) == found[:8]
        os.pwrite(kernels.pool.fd, found[place : place + 1], at + place)
    kernels.boot(words).retrieve("lu.agent")


def test_ram_must_be_an_object_of_the_pool(kernels: Kernels) -> None:
    words = leave(kernels, kernels.boot())
    guest = kernels.boot(words).retrieve("lu.guest.vm0")
    with pytest.raises(MechanismError, match="the manifest says 4194304"):
        guest.retrieve_ram(4 * MIB)
    size, offset = kernels.pool.held.pop("lu.guest.vm0/ram")
    kernels.pool.held["elsewhere"] = (size, offset + 4096)
    with pytest.raises(MechanismError, match="the pool has no object of 2097152 bytes at"):
        guest.retrieve_ram(2 * MIB)


def test_stream_of_an_update_that_is_given_up_is_none(kernels: Kernels) -> None:
    mechanism = kernels.boot()
    out = mechanism.create("lu.agent")
    out.preserve(memfd(b"manifest"), 1)
    out.seal()
    assert head(kernels) != bytes(8)
    out.close()
    assert head(kernels) == bytes(8)
    with pytest.raises(OSError, match="given up"):
        out.preserve(memfd(b"x"), 2)
    with pytest.raises(FileNotFoundError):
        kernels.boot(mechanism.next_words()).retrieve("lu.agent")


def test_token_that_is_taken_and_a_full_stream_are_refused(kernels: Kernels) -> None:
    mechanism = kernels.boot()
    out = mechanism.create("lu.agent")
    out.preserve(memfd(b"manifest"), 1)
    with pytest.raises(FileExistsError):
        out.preserve(memfd(b"again"), 1)
    large = memfd(b"")
    os.ftruncate(large, breadcrumb.ROOM_BYTES)
    with pytest.raises(OSError, match="No space left"):
        out.preserve(large, 2)
    mechanism.exhaust()
    with pytest.raises(OSError, match="No space left"):
        out.preserve(memfd(b"small"), 2)


def test_filling_the_region_fills_the_stream(kernels: Kernels) -> None:
    mechanism = kernels.boot()

    def refuse(guest: str, size: int) -> None:
        raise OSError(28, "No space left on device")

    mechanism.allocate_ram = refuse  # type: ignore[method-assign, assignment]
    before, after = fault_tools.fill(mechanism)
    assert before == f"0 bytes for guests, {mechanism._room} beside them"
    assert after.startswith("0 bytes for guests, 0 beside them; 2097152 more bytes are refused")
    with pytest.raises(OSError, match="No space left"):
        mechanism.create("lu.guest.vm0").preserve(memfd(STATE), TOKEN_STATE)


def test_kernel_that_is_misled_is_pointed_at_no_stream(kernels: Kernels) -> None:
    mechanism = kernels.boot()
    words = leave(kernels, mechanism)
    mechanism.mislead()
    assert mechanism.next_words() != words
    with pytest.raises(MechanismError, match="the pool has no stream there"):
        kernels.boot(mechanism.next_words())
    assert head(kernels) != bytes(8)  # left alone


def test_hops_in_a_row_use_one_object(kernels: Kernels) -> None:
    mechanism, words = kernels.boot(), ""
    for hop in range(3):
        out = mechanism.create("lu.agent")
        out.preserve(memfd(b"manifest %d" % hop), 1)
        out.seal()
        words = mechanism.next_words()
        mechanism = kernels.boot(words)
        incoming = mechanism.retrieve("lu.agent")
        assert os.pread(incoming.retrieve(1), 99, 0) == b"manifest %d" % hop
        incoming.finish()
        incoming.close()
    assert kernels.pool.names() == [breadcrumb.OBJECT]


def test_room_of_the_stream_is_metadata(kernels: Kernels) -> None:
    assert kernels.boot().metadata_bytes() == 2 * MIB + breadcrumb.ROOM_BYTES


def test_longest_stream_is_within_what_is_accounted_for() -> None:
    overhead = stream.RECORDS_MAX * (stream.RECORD.size + stream.DATA.size + 8 + stream.NAME_MAX)
    assert overhead < MIB


def test_a_state_lies_in_the_stream_where_it_stays_when_more_is_sealed(kernels: Kernels) -> None:
    mechanism = kernels.boot()
    agent, fds = mechanism.create("lu.agent"), {}
    agent.preserve(memfd(b"manifest"), 1)
    guests = {name: mechanism.create(f"lu.guest.{name}") for name in ("a", "vm1")}
    for name, guest in guests.items():
        guest.preserve_ram(mechanism.allocate_ram(name, 2 * MIB))
        fds[name] = memfd(name.encode() * 333)
        guest.preserve(fds[name], TOKEN_STATE)
        guest.seal()
    agent.seal()
    for name, guest in guests.items():
        ((address, size),) = guest.places(TOKEN_STATE, fds[name])
        assert os.pread(kernels.pool.fd, size, address - START) == name.encode() * 333
