# SPDX-License-Identifier: Apache-2.0
"""Unix sockets that QEMU may not have made yet, and reading one in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Self

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LostMachine

Watch = Callable[[], Exception | None]
"""Returns why waiting is useless (the process has ended, the kernel panicked), or None."""


def check_watch(watch: Watch | None) -> None:
    """Raise what ``watch`` returns, if anything."""
    error = watch() if watch else None
    if error is not None:
        raise error


def connect_unix(path: Path, deadline: Deadline, watch: Watch | None = None) -> socket.socket:
    """Connect as soon as a process listens.

    :raises LostMachine: the socket cannot be used at all, or what ``watch`` said.
    :raises DeadlineExceeded: no process listens.
    """

    def attempt() -> socket.socket | None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            link.close()
            check_watch(watch)
            return None
        except OSError as error:
            link.close()
            raise LostMachine(f"cannot connect to '{path}': {error}", how="no-answer") from error
        return link

    return wait_until(attempt, deadline, describe=lambda: f"no process listens on '{path}'")


class SocketReader(ABC):
    """A connection that a thread reads; others wait for what it has read.

    A context manager that connects nothing by itself but always closes.
    """

    def __init__(self, path: Path, watch: Watch | None) -> None:
        """:param watch: called while waiting; what it returns is raised (machine ended, panic)."""
        self.path = path
        self._watch = watch
        #: guards what was read, and is notified of more
        self._changed = threading.Condition()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def connect(self, deadline: Deadline) -> None:
        """Connect and start to read.

        :raises LostMachine: what ``watch`` said, or the socket cannot be used.
        :raises DeadlineExceeded: no process listens.
        """
        link = self._socket = connect_unix(self.path, deadline, self._watch)
        name = type(self).__name__
        self._thread = threading.Thread(target=self._read, args=(link,), name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Disconnect and wait for the end of the thread. Idempotent."""
        link, self._socket = self._socket, None
        if link is not None:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            if self._thread is not None:
                self._thread.join()
            link.close()

    @abstractmethod
    def _read(self, link: socket.socket) -> None:
        """Read to the end of the connection; runs in the thread."""

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait(seconds)
