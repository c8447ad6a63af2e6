# SPDX-License-Identifier: Apache-2.0
"""The agent's way into /dev/prmem: what goes over the wire, and what is said of what is refused."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest

from liveupdate.agent.mechanisms import pool, prmem
from liveupdate.agent.mechanisms.base import MechanismError

HEADERS = Path(__file__).parents[4] / "guest-images/modules/include"
UAPI = (HEADERS / "uapi/linux/prmem.h").read_text()
INFO = "=64s4QII96s"


class Kernel:
    """Stands where ioctl(2) is: instances by name, as the module keeps them."""

    def __init__(self) -> None:
        self.instances: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.verify = 0
        self.state, self.reason = 1, b""

    def ioctl(self, _fd: int, request: int, arg: bytearray) -> None:
        if request == prmem.Prmem.STAT:
            held = sum(self.instances.values())
            arg[:] = struct.pack(
                "=4I5Q96s", self.state, 0, 0, 0, held, 2**64 - 1, 7, 49152, 0x5000, self.reason
            )
            return
        if request == prmem.Prmem.LIST:
            (index,) = struct.unpack_from("=I", arg)
            names = [*self.instances, *self.refused]
            if index >= len(names):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            arg[:] = struct.pack("=II", index, 0) + self._describe(names[index])
            return
        raw, size, *_ = struct.unpack(INFO, arg)
        name = raw.rstrip(b"\0").decode()
        if request == prmem.Prmem.ALLOC:
            if name in self.instances or name in self.refused:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self.instances[name] = size
        elif name not in self.instances and name not in self.refused:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if request == prmem.Prmem.VERIFY and self.verify:
            raise OSError(self.verify, os.strerror(self.verify))
        if request == prmem.Prmem.FREE:
            self.instances.pop(name, None)
            self.refused.pop(name, None)
        elif request in (prmem.Prmem.ALLOC, prmem.Prmem.INFO):
            arg[:] = self._describe(name)

    def _describe(self, name: str) -> bytes:
        reason = self.refused.get(name, "").encode()
        slot = 0 if reason else (list(self.instances).index(name) + 1) << 40
        flags = 2 if reason else 0
        size = self.instances.get(name, 0)
        return struct.pack(INFO, name.encode(), size, 0, slot, 0x4000, flags, 0, reason)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr("fcntl.ioctl", made.ioctl)
    return made


@pytest.fixture
def mechanism(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> prmem.PrmemMechanism:
    monkeypatch.setattr("liveupdate.agent.mechanisms.modules.load", lambda *_: None)
    monkeypatch.setattr("os.open", lambda *_: os.memfd_create("prmem"))
    return prmem.PrmemMechanism()


def test_numbers_are_those_of_the_header() -> None:
    sizes = {"_IOW": 1, "_IOWR": 3, "_IOR": 2}
    structs = {"info": struct.calcsize(INFO), "list": 8 + struct.calcsize(INFO), "stat": 152}
    found = {}
    pattern = r"#define PRMEM_(\w+)\s+(_IO\w+)\('l', (0x\w+), struct prmem_(\w+)\)"
    for name, kind, number, of in re.findall(pattern, UAPI):
        found[name] = sizes[kind] << 30 | structs[of] << 16 | ord("l") << 8 | int(number, 16)
    found["ALLOC"] = found["CREATE"]
    names = ("ALLOC", "INFO", "FREE", "SEAL", "VERIFY", "LIST", "STAT")
    assert {name: getattr(prmem.Prmem, name) for name in names} == {
        name: found[name] for name in names
    }


def test_ram_is_an_instance_that_can_be_pinned(
    mechanism: prmem.PrmemMechanism, kernel: Kernel
) -> None:
    ram = mechanism.allocate_ram("vm0", 4 << 20)
    assert (ram.offset, ram.align, ram.pinnable) == (1 << 40, 2 << 20, True)
    assert kernel.instances == {"lu.guest.vm0/ram": 4 << 20}
    assert mechanism.metadata_bytes() == 49152
    assert mechanism.retrieve("lu.guest.vm0").retrieve_ram(4 << 20).offset == 1 << 40
    mechanism.free_ram("vm0", ram)
    assert kernel.instances == {}


def test_no_room_is_a_limit_and_not_the_memory_of_others(
    mechanism: prmem.PrmemMechanism, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism.allocate_ram("vm0", 8192)
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(prmem, "write_text", lambda *what: written.append(what))
    monkeypatch.setattr(prmem, "read_text", lambda _path: written[-1][1] if written else "10000")
    assert mechanism.exhaust() == (10000 - 8192, 0)
    assert written == [(prmem.MAX_BYTES, "8192")]


def test_nothing_left_is_no_bundle(mechanism: prmem.PrmemMechanism) -> None:
    with pytest.raises(FileNotFoundError):
        mechanism.retrieve("lu.agent")


def test_one_refused_instance_is_named_and_the_others_are_there(
    mechanism: prmem.PrmemMechanism, kernel: Kernel
) -> None:
    mechanism.allocate_ram("vm0", 4096)
    kernel.refused["lu.guest.vm1/ram"] = "the checksum of its record is wrong"
    with pytest.raises(MechanismError, match="vm1/ram' is refused: the checksum of its record"):
        mechanism.retrieve("lu.guest.vm1").retrieve_ram(4096)
    assert mechanism.retrieve("lu.guest.vm0").retrieve_ram(4096).size == 4096
    # looked at only: nobody has said that it may be forgotten
    assert "lu.guest.vm1/ram" in kernel.refused


def test_refused_state_is_said_before_it_is_verified(
    mechanism: prmem.PrmemMechanism, kernel: Kernel
) -> None:
    kernel.refused["lu.agent/1"] = "its memory was not handed over"
    with pytest.raises(MechanismError, match="'lu.agent/1' is refused: its memory was not handed"):
        mechanism.retrieve("lu.agent").retrieve(1)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENODATA, "was never sealed"), (errno.EBADMSG, "not what was sealed")]
)
def test_content_that_is_not_what_was_sealed_is_said(
    mechanism: prmem.PrmemMechanism, kernel: Kernel, code: int, said: str
) -> None:
    kernel.instances["lu.agent/1"], kernel.verify = 100, code
    with pytest.raises(MechanismError, match=said):
        mechanism.retrieve("lu.agent").retrieve(1)


def test_root_that_cannot_be_believed_is_said(
    mechanism: prmem.PrmemMechanism, kernel: Kernel
) -> None:
    kernel.state, kernel.reason = 2, b"it has another version"
    with pytest.raises(MechanismError, match="at 0x5000 is refused: it has another version; it is"):
        prmem.Prmem()


def test_name_that_is_too_long_is_named(mechanism: prmem.PrmemMechanism) -> None:
    with pytest.raises(OSError, match="File name too long") as caught:
        mechanism.pool.find("x" * 64)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert pool.Pool.pinnable is False
