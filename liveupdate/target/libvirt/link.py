# SPDX-License-Identifier: Apache-2.0
"""libvirt-python with deadlines: one connection, one domain, and QMP through its monitor.

libvirt's calls have no time limit, so each runs in a thread that is abandoned at the deadline. Its
events need a loop, of which a process has one. The binding is an optional extra and is imported
when it is used. Must not know what a domain is made of.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import logging
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import (
    LaunchError,
    LiveUpdateError,
    LostMachine,
    OutcomeUnknown,
    PlanError,
)
from liveupdate.transport.monitor import Monitor, take_answer
from liveupdate.transport.qmp import COMMAND_TIMEOUT_S

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_TIMEOUT_S = 20.0
_KEEPALIVE_S = 5
_KEEPALIVE_COUNT = 3


class NoAnswer(PlanError):
    """There is no libvirt at a URI, or it refuses the connection."""


@functools.cache
def load() -> tuple[ModuleType, ModuleType]:
    """Import the binding and start its event loop, once.

    :raises PlanError: it is not installed.
    """
    try:
        import libvirt
        import libvirt_qemu
    except ImportError as error:
        raise PlanError(
            f"target 'libvirt' needs libvirt-python: {error}",
            hint="run 'make setup', or pip install 'liveupdate[libvirt]'",
        ) from error
    # it prints every error to stderr as well
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt", daemon=True).start()
    return libvirt, libvirt_qemu


def check(uri: str) -> None:
    """Check that a connection opens, before a plan relies on it.

    :raises NoAnswer: libvirt does not answer.
    :raises PlanError: there is no binding.
    """
    try:
        Link.open(uri, Deadline.after(CONNECT_TIMEOUT_S, f"libvirt at '{uri}'")).close()
    except LaunchError as error:
        raise NoAnswer(error.message, hint=error.hint) from error


def bounded(work: Callable[[], T], deadline: Deadline, what: str) -> T:
    """Call ``work`` in a thread of its own.

    :raises DeadlineExceeded: it has not returned; the thread is abandoned.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=carry_out, name="libvirt-call", daemon=True).start()
    try:
        return future.result(deadline.remaining_s)
    except concurrent.futures.TimeoutError as error:
        if future.done():
            raise
        raise deadline.exceeded(f"libvirt does not answer: {what}") from error


class Link:
    """One connection to a libvirtd, and the domain started over it."""

    def __init__(self, connection: Any, uri: str) -> None:
        self.uri = uri
        self._libvirt, self._libvirt_qemu = load()
        self._connection = connection
        self._domain: Any = None
        self._lock = threading.Lock()
        #: why the connection is gone, or None while it lives
        self.lost: str | None = None
        #: how the domain stopped, as libvirt tells it
        self.stopped: str | None = None
        connection.registerCloseCallback(self._closed, None)
        connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)

    @classmethod
    def open(cls, uri: str, deadline: Deadline) -> Link:
        """Connect.

        :raises PlanError: there is no binding.
        :raises LaunchError: libvirt does not answer, or refuses.
        """
        binding, _ = load()
        try:
            return cls(bounded(lambda: binding.open(uri), deadline, f"open '{uri}'"), uri)
        except binding.libvirtError as error:
            raise LaunchError(
                f"no libvirt at '{uri}': {_say(error)}",
                hint="start libvirtd, or name another one: --target libvirt:URI",
            ) from error

    def create(self, xml: str, deadline: Deadline) -> str:
        """Start a transient domain, paused; return its UUID. It ends with this connection.

        :raises LaunchError: with the message of libvirt or QEMU.
        """
        flags = self._libvirt.VIR_DOMAIN_START_PAUSED | self._libvirt.VIR_DOMAIN_START_AUTODESTROY
        try:
            self._domain = bounded(
                lambda: self._connection.createXML(xml, flags), deadline, "create the domain"
            )
            self._connection.domainEventRegisterAny(
                self._domain, self._libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
            )
            return str(self._domain.UUIDString())
        except self._libvirt.libvirtError as error:
            raise LaunchError(f"libvirt did not start the machine: {_say(error)}") from error

    def watch_monitor(self, keep: Callable[[str, str | None], None]) -> None:
        """Call ``keep`` with name and JSON data of each QMP event."""

        def event(_c: object, _d: object, name: str, _s: int, _us: int, data: Any, _o: Any) -> None:
            keep(name, data)

        self._libvirt_qemu.qemuMonitorEventRegister(
            self._connection, self._domain, None, event, None
        )

    def ask_monitor(self, command: str, deadline: Deadline, what: str) -> str:
        """Send a QMP command and return QEMU's answer, both JSON.

        :raises LostMachine: the domain, or libvirtd, is gone.
        :raises OutcomeUnknown: it went away before it answered.
        """
        if self.lost is not None:
            raise LostMachine(f"libvirt is gone: {self.lost}; wanted {what}", how="no-answer")
        try:
            answer = bounded(
                lambda: self._libvirt_qemu.qemuMonitorCommand(self._domain, command, 0),
                deadline,
                what,
            )
        except self._libvirt.libvirtError as error:
            gone = (
                self._libvirt.VIR_ERR_OPERATION_INVALID,
                self._libvirt.VIR_ERR_NO_DOMAIN,
                self._libvirt.VIR_ERR_INVALID_CONN,
            )
            if error.get_error_code() in gone:
                raise LostMachine(
                    f"libvirt has no such machine any more: {_say(error)}; wanted {what}",
                    how="no-answer",
                ) from error
            raise OutcomeUnknown(
                f"libvirt lost QEMU while {what} was under way: {_say(error)}"
            ) from error
        return str(answer)

    def destroy(self, deadline: Deadline) -> None:
        """Power the domain off; idempotent.

        :raises LostMachine: libvirt failed.
        """
        if self._domain is None:
            return
        try:
            bounded(self._domain.destroy, deadline, "destroy the domain")
        except self._libvirt.libvirtError as error:
            off = (self._libvirt.VIR_ERR_OPERATION_INVALID, self._libvirt.VIR_ERR_NO_DOMAIN)
            if error.get_error_code() not in off:
                raise LostMachine(
                    f"libvirt cannot end the machine: {_say(error)}", how="no-answer"
                ) from error

    def is_defined(self, name: str, deadline: Deadline) -> bool:
        """Whether libvirt still knows a domain of that name."""
        try:
            bounded(lambda: self._connection.lookupByName(name), deadline, "look for the domain")
        except self._libvirt.libvirtError as error:
            if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise LostMachine(f"libvirt cannot be asked: {_say(error)}", how="no-answer") from error
        return True

    def close(self) -> None:
        """Disconnect, which ends the domain if it still runs. Idempotent."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        self.lost = self.lost or "closed on this side"
        try:
            bounded(
                connection.close,
                Deadline.after(CONNECT_TIMEOUT_S, "libvirt to release the connection"),
                "close the connection",
            )
        except (self._libvirt.libvirtError, LiveUpdateError) as error:
            log.debug("closing '%s': %s", self.uri, error)

    def _closed(self, _connection: object, reason: int, _opaque: object) -> None:
        names = ("error", "end of file", "keepalive", "client")
        why = names[reason] if 0 <= reason < len(names) else str(reason)
        self.lost = self.lost or why

    def _lifecycle(self, _c: object, _d: object, event: int, detail: int, _o: object) -> None:
        if event == self._libvirt.VIR_DOMAIN_EVENT_STOPPED:
            # virDomainEventStoppedDetailType
            names = ("shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "snapshot")
            self.stopped = names[detail] if 0 <= detail < len(names) else str(detail)


class PassedMonitor(Monitor):
    """QMP through libvirt."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    @property
    def lost(self) -> str | None:
        """Why the connection is gone, or None while it lives."""
        return self._link.lost

    def connect(self, deadline: Deadline) -> Mapping[str, object]:
        """Start listening and return what ``query-version`` returns."""
        self._link.watch_monitor(self._keep_text)
        version = self.execute("query-version", None, deadline)
        return version if isinstance(version, dict) else {}

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        deadline: Deadline | None = None,
    ) -> object:
        """Execute a command through libvirt; see :meth:`Monitor.execute`."""
        deadline = deadline or Deadline.after(COMMAND_TIMEOUT_S, f"QMP '{command}'")
        request = json.dumps({"execute": command, "arguments": dict(arguments or {})})
        try:
            text = self._link.ask_monitor(request, deadline, f"'{command}'")
        except (LostMachine, OutcomeUnknown):
            if command == "quit":
                # QEMU may close before the answer is on the wire; it did what it was asked
                return {}
            raise
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise LostMachine(
                f"nonsense in answer to '{command}': {error}", how="garbled"
            ) from error
        return take_answer(command, answer)

    def drop(self) -> None:
        """Close the connection, which ends the machine: libvirtd holds the monitor."""
        self._link.close()

    def close(self) -> None:
        """Do nothing: the owner of the link closes it."""

    def _keep_text(self, name: str, data: str | None) -> None:
        try:
            self._keep(name, json.loads(data) if data else {})
        except ValueError:
            self._keep(name, {})


def _say(error: Exception) -> str:
    """Put libvirt's message on one line; it ends with QEMU's own message."""
    return " ".join(str(error).split())
