# SPDX-License-Identifier: Apache-2.0
"""Decode a function's configuration space, and tell what of it must not move under running DMA.

PCI Local Bus specification 3.0, 6.1 (type 0 header), PCI-to-PCI Bridge specification 1.2, 3.2 (type
1), PCI Express base specification 7.5.3 (Device Control, Slot Control), PCI Power Management 3.2.4
(PMCSR).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from liveupdate.formats.malformed import MalformedError

#: as much as PCI itself has; beyond lie extended capabilities
CONFIG_BYTES = 256
COMMAND = 0x04
COMMAND_MEMORY, COMMAND_MASTER = 1 << 1, 1 << 2
BRIDGE_CONTROL = 0x3E
BRIDGE_RESET = 1 << 6
_STATUS_HAS_CAPABILITIES = 1 << 4
_CAPABILITY_POINTER = 0x34
CAP_POWER, CAP_EXPRESS, CAP_ADVANCED = 0x01, 0x10, 0x13
#: of the express capability
EXPRESS_DEVICE_CONTROL = 8
FUNCTION_RESET = 1 << 15
#: of the power capability
_PMCSR = 4


class ConfigSpaceError(MalformedError):
    """Not the configuration space of a function that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigField:
    """A field that differs between two readings."""

    name: str
    offset: int
    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.name} (offset {self.offset:#x}): {self.before:#x} -> {self.after:#x}"


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """The first :data:`CONFIG_BYTES` bytes of a function, checked by :func:`decode_config`."""

    data: bytes

    def read(self, offset: int, size: int) -> int:
        """Return the little-endian value of ``size`` bytes at ``offset``."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    @property
    def is_bridge(self) -> bool:
        """Whether there is a bus behind it (header type 1)."""
        return self.data[0x0E] & 0x7F == 1

    @property
    def is_master(self) -> bool:
        """Whether it may do DMA (a bridge: let DMA through)."""
        return bool(self.read(COMMAND, 2) & COMMAND_MASTER)

    @property
    def bars(self) -> tuple[int, ...]:
        """Base address registers as they read."""
        return tuple(self.read(0x10 + 4 * at, 4) for at in range(2 if self.is_bridge else 6))

    def find_capability(self, wanted: int) -> int | None:
        """Find a capability's offset; a list that loops ends like one that ends."""
        if not self.read(0x06, 2) & _STATUS_HAS_CAPABILITIES:
            return None
        at = self.data[_CAPABILITY_POINTER] & 0xFC
        for _ in range(48):
            if at < 0x40:
                return None
            if self.data[at] == wanted:
                return at
            at = self.data[at + 1] & 0xFC
        return None

    def fields(self) -> Iterator[tuple[str, int, int]]:
        """Give (name, offset, value) of what has to stay while a device works."""
        yield "vendor and device id", 0x00, self.read(0x00, 4)
        yield "class and revision", 0x08, self.read(0x08, 4)
        yield "memory decoding", COMMAND, self.read(COMMAND, 2) & COMMAND_MEMORY
        yield "bus master", COMMAND, self.read(COMMAND, 2) & COMMAND_MASTER
        for index, bar in enumerate(self.bars):
            yield f"BAR {index}", 0x10 + 4 * index, bar
        if self.is_bridge:
            yield "bus numbers", 0x18, self.read(0x18, 3)
            yield "memory window", 0x20, self.read(0x20, 4)
            yield "prefetchable window", 0x24, self.read(0x24, 4)
            yield "prefetchable window, upper half", 0x28, self.read(0x28, 8)
        power = self.find_capability(CAP_POWER)
        if power is not None:
            yield "power state", power + _PMCSR, self.read(power + _PMCSR, 2) & 3


def decode_config(data: bytes) -> ConfigSpace:
    """Check that a function answered.

    :raises ConfigSpaceError: too short, or all ones: there is no function.
    """
    if len(data) < CONFIG_BYTES:
        raise ConfigSpaceError(f"{len(data)} bytes of {CONFIG_BYTES}", where="config space")
    if data[:2] in (b"\xff\xff", b"\0\0"):
        raise ConfigSpaceError("no function answers at this address", where="config space")
    return ConfigSpace(bytes(data[:CONFIG_BYTES]))


def diff_config(before: ConfigSpace, after: ConfigSpace) -> tuple[ConfigField, ...]:
    """Compare what has to stay; interrupts, error reporting and status bits are not part of it."""
    old = {name: (offset, value) for name, offset, value in before.fields()}
    new = {name: (offset, value) for name, offset, value in after.fields()}
    changes = []
    for name in dict.fromkeys((*old, *new)):
        offset, value = old.get(name, (new.get(name, (0, 0))[0], 0))
        now = new.get(name, (offset, 0))[1]
        if value != now or (name in old) != (name in new):
            changes.append(ConfigField(name=name, offset=offset, before=value, after=now))
    return tuple(changes)
