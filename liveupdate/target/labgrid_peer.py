# SPDX-License-Identifier: Apache-2.0
"""The one program that speaks to a labgrid coordinator; runs as a child of its own.

::

    python -m liveupdate.target.labgrid_peer hold COORDINATOR PLACE FD
    python -m liveupdate.target.labgrid_peer console COORDINATOR PLACE

``hold`` acquires the place and reports that in a line of JSON. It releases the place when FD, a
pipe whose other end the parent has, is closed: that happens even when the parent is killed.
``console`` copies the place's console to stdout, by labgrid's own driver. Must not know machines or
runs.

Lines: ``{"event": E, …}`` with E of ``held`` (``taken``: by us, now), ``refused`` (``reason``),
``lost`` (``reason``), ``released``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from argparse import Namespace
from getpass import getuser
from socket import gethostname
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labgrid.remote.client import ClientSession
    from labgrid.remote.common import Place

#: how often the coordinator's state of the place is checked; it sends changes by itself
LOOK_S = 0.2
#: wait this long for a coordinator that restarts; after that the place may be held by others
GONE_S = 30.0
_RETRY_S = 1.0
_RELEASE_S = 10.0
_CONSOLE_S = 15.0


def whoami() -> str:
    """Return the name by which coordinators know this user, as labgrid-client makes it."""
    host = os.environ.get("LG_HOSTNAME", gethostname())
    return f"{host}/{os.environ.get('LG_USERNAME', getuser())}"


def refusal(name: str, acquired: str | None, allowed: frozenset[str], me: str) -> str | None:
    """Return why a place cannot be used, or None: it is free, or held by this user."""
    if acquired in (None, "", me) or me in allowed:
        return None
    return (
        f"place '{name}' is held by {acquired}; they can let us in with"
        f" 'labgrid-client -p {name} allow {me}'"
    )


def say(event: str, **fields: object) -> None:
    """Print one event as a line of JSON."""
    print(json.dumps({"event": event, **fields}), flush=True)


def _connect(coordinator: str, place: str) -> ClientSession:
    from labgrid.remote.client import start_session

    asked = Namespace(place=place, allow_unmatched=False, config=None, state=None)
    return start_session(coordinator, extra={"args": asked})


def hold(coordinator: str, name: str, alive_fd: int) -> int:
    """Hold the place until the parent closes its pipe or the place is lost."""
    from labgrid.remote.client import Error

    try:
        session = _connect(coordinator, name)
        place = session.get_place(name)
        me = whoami()
        why = refusal(place.name, place.acquired, frozenset(place.allowed), me)
        if why is not None:
            say("refused", reason=why)
            return 1
        taken = not place.acquired
        if taken:
            session.check_matches(place)
            _run(session, _acquire(session, place.name))
    except Error as error:
        say("refused", reason=" ".join(map(str, error.args)))
        return 1
    say("held", taken=taken, place=place.name, by=place.acquired)
    holder = str(place.acquired)
    lost = _run(session, _watch(session, place, holder, alive_fd))
    if lost is None and session.stopping.is_set():
        session, lost = _find_again(coordinator, place.name, holder, alive_fd)
    if lost is not None:
        say("lost", reason=lost)
        return 1
    if taken:
        try:
            _run(session, _release(session, place.name, me))
        except Error as error:
            say("lost", reason=f"not given back: {' '.join(map(str, error.args))}")
            return 1
    say("released", taken=taken)
    return 0


def _run(session: ClientSession, coroutine: Any) -> Any:
    return session.loop.run_until_complete(coroutine)


async def _acquire(session: ClientSession, name: str) -> None:
    import grpc
    from labgrid.remote.client import ServerError
    from labgrid.remote.generated import labgrid_coordinator_pb2 as wire

    try:
        await session.stub.AcquirePlace(wire.AcquirePlaceRequest(placename=name))
        await session.sync_with_coordinator()
    except grpc.aio.AioRpcError as error:
        raise ServerError(error.details()) from error


async def _release(session: ClientSession, name: str, me: str) -> None:
    """Release the place if it is still held: the coordinator compares the holder."""
    import grpc
    from labgrid.remote.client import ServerError
    from labgrid.remote.generated import labgrid_coordinator_pb2 as wire

    request = wire.ReleasePlaceRequest(placename=name, fromuser=me)
    try:
        await asyncio.wait_for(session.stub.ReleasePlace(request), _RELEASE_S)
    except grpc.aio.AioRpcError as error:
        raise ServerError(error.details()) from error
    except TimeoutError as error:
        raise ServerError(f"the coordinator does not answer within {_RELEASE_S:.0f} s") from error


async def _watch(session: ClientSession, place: Place, holder: str, alive_fd: int) -> str | None:
    """Wait until the parent closes its pipe or the coordinator is gone (None), or the place is
    lost.
    """
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(alive_fd, gone.set)
    try:
        while not gone.is_set() and not session.stopping.is_set():
            if place.acquired != holder:
                return _taken_away(place)
            await asyncio.sleep(LOOK_S)
    finally:
        loop.remove_reader(alive_fd)
    return None


def _taken_away(place: Place) -> str:
    now = f"{place.acquired} holds it now" if place.acquired else "it is free now"
    return f"place '{place.name}' was taken away: {now}"


def _find_again(coordinator: str, name: str, holder: str, alive_fd: int) -> tuple[Any, str | None]:
    """Connect again to a coordinator that was gone, and go on watching."""
    from labgrid.remote.client import Error

    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        time.sleep(_RETRY_S)
        try:
            session = _connect(coordinator, name)
            place = session.get_place(name)
        except Error:
            continue
        if place.acquired != holder:
            return session, _taken_away(place)
        lost = _run(session, _watch(session, place, holder, alive_fd))
        if lost is not None or not session.stopping.is_set():
            return session, lost
        until = time.monotonic() + GONE_S
    return None, f"the coordinator {coordinator} has been gone for {GONE_S:.0f} s"


def console(coordinator: str, name: str) -> int:
    """Copy the console to stdout until it ends."""
    from labgrid import Target
    from labgrid.driver import SerialDriver
    from labgrid.exceptions import NoResourceFoundError
    from labgrid.remote.client import Error
    from labgrid.resource.remote import RemotePlace, RemotePlaceManager
    from pexpect import TIMEOUT

    try:
        session = _connect(coordinator, name)
        manager = RemotePlaceManager.get()
        manager.session, manager.loop = session, session.loop
        target = Target(name)
        RemotePlace(target, name=name)
        target.await_resources(target.resources, timeout=_CONSOLE_S)
        driver = SerialDriver(target, name=None)
        target.activate(driver)
    except (Error, NoResourceFoundError, OSError) as error:
        print(f"labgrid: {error}", file=sys.stderr)
        return 1
    while True:
        try:
            data = driver.read(timeout=0.5)
        except TIMEOUT:
            continue
        except OSError as error:  # pyserial's are
            print(f"labgrid: the console ended: {error}", file=sys.stderr)
            return 1
        os.write(sys.stdout.fileno(), data)


def main(argv: list[str]) -> int:
    """Run the command of the command line."""
    if len(argv) == 4 and argv[0] == "hold":
        return hold(argv[1], argv[2], int(argv[3]))
    if len(argv) == 3 and argv[0] == "console":
        return console(argv[1], argv[2])
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
