# SPDX-License-Identifier: Apache-2.0
"""A local unix socket in front of a far end that comes and goes: an SSH channel, a command, a tty.

The local client (a console, the agent's channel) keeps its connection while the far end is opened
again and again. Data that is written while there is no far end is dropped: no byte that was meant
for one kernel may reach the next one. Must not know what the bytes mean.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from liveupdate.core.errors import LiveUpdateError

log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_RETRY_S = 0.2
_POLL_S = 0.2


class Stream(Protocol):
    """The calls of a socket, or of paramiko's channel, that a bridge needs."""

    def fileno(self) -> int:
        """Return a descriptor that polls readable when there is data."""

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; b"" at the end."""

    def sendall(self, data: bytes, /) -> object:
        """Send all of ``data``, waiting for room."""

    def close(self) -> None:
        """Close the stream."""


class Bridge:
    """Connects one local client with one far end at a time. A context manager; a thread does the
    work.
    """

    def __init__(self, path: Path, open_far: Callable[[], Stream]) -> None:
        """:param path: of the local socket, made here.
        :param open_far: blocks for a bounded time; its :class:`LiveUpdateError` or ``OSError``
            means: not now.
        :raises OSError: the socket cannot be made.
        """
        self.path = path
        self._open_far = open_far
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._far: Stream | None = None
        #: why the far end was not opened, last
        self.trouble = ""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            self._listener.listen(1)
        except BaseException:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._run, name=f"bridge-{path.name}", daemon=True)

    def __enter__(self) -> Bridge:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self.drop()
        self._thread.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    @property
    def is_open(self) -> bool:
        """Whether data written now reaches the far end, unless that is lost meanwhile."""
        with self._changed:
            return self._far is not None

    def drop(self) -> None:
        """Close the far end; it is opened again unless the bridge is left."""
        with self._changed:
            far, self._far = self._far, None
        if far is not None:
            with contextlib.suppress(OSError, EOFError):
                far.close()

    def _run(self) -> None:
        near = self._accept()
        if near is None:
            return
        with near:
            while not self._stop.is_set() and self._drain(near):
                try:
                    far = self._open_far()
                except (LiveUpdateError, OSError) as error:
                    self.trouble = str(error)
                    self._stop.wait(_RETRY_S)
                    continue
                try:
                    is_near_gone = not self._drain(near)
                    if not is_near_gone:
                        with self._changed:
                            self._far, self.trouble = far, ""
                        is_near_gone = self._pump(near, far)
                finally:
                    with self._changed:
                        self._far = None
                    with contextlib.suppress(OSError, EOFError):
                        far.close()
                if is_near_gone:
                    return
                self._stop.wait(_RETRY_S)

    def _accept(self) -> socket.socket | None:
        while not self._stop.is_set():
            if select.select([self._listener], [], [], _POLL_S)[0]:
                return self._listener.accept()[0]
        return None

    def _drain(self, near: socket.socket) -> bool:
        """Drop data that was meant for a far end that is gone; False: the client has gone."""
        while select.select([near], [], [], 0)[0]:
            try:
                if not near.recv(_READ_BYTES):
                    return False
            except OSError:
                return False
        return True

    def _pump(self, near: socket.socket, far: Stream) -> bool:
        """Carry bytes both ways until one end closes; tell whether it was the near one."""
        while not self._stop.is_set():
            try:
                ready = select.select([near, far], [], [], _POLL_S)[0]
            except (OSError, ValueError):
                return False
            try:
                if far in ready:
                    data = far.recv(_READ_BYTES)
                    if not data:
                        return False
                    near.sendall(data)
                if near in ready:
                    data = near.recv(_READ_BYTES)
                    if not data:
                        return True
                    far.sendall(data)
            except (OSError, EOFError, ValueError) as error:
                # ValueError: a file that was closed meanwhile
                log.debug("bridge '%s': %s", self.path, error)
                return False
        return True
