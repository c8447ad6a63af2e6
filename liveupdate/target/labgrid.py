# SPDX-License-Identifier: Apache-2.0
"""A place of a shared lab, held for a while: labgrid has the lock, the power and the console.

labgrid runs in child processes only (:mod:`liveupdate.target.labgrid_peer`, labgrid-client), so
that its event loop and its memory stay out of this process. Must not know the machine at the place.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import sys
import tempfile
import threading
from contextlib import ExitStack
from typing import IO

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import DeadlineExceeded, LaunchError, LiveUpdateError
from liveupdate.target.ssh.spec import LabgridSpec

#: labgrid's own variable and default, see labgrid-client(1)
COORDINATOR_ENV = "LG_COORDINATOR"
DEFAULT_COORDINATOR = "127.0.0.1:20408"
_TAKE_S = 30.0
_GIVE_BACK_S = 15.0
_PEER = "liveupdate.target.labgrid_peer"
#: the module behind labgrid-client
_CLIENT = "labgrid.remote.client"
_MAX_LINE = 64 * 1024
_TAIL_BYTES = 4096


class PlaceLost(LiveUpdateError):
    """The place was taken away: the machine may belong to another user by now."""


class Place:
    """One place. As a context manager: acquired, and released if this object acquired it."""

    def __init__(self, spec: LabgridSpec) -> None:
        self.spec = spec
        self.coordinator = (
            spec.coordinator or os.environ.get(COORDINATOR_ENV) or DEFAULT_COORDINATOR
        )
        #: labgrid reads its own variables: user and host name, proxies
        self.env = {name: text for name, text in os.environ.items() if name.startswith("LG_")}
        self._stack = ExitStack()
        self._said: queue.Queue[dict[str, object]] = queue.Queue()
        #: why the place is no longer held, or None
        self.lost: PlaceLost | None = None
        self._held = False
        self._leaving = False

    @property
    def console_argv(self) -> tuple[str, ...]:
        """Command whose output is the console of the place."""
        return (sys.executable, "-m", _PEER, "console", self.coordinator, self.spec.place)

    def reset(self, deadline: Deadline) -> None:
        """Cycle the power.

        :raises PlaceLost: the place is no longer held.
        :raises CommandFailed: labgrid failed.
        """
        if self.lost is not None:
            raise self.lost
        argv = ("-x", self.coordinator, "-p", self.spec.place, "power", "cycle")
        proc.run((sys.executable, "-m", _CLIENT, *argv), deadline=deadline, env=self.env)

    def __enter__(self) -> Place:
        """Acquire the place.

        :raises LaunchError: another user holds it (the message names them), or there is no such
            place.
        """
        if importlib.util.find_spec("labgrid") is None:
            raise LaunchError(
                "places of a lab need labgrid", hint="pip install 'liveupdate[labgrid]'"
            )
        try:
            self._take(Deadline.after(_TAKE_S, f"place '{self.spec.place}'"))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        """Release the place. Idempotent.

        :raises LaunchError: the coordinator may still list it as held.
        """
        self._leaving = True
        self._stack.close()

    # --- inside

    def _take(self, deadline: Deadline) -> None:
        log = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(theirs):
            # It is not killed when this process dies: the pipe closes, and it releases the place.
            child = proc.spawn(
                (
                    sys.executable, "-m", _PEER, "hold", self.coordinator, self.spec.place,
                    str(theirs),
                ),
                stdout=proc.PIPE,
                stderr=log,
                pass_fds=(theirs,),
                pdeathsig=False,
                env=self.env,
            )  # fmt: skip
        reader = threading.Thread(target=self._listen, args=(child, log), daemon=True)
        reader.start()
        self._stack.callback(reader.join)
        self._stack.enter_context(child)
        self._stack.callback(self._give_back, child, ours)
        first = self._next(deadline)
        self._held = first.get("event") == "held"
        if not self._held:
            raise LaunchError(f"labgrid: {first.get('reason', 'no answer')}")

    def _next(self, deadline: Deadline) -> dict[str, object]:
        try:
            return self._said.get(timeout=deadline.remaining_s)
        except queue.Empty as error:
            raise deadline.exceeded(f"the coordinator {self.coordinator}") from error

    def _listen(self, child: proc.Child, log: IO[bytes]) -> None:
        """Read the peer's lines until it ends; ``log`` has what labgrid says."""
        stream = child.popen.stdout
        assert stream is not None
        held = False
        while line := stream.readline(_MAX_LINE):
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if not isinstance(said, dict):
                continue
            held = held or said.get("event") == "held"
            if said.get("event") == "lost" and not self._leaving:
                self.lost = PlaceLost(str(said.get("reason")))
            self._said.put(said)
        size = os.fstat(log.fileno()).st_size
        tail = os.pread(log.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        lines = tail.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "it said nothing"
        if held and not self._leaving and self.lost is None:
            self.lost = PlaceLost(
                f"place '{self.spec.place}': its peer process has ended: {reason}"
            )
        self._said.put({"event": "ended", "reason": reason})

    def _give_back(self, child: proc.Child, ours: int) -> None:
        self._leaving = True
        os.close(ours)
        last: dict[str, object] = {}
        deadline = Deadline.after(_GIVE_BACK_S, f"place '{self.spec.place}' to be given back")
        try:
            while last.get("event") not in ("released", "lost", "ended"):
                last = self._next(deadline)
            child.wait(deadline)
        except DeadlineExceeded:
            last = {"event": "late"}
        if self._held and self.lost is None and last.get("event") != "released":
            raise LaunchError(
                f"place '{self.spec.place}' may not have been given back"
                f" ({last.get('reason', last.get('event'))})",
                hint=f"labgrid-client -p {self.spec.place} release",
            )
