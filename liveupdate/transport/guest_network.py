# SPDX-License-Identifier: Apache-2.0
"""Raw Ethernet frames to and from the guests, past every network stack but theirs.

The peer is ``-netdev dgram,local.type=unix,remote.type=unix`` of QEMU: one datagram per frame. Must
not know what is in a frame.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core.deadline import Deadline

#: longest frame QEMU's net/dgram.c passes on (NET_BUFSIZE)
MAX_FRAME_BYTES = 4096 + 65536


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it arrived; ``at_ns`` is CLOCK_MONOTONIC of this host."""

    data: bytes
    at_ns: int


class Wire:
    """The control host's end of the link: bound at ``local``, sends to QEMU's ``remote``.

    One thread may send while another receives. Bind before QEMU starts: frames that find no
    receiver are lost, as on any cable.
    """

    def __init__(self, local: Path, remote: Path) -> None:
        """:raises OSError: ``local`` cannot be bound."""
        self.local = local
        self.remote = remote
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        #: waits, which the other one must never do
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(local))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def send(self, frame: bytes) -> int | None:
        """Send one frame without waiting; return when (ns), or None when QEMU did not take it."""
        try:
            at_ns = time.monotonic_ns()
            self._socket.sendto(frame, str(self.remote))
        except OSError:
            # ENOENT, ECONNREFUSED: no QEMU; EAGAIN: its queue is full. A wire loses frames.
            return None
        return at_ns

    def send_within(self, frame: bytes, patience_s: float) -> int | None:
        """Send one frame, waiting until QEMU takes it; return when it did (ns), or None.

        A device that receives nothing blocks its side of the link, so the wait may be in vain.
        """
        whole = int(patience_s)
        limit = struct.pack("@ll", whole, int((patience_s - whole) * 1e6))
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self._sender.sendto(frame, 0 if patience_s else socket.MSG_DONTWAIT, str(self.remote))
        except OSError:
            # as in send(); EAGAIN is the time-out here
            return None
        return time.monotonic_ns()

    def recv(self, deadline: Deadline) -> Frame | None:
        """Return the next frame, or None when the deadline passed."""
        while True:
            with contextlib.suppress(BlockingIOError):
                data = self._socket.recv(MAX_FRAME_BYTES)
                return Frame(data, time.monotonic_ns())
            if not select.select([self._socket], [], [], deadline.remaining_s)[0]:
                return None

    def close(self) -> None:
        """Unbind. Idempotent; the receiving thread must have ended."""
        self._socket.close()
        self._sender.close()
        self.local.unlink(missing_ok=True)
