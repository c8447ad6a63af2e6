# SPDX-License-Identifier: Apache-2.0
"""A QMP connection for one purpose: a short command 50 times a second, at little cost.

``qemu.qmp`` under :mod:`liveupdate.transport.qmp` takes 360 to 661 µs of processor time per
command, this one 49 to 67 µs (docs/adr/0019); the sampling budget is 5 % of a core. It sends a
command and reads until the line that answers it. It has neither thread nor events; all other lines
are skipped. Used by one thread.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LostMachine
from liveupdate.transport.monitor import Commands, take_answer
from liveupdate.transport.unix import connect_unix

_CHUNK_BYTES = 1 << 16
#: more than any answer; the peer is not trusted to end its line
_MAX_LINE_BYTES = 16 << 20
_COMMAND_S = 10.0


class QuickQmp(Commands):
    """One connection; a context manager that connects when it is entered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._rest = b""

    def __enter__(self) -> QuickQmp:
        """Connect and negotiate; errors as :meth:`execute`."""
        deadline = Deadline.after(_COMMAND_S, "the quick QMP connection")
        self._socket = connect_unix(self._path, deadline)
        try:
            greeting = self._read_line(deadline)
            if "QMP" not in greeting:
                raise LostMachine(f"'{self._path}' does not speak QMP", how="garbled")
            self.execute("qmp_capabilities", {}, deadline)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        link, self._socket = self._socket, None
        if link is not None:
            with contextlib.suppress(OSError):
                link.close()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        deadline: Deadline | None = None,
    ) -> object:
        """Execute a command; see :meth:`Commands.execute`.

        :raises LostMachine: also when the connection ended before the answer.
        :raises DeadlineExceeded: no answer in time; the connection cannot be used any more.
        """
        deadline = deadline or Deadline.after(_COMMAND_S, f"quick QMP '{command}'")
        request = json.dumps({"execute": command, "arguments": dict(arguments or {})})
        try:
            self._link.settimeout(max(0.001, deadline.remaining_s))
            self._link.sendall(request.encode() + b"\n")
        except TimeoutError as error:
            self.close()
            raise deadline.exceeded(f"QEMU does not take '{command}'") from error
        except OSError as error:
            raise LostMachine(f"quick QMP is gone: {error}", how="no-answer") from error
        while True:
            message = self._read_line(deadline)
            if "return" in message or "error" in message:
                return take_answer(command, message)

    @property
    def _link(self) -> socket.socket:
        if self._socket is None:
            raise LostMachine("the quick QMP connection is closed", how="no-answer")
        return self._socket

    def _read_line(self, deadline: Deadline) -> dict[str, object]:
        """Read the next object; QEMU ends each with a newline and has none inside."""
        while b"\n" not in self._rest:
            if len(self._rest) > _MAX_LINE_BYTES:
                raise LostMachine(f"a line of over {_MAX_LINE_BYTES} bytes", how="garbled")
            try:
                self._link.settimeout(max(0.001, deadline.remaining_s))
                chunk = self._link.recv(_CHUNK_BYTES)
            except TimeoutError as error:
                # the answer may still come, and would be taken for that to the next question
                self.close()
                raise deadline.exceeded("no answer") from error
            except OSError as error:
                raise LostMachine(f"quick QMP is gone: {error}", how="no-answer") from error
            if not chunk:
                raise LostMachine("QEMU closed the quick QMP connection", how="no-answer")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=dict[str, object])
        except ValueError as error:
            raise LostMachine(f"nonsense over quick QMP: {line[:80]!r}", how="garbled") from error
