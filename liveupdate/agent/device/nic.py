# SPDX-License-Identifier: Apache-2.0
"""Just enough of a driver for Intel's 82576 (igb) and 82574 (e1000e): receives frames, by polling.

Registers and their bits: Intel 82576 GbE Controller Datasheet, chapter 8, and Intel 82574 GbE
Controller Family Datasheet, chapter 10. Both write extended descriptors back in the same form.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap

_CTRL = 0x0000
_STATUS = 0x0008
_MDIC = 0x0020
_RCTL = 0x0100
#: offsets from the registers of the receive queue
_RDBAL = 0x00
_RDBAH = 0x04
_RDLEN = 0x08
_RDH = 0x10
_RDT = 0x18
_RXDCTL = 0x28

_CTRL_SET_LINK_UP = 1 << 6
_CTRL_RESET = 1 << 26
_STATUS_LINK_UP = 1 << 1
_MDIC_WRITE = 1 << 26
_MDIC_READY = 1 << 28
_MDIC_PHY_1 = 1 << 21
#: PHY register 0: auto-negotiation on, and begun anew (IEEE 802.3, 22.2.4.1)
_PHY_RESTART = 0x1200
_RCTL_ENABLE = 1 << 1
#: any unicast, any multicast, broadcast; the frame's own checksum is left out of the buffer
_RCTL_ALL = 1 << 3 | 1 << 4 | 1 << 15 | 1 << 26
_RXDCTL_ENABLE = 1 << 25


class Registers:
    """Where the two differ. ``format``: register and value that choose extended descriptors."""

    __slots__ = ("format", "mask", "queue")

    def __init__(self, mask: int, queue: int, form: tuple[int, int]) -> None:
        #: interrupt mask clear
        self.mask = mask
        #: receive queue 0
        self.queue = queue
        self.format = form


REGISTERS = {
    # SRRCTL[0]: advanced descriptors with one buffer of 2 KiB
    "igb": Registers(0x150C, 0xC000, (0xC00C, 1 << 25 | 2)),
    # RFCTL: extended descriptors; their buffers have 2 KiB when RCTL says nothing else
    "e1000e": Registers(0x00D8, 0x2800, (0x5008, 1 << 15)),
}

RESET_S = 2.0
LINK_S = 10.0
_POLL_S = 0.005


class NicError(Exception):
    """The device does not do what it was told."""


class Nic:
    """The registers in a mapped BAR 0."""

    def __init__(self, kind: str, bar: mmap) -> None:
        self._at = REGISTERS[kind]
        self._view = memoryview(bar)
        #: one 32-bit access each, which is what the device wants
        self._registers = self._view.cast("I")

    def close(self) -> None:
        """Release the registers, so that they can be unmapped."""
        self._registers.release()
        self._view.release()

    def _read(self, register: int) -> int:
        return self._registers[register >> 2]

    def _write(self, register: int, value: int) -> None:
        self._registers[register >> 2] = value

    def _wait(self, what: str, register: int, mask: int, wanted: int, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while self._read(register) & mask != wanted:
            if time.monotonic() > end:
                raise NicError(f"waited {timeout_s:g} s for {what}")
            time.sleep(_POLL_S)

    def start(self, ring_iova: int, ring_bytes: int, tail: int) -> None:
        """Reset the device, bring its link up and let it receive.

        :raises NicError: it does not start.
        """
        self._write(self._at.mask, 0xFFFFFFFF)
        self._write(_CTRL, self._read(_CTRL) | _CTRL_RESET)
        self._wait("the reset to end", _CTRL, _CTRL_RESET, 0, RESET_S)
        self._write(self._at.mask, 0xFFFFFFFF)
        self._write(_CTRL, self._read(_CTRL) | _CTRL_SET_LINK_UP)
        self._write(_MDIC, _PHY_RESTART | _MDIC_PHY_1 | _MDIC_WRITE)
        self._wait("the PHY to take a command", _MDIC, _MDIC_READY, _MDIC_READY, RESET_S)
        self._wait("the link", _STATUS, _STATUS_LINK_UP, _STATUS_LINK_UP, LINK_S)
        self._write(self._at.queue + _RDBAL, ring_iova & 0xFFFFFFFF)
        self._write(self._at.queue + _RDBAH, ring_iova >> 32)
        self._write(self._at.queue + _RDLEN, ring_bytes)
        self._write(*self._at.format)
        self._write(self._at.queue + _RDH, 0)
        self._write(self._at.queue + _RXDCTL, _RXDCTL_ENABLE)
        self._write(_RCTL, _RCTL_ENABLE | _RCTL_ALL)
        self._write(self._at.queue + _RDT, tail)

    def set_tail(self, tail: int) -> None:
        """Let the device fill every descriptor but ``tail``."""
        self._write(self._at.queue + _RDT, tail)

    def stop(self) -> None:
        """Switch the receiver off."""
        self._write(_RCTL, 0)
        self._write(self._at.queue + _RXDCTL, 0)
        self._read(_STATUS)  # posted writes arrive before a read returns

    def is_receiving(self) -> bool:
        """Whether link and receiver are on."""
        on = self._read(_RCTL) & _RCTL_ENABLE and self._read(_STATUS) & _STATUS_LINK_UP
        return bool(on)
