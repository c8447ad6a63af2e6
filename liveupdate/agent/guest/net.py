# SPDX-License-Identifier: Apache-2.0
"""The bridge between the guests' network card and their taps, by ioctl: each ``ip`` would cost an
exec.

Runs in the blackout. The host has no address on it: it only passes Ethernet frames.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import struct

from ..base.fast_stdlib import AF_UNIX, SOCK_STREAM, Socket, try_read_text

BRIDGE = "br0"
WIRE_MAC = "52:54:00:10:00:02"

# include/uapi/linux/{sockios,if_tun,if}.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFINDEX = 0x8933
_SIOCBRADDBR = 0x89A0
_SIOCBRADDIF = 0x89A2
_TUNSETIFF = 0x400454CA
_IFF_UP = 1
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000

_EEXIST = 17
_EBUSY = 16


def find_interface(mac: str, root: str = "/sys/class/net") -> str | None:
    """Return the name of the interface with that hardware address, not counting bridges."""
    for name in os.listdir(root):
        # one may be gone meanwhile
        if name != BRIDGE and try_read_text(f"{root}/{name}/address") == mac:
            return name
    return None


class Network:
    """Makes the bridge on first use, then taps in it."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._sock: Socket | None = None

    def open_tap(self, name: str) -> int:
        """Return a close-on-exec fd of a new tap in the bridge, up. Closing the fd removes the tap.

        :raises OSError: the kernel refuses.
        """
        with self._lock:
            sock = self._sock or self._make_bridge()
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            try:
                flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
                self._enslave(sock, name)
            except BaseException:
                os.close(fd)
                raise
            return fd

    def _make_bridge(self) -> Socket:
        sock = Socket(AF_UNIX, SOCK_STREAM)
        _ioctl_tolerant(sock, _SIOCBRADDBR, struct.pack("16s", BRIDGE.encode()), _EEXIST)
        wire = find_interface(WIRE_MAC)
        if wire is not None:
            self._enslave(sock, wire)
        _set_up(sock, BRIDGE)
        self._sock = sock
        return sock

    def _enslave(self, sock: Socket, name: str) -> None:
        _set_up(sock, name)
        arg = bytearray(struct.pack("16si20x", name.encode(), 0))
        fcntl.ioctl(sock.fileno(), _SIOCGIFINDEX, arg)
        index = struct.unpack_from("16si", arg)[1]
        # EBUSY: is in a bridge already
        _ioctl_tolerant(sock, _SIOCBRADDIF, struct.pack("16si20x", BRIDGE.encode(), index), _EBUSY)


def _ioctl_tolerant(sock: Socket, request: int, arg: bytes, errno: int) -> None:
    try:
        fcntl.ioctl(sock.fileno(), request, arg)
    except OSError as err:
        if err.errno != errno:
            raise


def _set_up(sock: Socket, name: str) -> None:
    arg = bytearray(struct.pack("16sH22x", name.encode(), 0))
    fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, arg)
    flags = struct.unpack_from("16sH", arg)[1] | _IFF_UP
    fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags))
