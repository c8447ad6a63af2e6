# SPDX-License-Identifier: Apache-2.0
"""What the agent makes of a kernel that cannot pin a guest's RAM at the moment."""

from __future__ import annotations

import errno
import os

import pytest

from liveupdate.agent.mechanisms import luo_memfd, shmem
from liveupdate.agent.mechanisms.base import Ram


class Kernel:
    """Answers ioctls of a session: each error once, then success."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: int) -> None:
        self.errors = list(errors)
        self.asked = 0
        monkeypatch.setattr("fcntl.ioctl", self.ioctl)
        monkeypatch.setattr(luo_memfd, "PIN_PAUSE_S", 0.0)

    def ioctl(self, _fd: int, request: int, _arg: bytearray) -> None:
        assert request == luo_memfd._PRESERVE_FD
        self.asked += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))


def test_ram_that_is_in_use_at_the_moment_is_offered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel(monkeypatch, errno.ENOMEM, errno.ENOMEM)
    session = luo_memfd.Session(7, "lu.guest.vm0", incoming=False)
    session.preserve_ram(Ram(8, 16 << 20))
    assert (kernel.asked, session.refusals, session.tokens) == (3, 2, 1)


def test_memory_that_is_not_there_is_said_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, *[errno.ENOMEM] * 100)
    session = luo_memfd.Session(7, "lu.guest.vm0", incoming=False)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        session.preserve_ram(Ram(8, 16 << 20))
    assert (kernel.asked, session.tokens) == (luo_memfd.PIN_ATTEMPTS, 0)


def test_another_refusal_is_believed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, errno.EEXIST)
    session = luo_memfd.Session(7, "lu.guest.vm0", incoming=False)
    with pytest.raises(FileExistsError):
        session.preserve_ram(Ram(8, 16 << 20))
    assert (kernel.asked, session.refusals) == (1, 0)


def test_new_ram_is_settled_before_anybody_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in KHO's scratch is moved out of it by a session that is given up again."""
    asked: list[tuple[int, int]] = []
    session_fd = os.open("/dev/null", os.O_RDONLY)

    def ioctl(fd: int, request: int, arg: bytearray) -> None:
        asked.append((fd, request))
        if request == luo_memfd._CREATE_SESSION:
            assert arg[8:].rstrip(b"\0") == b"lu.settle.vm0"
            arg[4:8] = session_fd.to_bytes(4, "little")

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    monkeypatch.setattr(shmem, "create", lambda _name, _size: 8)
    device = luo_memfd.Device("/dev/null")
    ram = device.allocate_ram("vm0", 16 << 20)
    assert (ram.fd, ram.size) == (8, 16 << 20)
    assert asked == [(device.fd, luo_memfd._CREATE_SESSION), (session_fd, luo_memfd._PRESERVE_FD)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(session_fd)


def find_extents(fd: int, size: int, offset: int = 0) -> list[tuple[int, int]]:
    """Say of a file that its first byte is at its inode, as if that were memory."""
    return [(os.fstat(fd).st_ino + offset, size)]


def test_a_memfd_lies_where_its_own_pages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(luo_memfd, "find_extents", find_extents)
    fd = os.memfd_create("state")
    os.ftruncate(fd, 8192)
    session = luo_memfd.Session(7, "lu.guest.vm0", incoming=False)
    assert session.places(2, fd) == [(os.fstat(fd).st_ino, 8192)]
    os.close(fd)
