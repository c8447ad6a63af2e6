# SPDX-License-Identifier: Apache-2.0
"""A small blocking QMP client (QEMU docs/interop/qmp-spec.rst). Not safe for two threads at once.

Deadlines are points on CLOCK_MONOTONIC in seconds.
"""

from __future__ import annotations

import time

from ..base.fast_stdlib import TYPE_CHECKING, decode_json, encode_json
from ..base.framing import LineSplitter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..base.fast_stdlib import Socket

#: the reply to query-qmp-schema is some hundred KiB
_LINE_BYTES_MAX = 8 << 20
_EVENTS_KEPT = 256

Command = tuple[str, dict[str, object]]


class QmpError(Exception):
    """The VMM understood a command and refused it."""


class QmpLost(Exception):
    """The VMM did not answer, or the connection broke."""


class Qmp:
    """One monitor connection."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self._splitter = LineSplitter(_LINE_BYTES_MAX)
        self._messages: list[dict[str, object]] = []
        self._events: list[dict[str, object]] = []
        self._id = 0

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._sock.close()

    def greet(self, deadline: float) -> dict[str, object]:
        """Wait for the greeting, leave negotiation mode, return ``{"qemu": …, "package": …}``."""
        greeting = self._next(deadline).get("QMP")
        if not isinstance(greeting, dict):
            raise QmpLost("no QMP greeting")
        self.batch([("qmp_capabilities", {})], deadline)
        version = greeting.get("version")
        return version if isinstance(version, dict) else {}

    def batch(self, commands: Sequence[Command], deadline: float) -> list[object]:
        """Send all commands at once, then collect the answers.

        :raises QmpError: for the first that was refused; the later ones have run, too.
        """
        first = self._id + 1
        text = b""
        for command, args in commands:
            self._id += 1
            text += encode_json({"execute": command, "arguments": args, "id": self._id}) + b"\n"
        try:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            self._sock.sendall(text)
        except OSError as err:
            raise QmpLost(f"cannot send '{commands[0][0]}': {err}") from err
        results: list[object] = []
        refused: QmpError | None = None
        for number, (command, _args) in enumerate(commands, first):
            reply = self._reply(number, deadline)
            error = reply.get("error")
            if isinstance(error, dict) and refused is None:
                refused = QmpError(f"'{command}' refused: {error.get('desc')}")
            results.append(reply.get("return"))
        if refused is not None:
            raise refused
        return results

    def wait_event(
        self, name: str, wanted: Callable[[dict[str, object]], bool], deadline: float
    ) -> dict[str, object]:
        """Return the data of the next event ``name`` for which ``wanted`` holds.

        Events that came with earlier replies count; all before the match are forgotten.
        """
        while True:
            while self._events:
                event = self._events.pop(0)
                data = event.get("data", {})
                if event.get("event") == name and isinstance(data, dict) and wanted(data):
                    return data
            self._take(self._next(deadline))

    def _reply(self, number: int, deadline: float) -> dict[str, object]:
        while True:
            message = self._next(deadline)
            if message.get("id") == number:
                return message
            self._take(message)

    def _take(self, message: dict[str, object]) -> None:
        if "event" in message and len(self._events) < _EVENTS_KEPT:
            self._events.append(message)

    def _next(self, deadline: float) -> dict[str, object]:
        while not self._messages:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QmpLost("no answer in time")
            try:
                self._sock.settimeout(left)
                data = self._sock.recv(1 << 16)
            except OSError as err:
                raise QmpLost(f"no answer: {err}") from err
            if not data:
                raise QmpLost("the VMM closed the connection")
            for line in self._splitter.feed(data):
                message = decode_json(line) if line else None
                if isinstance(message, dict):
                    self._messages.append(message)
        return self._messages.pop(0)
