# SPDX-License-Identifier: Apache-2.0
"""Synchronous facade over ``qemu.qmp``: every call has a deadline and raises errors of this
package.

One asyncio thread per connection. The peer is not trusted: it may hang, answer nonsense, or end in
the middle of an answer. A command without an answer is :class:`OutcomeUnknown`, because QMP cannot
tell afterwards (``ExecInterruptedError`` says the same). Must not know what the commands mean, with
two exceptions: ``quit``, whose answer races with the end of the file, and
``human-monitor-command``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TypeVar

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LostMachine, OutcomeUnknown
from liveupdate.transport.monitor import Monitor, QmpRefused
from liveupdate.transport.unix import Watch, connect_unix

log = logging.getLogger(__name__)
T = TypeVar("T")

#: for a command whose caller has no deadline of its own; QEMU answers in milliseconds
COMMAND_TIMEOUT_S = 20.0
#: an honest peer lets go at once; a peer that does not read is cut off after this
DISCONNECT_TIMEOUT_S = 1.0
#: what the asyncio thread may need beyond a deadline to report that it has passed
_GRACE_S = 5.0


class Qmp(Monitor):
    """One QMP connection. A context manager that connects nothing by itself but always closes."""

    def __init__(self, path: Path, *, watch: Watch | None = None) -> None:
        """:param watch: called while connecting; what it returns is raised (the process has
        ended).
        """
        super().__init__()
        self.path = path
        self._watch = watch
        self._client = QMPClient(path.name)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._end_task: asyncio.Task[None] | None = None
        self._lost: str | None = None
        self._quitting = False

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def lost(self) -> str | None:
        """Why the connection is gone, or None while it lives."""
        return self._lost

    def connect(self, deadline: Deadline) -> Mapping[str, object]:
        """Connect, negotiate, and return the greeting's version object.

        :raises LostMachine: no process listens, or it does not speak QMP.
        :raises DeadlineExceeded: no greeting in time.
        """
        if self._client.runstate is not Runstate.IDLE or self._thread:
            raise LostMachine("this QMP connection was already used", how="no-answer")
        # A socket made here, so that shutdown() can free a session stuck in its last flush.
        self._socket = connect_unix(self.path, deadline, self._watch)
        self._socket.setblocking(False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        try:
            self._call(self._connect(self._socket), deadline, "QMP greeting")
        except (ConnectError, AssertionError) as error:
            # AssertionError: qemu.qmp 0.0.6, of a peer that hangs up right after it negotiated
            self.close()
            raise LostMachine(
                f"'{self.path}' does not speak QMP: {error!r}", how="garbled"
            ) from error
        except BaseException:
            self.close()
            raise
        greeting = self._client.greeting
        return greeting.QMP.version if greeting else {}

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        deadline: Deadline | None = None,
    ) -> object:
        """Execute a command; see :meth:`Monitor.execute`."""
        deadline = deadline or Deadline.after(COMMAND_TIMEOUT_S, f"QMP '{command}'")
        if self._lost or self._thread is None:
            raise LostMachine(
                f"QMP is gone: {self._lost or 'never connected'}; wanted '{command}'",
                how="no-answer",
            )
        if command == "quit":
            self._quitting = True
        try:
            return self._call(
                self._client.execute(command, dict(arguments or {})), deadline, f"'{command}'"
            )
        except ExecuteError as error:
            raise QmpRefused(command, error.error_class, str(error)) from error
        except (ExecInterruptedError, StateError) as error:
            self._note_lost("the peer closed the connection")
            if command == "quit":
                # QEMU may close before the answer is on the wire; it did what it was asked
                return {}
            if isinstance(error, StateError):
                raise LostMachine(f"QMP is gone; wanted '{command}'", how="no-answer") from error
            raise OutcomeUnknown(
                f"QMP ended while '{command}' was under way",
                hint="check in QEMU whether it was carried out",
            ) from error
        except QMPError as error:
            self._note_lost(f"nonsense from the peer: {error}")
            raise LostMachine(
                f"nonsense in answer to '{command}': {error}", how="garbled"
            ) from error

    def drop(self) -> None:
        """Cut the connection without closing it properly; for the fault tests."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Disconnect and end the thread, whatever state either is in. Idempotent."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            # Only a bug of this module can leave the thread stuck: wait for it with a limit.
            with contextlib.suppress(concurrent.futures.TimeoutError):
                asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result(
                    2 * DISCONNECT_TIMEOUT_S + _GRACE_S
                )
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_GRACE_S)
            if not self._thread.is_alive():
                self._loop.close()
        self._loop = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._note_lost("closed on this side")

    # --- the asyncio side

    def _call(self, coroutine: Coroutine[object, object, T], deadline: Deadline, what: str) -> T:
        if self._loop is None:
            coroutine.close()
            raise LostMachine(f"QMP is closed; wanted {what}", how="no-answer")
        bounded = asyncio.wait_for(coroutine, deadline.remaining_s)
        future = asyncio.run_coroutine_threadsafe(bounded, self._loop)
        try:
            return future.result(deadline.remaining_s + _GRACE_S)
        except (TimeoutError, concurrent.futures.TimeoutError) as error:
            future.cancel()
            raise deadline.exceeded(f"no answer to {what}") from error

    async def _connect(self, link: socket.socket) -> None:
        # An event is kept when it is offered; the listener's own queue stays empty.
        self._client.register_listener(EventListener(event_filter=self._keep_message))
        await self._client.connect(link)
        self._end_task = asyncio.create_task(self._see_end())

    async def _see_end(self) -> None:
        while self._client.runstate in (Runstate.RUNNING, Runstate.CONNECTING):
            await self._client.runstate_changed()
        self._note_lost("QEMU was told to quit" if self._quitting else "the peer hung up")
        # `qemu.qmp` stays in DISCONNECTING until disconnect() is called (qmpbackup #29)
        await self._disconnect_client()

    def _keep_message(self, message: Mapping[str, object]) -> bool:
        self._keep(str(message.get("event")), message.get("data"))
        return False

    def _note_lost(self, why: str) -> None:
        with self._lock:
            if self._lost is None:
                self._lost = why
                log.debug("QMP '%s': %s", self.path, why)

    async def _disconnect(self) -> None:
        if self._end_task is not None and not self._end_task.done():
            self._end_task.cancel()
            await asyncio.wait({self._end_task}, timeout=DISCONNECT_TIMEOUT_S)
        await self._disconnect_client()

    async def _disconnect_client(self) -> None:
        """Call ``disconnect()`` and bound it: it flushes first, and a peer may never read."""
        if self._client.runstate is Runstate.IDLE:
            return
        task = asyncio.ensure_future(self._client.disconnect())
        _, pending = await asyncio.wait({task}, timeout=DISCONNECT_TIMEOUT_S)
        if pending and self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            _, pending = await asyncio.wait({task}, timeout=DISCONNECT_TIMEOUT_S)
        if pending:
            task.cancel()
        elif not task.cancelled() and (error := task.exception()) is not None:
            # why the reader ended: end of file, reset, or nonsense
            log.debug("QMP '%s' ended with: %r", self.path, error)
