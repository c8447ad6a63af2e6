# SPDX-License-Identifier: Apache-2.0
"""A pool of the agent's whose objects lie in a memfd."""

from __future__ import annotations

import errno
import os

from liveupdate.agent.mechanisms.base import MechanismError
from liveupdate.agent.mechanisms.pool import Pool
from liveupdate.core.units import MIB


class FakePool(Pool):
    """Objects in a memfd, where the device would have them; counts the seals."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("pool")
        self.start = 0
        self.held: dict[str, tuple[int, int]] = {}
        self.sealed: list[str] = []
        self._end = 0

    def room(self) -> tuple[int, int]:
        blocks = sum(-(-size // (2 * MIB)) for size, _ in self.held.values())
        return 64 * MIB, (31 - blocks) * 2 * MIB

    def allocate(self, name: str, size: int) -> int:
        if name in self.held:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self.held[name] = (size, self._end)
        self._end += size
        return self.held[name][1]

    def find(self, name: str) -> tuple[int, int]:
        if name not in self.held:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.held[name]

    def free(self, name: str) -> None:
        del self.held[name]

    def seal(self, name: str) -> None:
        self.sealed.append(name)

    def verify(self, name: str) -> None:
        if name not in self.sealed:
            raise MechanismError(f"'{name}' was never sealed")

    def objects(self) -> list[tuple[str, int, int]]:
        return [(name, *where) for name, where in self.held.items()]


def memfd(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.pwrite(fd, content, 0)
    return fd
