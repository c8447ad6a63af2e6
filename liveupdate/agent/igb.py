# SPDX-License-Identifier: Apache-2.0
"""Just enough of a driver for the Intel 82576 (igb) to receive frames into one ring, by polling.

Registers and their bits: Intel 82576 GbE Controller Datasheet, chapter 8.
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
_IMC = 0x150C
_RDBAL = 0xC000
_RDBAH = 0xC004
_RDLEN = 0xC008
_SRRCTL = 0xC00C
_RDH = 0xC010
_RDT = 0xC018
_RXDCTL = 0xC028

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
#: advanced descriptors with one buffer of 2 KiB
_SRRCTL_2K = 1 << 25 | 2
_RXDCTL_ENABLE = 1 << 25

RESET_S = 2.0
LINK_S = 10.0
_POLL_S = 0.005


class IgbError(Exception):
    """The device does not do as it is told."""


class Igb:
    """The registers in a mapped BAR 0."""

    def __init__(self, bar: mmap) -> None:
        self._view = memoryview(bar)
        #: one 32-bit access each, which is what the device wants
        self._registers = self._view.cast("I")

    def close(self) -> None:
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
                raise IgbError(f"waited {timeout_s:g} s for {what}")
            time.sleep(_POLL_S)

    def start(self, ring_iova: int, ring_bytes: int, tail: int) -> None:
        """Reset the device, bring its link up and let it receive.

        :raises IgbError: it does not come up.
        """
        self._write(_IMC, 0xFFFFFFFF)
        self._write(_CTRL, self._read(_CTRL) | _CTRL_RESET)
        self._wait("the reset to end", _CTRL, _CTRL_RESET, 0, RESET_S)
        self._write(_IMC, 0xFFFFFFFF)
        self._write(_CTRL, self._read(_CTRL) | _CTRL_SET_LINK_UP)
        self._write(_MDIC, _PHY_RESTART | _MDIC_PHY_1 | _MDIC_WRITE)
        self._wait("the PHY to take a command", _MDIC, _MDIC_READY, _MDIC_READY, RESET_S)
        self._wait("the link", _STATUS, _STATUS_LINK_UP, _STATUS_LINK_UP, LINK_S)
        self._write(_RDBAL, ring_iova & 0xFFFFFFFF)
        self._write(_RDBAH, ring_iova >> 32)
        self._write(_RDLEN, ring_bytes)
        self._write(_SRRCTL, _SRRCTL_2K)
        self._write(_RDH, 0)
        self._write(_RXDCTL, _RXDCTL_ENABLE)
        self._write(_RCTL, _RCTL_ENABLE | _RCTL_ALL)
        self._write(_RDT, tail)

    def set_tail(self, tail: int) -> None:
        """Let the device fill every descriptor but ``tail``."""
        self._write(_RDT, tail)

    def stop(self) -> None:
        self._write(_RCTL, 0)
        self._write(_RXDCTL, 0)
        self._read(_STATUS)  # posted writes arrive before a read returns

    def is_receiving(self) -> bool:
        """Tell whether link and receiver are still on."""
        on = self._read(_RCTL) & _RCTL_ENABLE and self._read(_STATUS) & _STATUS_LINK_UP
        return bool(on)
