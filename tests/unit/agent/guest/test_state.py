# SPDX-License-Identifier: Apache-2.0
"""A VM state is loaded only if it is what was saved; a fault can cut it between the two."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from liveupdate.agent.guest import fault_tools
from liveupdate.agent.guest import guests as module
from liveupdate.agent.guest.guests import Guest
from liveupdate.agent.guest.spec import GuestSpec
from liveupdate.agent.guest.state import StateSum, say_places, sum_up
from liveupdate.agent.guest.vmm_qemu import QemuVmm, VmmError
from liveupdate.agent.mechanisms.base import PreservedSet, Ram
from liveupdate.agent.mechanisms.files import FileMechanism

SPEC = {"name": "vm0", "index": 0, "memory_bytes": 16 << 20}
STATE = bytes(range(256)) * 70
PADDED = STATE.ljust(20480, b"\0")
DIGEST = hashlib.blake2b(PADDED, digest_size=16).hexdigest()


class FakeVmm:
    """Saves STATE, and notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.ending = False

    def __getattr__(self, name: str) -> object:
        return lambda *_args, **_kw: self.calls.append(name)

    def save(self, state: int) -> int:
        return os.pwrite(state, STATE, 0)


class FakeSet:
    """Notes what is preserved, at the moment at which it is."""

    def __init__(self) -> None:
        self.preserved = b""

    def preserve(self, fd: int, _token: int) -> None:
        self.preserved = os.pread(fd, 1 << 20, 0)

    def seal(self) -> None:
        pass

    def places(self, _token: int, _source: int) -> list[tuple[int, int]]:
        return [(0x1000, len(self.preserved))]


@pytest.fixture
def events() -> list[tuple[str, dict[str, object]]]:
    return []


@pytest.fixture
def guest(events: list[tuple[str, dict[str, object]]]) -> Iterator[Guest]:
    made = Guest(
        GuestSpec(SPEC),
        FileMechanism("none", "/nonexistent"),
        SimpleNamespace(open_tap=lambda _name: os.open("/dev/null", os.O_RDONLY)),  # type: ignore[arg-type]
        lambda name, data: events.append((name, data)),
        lambda _guest: None,
    )
    made.session = cast(PreservedSet, FakeSet())
    made.vmm = cast(QemuVmm, FakeVmm())
    made.ram = Ram(os.memfd_create("vm0"), 16 << 20)
    made.state = os.memfd_create("state")
    yield made
    made.ram.close()
    os.close(made.state)


def no_fault(_guest: Guest, _moment: str) -> None:
    pass


def told(events: list[tuple[str, dict[str, object]]], name: str) -> dict[str, object]:
    (found,) = [data for event, data in events if event == name]
    return found


def test_what_is_preserved_is_digested_with_its_padding(
    guest: Guest, events: list[tuple[str, dict[str, object]]]
) -> None:
    guest.freeze(no_fault)
    assert told(events, "saved")["state_digest"] == DIGEST
    assert told(events, "saved")["state_bytes"] == 20480
    assert told(events, "preserved")["places"] == [(0x1000, 20480)]
    assert vars(guest.entry().state) == {"size": 20480, "digest": DIGEST}
    assert cast(FakeSet, guest.session).preserved == PADDED


def test_the_state_that_was_saved_is_loaded(
    guest: Guest,
    events: list[tuple[str, dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "find_disk", lambda _name: "/dev/vdc")
    guest.freeze(no_fault)
    guest.resume()
    assert told(events, "state-read")["state_digest"] == DIGEST
    assert cast(FakeVmm, guest.vmm).calls[-3:] == ["greet", "load", "cont"]


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        (StateSum(20480, "0" * 32), f"digest is {DIGEST}, saved was {'0' * 32}"),
        (StateSum(24576, DIGEST), "20480 bytes of the VM state came over, saved were 24576"),
        (StateSum(24576, ""), "saved were 24576"),  # of an agent that took no digest
    ],
)
def test_another_state_is_not_loaded_and_its_vmm_is_ended(
    guest: Guest,
    events: list[tuple[str, dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
    saved: StateSum,
    why: str,
) -> None:
    monkeypatch.setattr(module, "find_disk", lambda _name: "/dev/vdc")
    os.pwrite(guest.state, PADDED, 0)
    guest.saved = saved
    with pytest.raises(VmmError, match=why) as caught:
        guest.resume()
    assert caught.value.kind == "state"
    vmm = cast(FakeVmm, guest.vmm)
    assert not {"greet", "load", "cont"} & set(vmm.calls)
    assert vmm.calls[-2:] == ["kill", "wait_end"] and vmm.ending
    assert told(events, "state-read")["state_bytes"] == 20480


def test_a_state_of_an_agent_that_took_no_digest_is_loaded() -> None:
    assert StateSum(20480, "").compare(StateSum(20480, DIGEST)) is None


def test_a_state_that_is_cut_is_preserved_short_and_known_whole(
    guest: Guest, events: list[tuple[str, dict[str, object]]]
) -> None:
    fault: dict[str, object] = {"fault": "cut-state", "guest": "vm0"}
    guest.freeze(lambda guest, moment: fault_tools.apply_at_freeze(guest, moment, [fault]))
    assert cast(FakeSet, guest.session).preserved == PADDED[:8192]
    assert vars(guest.entry().state) == {"size": 20480, "digest": DIGEST}
    struck = told(events, "struck")
    assert (struck["before"], struck["after"]) == ("20480", "8192")


def test_of_two_guests_only_the_one_that_is_meant_is_cut(guest: Guest) -> None:
    fault: dict[str, object] = {"fault": "cut-state", "guest": "vm1"}
    guest.freeze(lambda guest, moment: fault_tools.apply_at_freeze(guest, moment, [fault]))
    assert cast(FakeSet, guest.session).preserved == PADDED


def test_a_state_too_short_to_be_cut_refuses_the_freeze(guest: Guest) -> None:
    os.ftruncate(guest.state, 4096)
    with pytest.raises(VmmError, match="too short to be cut"):
        fault_tools.apply_at_freeze(guest, "saved", [{"fault": "cut-state"}])


def test_long_states_are_summed_in_pieces() -> None:
    fd = os.memfd_create("t")
    try:
        os.ftruncate(fd, (2 << 20) + 5)
        os.pwrite(fd, b"end", 2 << 20)
        found = sum_up(fd)
        data = os.pread(fd, 4 << 20, 0)
    finally:
        os.close(fd)
    assert (found.size, found.digest) == (
        (2 << 20) + 5,
        hashlib.blake2b(data, digest_size=16).hexdigest(),
    )


def test_a_place_that_is_not_known_is_told_and_no_trouble() -> None:
    def refuse(_token: int, _source: int) -> list[tuple[int, int]]:
        raise OSError(errno.EPERM, "no pagemap")

    session = cast(PreservedSet, SimpleNamespace(places=refuse))
    assert say_places(session, 2, -1) == {"unplaced": "[Errno 1] no pagemap"}


def test_a_guest_that_was_never_saved_has_no_entry(guest: Guest) -> None:
    with pytest.raises(ValueError, match="was not saved"):
        guest.entry()
