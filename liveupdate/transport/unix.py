# SPDX-License-Identifier: Apache-2.0
"""Connecting to a unix socket that QEMU may not have made yet."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

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
