# SPDX-License-Identifier: Apache-2.0
"""Just enough of a driver for Intel's 82576 (igb) and 82574 (e1000e): receives frames, by polling.

Registers and their bits: Intel 82576 GbE Controller Datasheet, chapter 8, and Intel 82574 GbE
Controller Family Datasheet, chapter 10. Both write extended descriptors back in the same form.
"""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING
from .vfio import Bar, wait_for

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


#: where the two differ: interrupt mask clear, receive queue 0, and the register and its value that
#: choose extended descriptors
REGISTERS = {
    # SRRCTL[0]: advanced descriptors with one buffer of 2 KiB
    "igb": (0x150C, 0xC000, (0xC00C, 1 << 25 | 2)),
    # RFCTL: extended descriptors; their buffers have 2 KiB when RCTL says nothing else
    "e1000e": (0x00D8, 0x2800, (0x5008, 1 << 15)),
}

RESET_S = 2.0
LINK_S = 10.0


class Nic(Bar):
    """The registers of a network card."""

    def __init__(self, kind: str, bar: mmap) -> None:
        super().__init__(bar)
        self._mask, self._queue, self._format = REGISTERS[kind]

    def _wait(self, what: str, register: int, mask: int, wanted: int, timeout_s: float) -> None:
        wait_for(what, lambda: self.read(register) & mask == wanted, timeout_s)

    def start(self, ring_iova: int, ring_bytes: int, tail: int) -> None:
        """Reset the device, bring its link up and let it receive.

        :raises JobError: it does not start.
        """
        self.write(self._mask, 0xFFFFFFFF)
        self.write(_CTRL, self.read(_CTRL) | _CTRL_RESET)
        self._wait("the reset to end", _CTRL, _CTRL_RESET, 0, RESET_S)
        self.write(self._mask, 0xFFFFFFFF)
        self.write(_CTRL, self.read(_CTRL) | _CTRL_SET_LINK_UP)
        self.write(_MDIC, _PHY_RESTART | _MDIC_PHY_1 | _MDIC_WRITE)
        self._wait("the PHY to take a command", _MDIC, _MDIC_READY, _MDIC_READY, RESET_S)
        self._wait("the link", _STATUS, _STATUS_LINK_UP, _STATUS_LINK_UP, LINK_S)
        self.write(self._queue + _RDBAL, ring_iova & 0xFFFFFFFF)
        self.write(self._queue + _RDBAH, ring_iova >> 32)
        self.write(self._queue + _RDLEN, ring_bytes)
        self.write(*self._format)
        self.write(self._queue + _RDH, 0)
        self.write(self._queue + _RXDCTL, _RXDCTL_ENABLE)
        self.write(_RCTL, _RCTL_ENABLE | _RCTL_ALL)
        self.write(self._queue + _RDT, tail)

    def set_tail(self, tail: int) -> None:
        """Let the device fill every descriptor but ``tail``."""
        self.write(self._queue + _RDT, tail)

    def stop(self) -> None:
        """Switch the receiver off."""
        self.write(_RCTL, 0)
        self.write(self._queue + _RXDCTL, 0)
        self.read(_STATUS)  # posted writes arrive before a read returns

    def is_receiving(self) -> bool:
        """Whether link and receiver are on."""
        on = self.read(_RCTL) & _RCTL_ENABLE and self.read(_STATUS) & _STATUS_LINK_UP
        return bool(on)
