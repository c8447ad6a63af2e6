# SPDX-License-Identifier: Apache-2.0
"""A lab of one's own: labgrid's real coordinator and exporter, on loopback."""

from __future__ import annotations

import queue
import select
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until

BIN = Path(sys.executable).parent
START_S = 30.0
#: who the test is, and who somebody else is
ME = {"LG_HOSTNAME": "desk", "LG_USERNAME": "me"}
OTHER = {"LG_HOSTNAME": "far", "LG_USERNAME": "somebody"}


class Lab:
    """A coordinator that answers."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{port}"
        self._coordinator: proc.Child | None = None
        self._exporter: proc.Child | None = None

    def create(self, place: str, resources: str) -> None:
        """Make a place of the resources that match ``EXPORTER/GROUP/CLASS``."""
        with self._session(ME) as (stub, wire, _):
            stub.AddPlace(wire.AddPlaceRequest(name=place), timeout=START_S)
            match = wire.AddPlaceMatchRequest(placename=place, pattern=resources)
            stub.AddPlaceMatch(match, timeout=START_S)

    def acquire(self, place: str, who: Mapping[str, str] = ME) -> None:
        """Take a place as a user."""
        with self._session(who) as (stub, wire, _):
            stub.AcquirePlace(wire.AcquirePlaceRequest(placename=place), timeout=START_S)

    def allow(self, place: str, user: str, who: Mapping[str, str]) -> None:
        """Let ``user`` in, as the user who holds the place."""
        with self._session(who) as (stub, wire, _):
            stub.AllowPlace(wire.AllowPlaceRequest(placename=place, user=user), timeout=START_S)

    def release(self, place: str) -> None:
        """Free a place, of whomever it is: what ``labgrid-client release --kick`` does."""
        with self._session(ME) as (stub, wire, _):
            stub.ReleasePlace(wire.ReleasePlaceRequest(placename=place), timeout=START_S)

    def holder(self, place: str) -> str | None:
        """Return who holds a place, None: it is free."""
        with self._session(ME) as (stub, wire, _):
            answer = stub.GetPlaces(wire.GetPlacesRequest(), timeout=START_S)
        (holder,) = (each.acquired for each in answer.places if each.name == place)
        return str(holder) or None

    def resources(self) -> set[str]:
        """Return the classes of all resources that the coordinator knows."""
        with self._session(ME) as (_, _, known):
            return known

    @contextmanager
    def _session(self, who: Mapping[str, str]) -> Iterator[tuple[Any, Any, set[str]]]:
        """Be one of labgrid's clients: its calls, its messages, the classes of the resources.

        A labgrid-client of its own would cost half a second of CPU to start. The coordinator
        takes a call for that of the user who opened the stream on the same connection.
        """
        import grpc
        from labgrid.remote.generated import labgrid_coordinator_pb2 as wire
        from labgrid.remote.generated import labgrid_coordinator_pb2_grpc as service

        asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        name = f"{who['LG_HOSTNAME']}/{who['LG_USERNAME']}"
        asked.put(wire.ClientInMessage(startup=wire.StartupDone(version="test", name=name)))
        asked.put(wire.ClientInMessage(subscribe=wire.Subscribe(all_resources=True)))
        asked.put(wire.ClientInMessage(sync=wire.Sync(id=1)))
        known: set[str] = set()
        with grpc.insecure_channel(self.address) as channel:
            stub = service.CoordinatorStub(channel)
            stream = stub.ClientStream(iter(asked.get, None), timeout=START_S)
            try:
                for message in stream:
                    known.update(
                        each.resource.cls for each in message.updates if each.HasField("resource")
                    )
                    if message.HasField("sync"):
                        break
                yield stub, wire, known
            finally:
                asked.put(None)
                stream.cancel()

    def start_coordinator(self) -> None:
        """Start it and wait until it can be called: an exporter gives up at the first refusal."""
        self._coordinator = child = self._start("coordinator", "-l", self.address)
        host, _, port = self.address.partition(":")

        def answers() -> bool:
            self._check(child, "coordinator")
            try:
                socket.create_connection((host, int(port)), timeout=1.0).close()
            except OSError:
                return False
            return True

        wait_until(
            answers,
            Deadline.after(START_S, "the coordinator to listen"),
            interval_s=0.1,
            describe=lambda: self.tail("coordinator"),
        )

    def stop_coordinator(self, place: str) -> None:
        """Kill it once it has stored ``place``, which it does every 15 s: it finds it again."""
        assert self._coordinator is not None
        stored = self.directory / "places.yaml"
        wait_until(
            lambda: stored.is_file() and place in stored.read_text(),
            Deadline.after(START_S, f"the coordinator to store place '{place}'"),
        )
        self._coordinator.close()

    def start_exporter(self, config: str, wanted: str) -> None:
        """Start it and wait until the coordinator knows the resource ``wanted``."""
        path = self.directory / "exporter.yaml"
        path.write_text(config)
        self._exporter = child = self._start(
            "exporter", "-c", self.address, "--name", "lab", "--hostname", "127.0.0.1", str(path)
        )
        seen: list[set[str]] = [set()]

        def there() -> bool:
            self._check(child, "exporter")
            seen[0] = self.resources()
            return wanted in seen[0]

        wait_until(
            there,
            Deadline.after(START_S, "the exporter's resources"),
            interval_s=0.1,
            describe=lambda: f"the coordinator knows {seen[0] or '{}'}; {self.tail('exporter')}",
        )

    def tail(self, program: str) -> str:
        """Return what one of the two said last."""
        lines = (self.directory / f"{program}.log").read_text(errors="replace").splitlines()
        return f"the {program} said last: " + " | ".join(lines[-8:])

    def close(self) -> None:
        for child in (self._exporter, self._coordinator):
            if child is not None:
                child.close()

    def _check(self, child: proc.Child, program: str) -> None:
        code = child.returncode
        assert code is None, f"the {program} ended with status {code}; {self.tail(program)}"

    def _start(self, program: str, *args: str) -> proc.Child:
        with (self.directory / f"{program}.log").open("ab") as log:
            return proc.spawn(
                (BIN / f"labgrid-{program}", *args),
                stdout=log,
                stderr=log,
                cwd=self.directory,
                # what it says comes in order
                env={"PYTHONUNBUFFERED": "1"},
            )


@contextmanager
def serve_power(switch: Callable[[], None]) -> Iterator[int]:
    """Be a relay that labgrid's driver ``simplerest`` talks to; ``switch``: it went on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/1"):
                switch()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def serve_socket(path: Path) -> Iterator[int]:
    """Offer a unix socket, such as a machine's console, as a TCP port, as ser2net would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    link = listener.accept()[0]
                except OSError:
                    return
                with link, socket.socket(socket.AF_UNIX) as console:
                    try:
                        console.connect(str(path))
                        _copy(console, link)
                    except OSError:
                        continue

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def _copy(console: socket.socket, link: socket.socket) -> None:
    """Copy what the console says until one of them is gone."""
    while True:
        ready = select.select([console, link], [], [])[0]
        if link in ready and not link.recv(4096):
            return
        if console in ready:
            data = console.recv(4096)
            if not data:
                return
            link.sendall(data)


@contextmanager
def serve(place: str, console_port: int, switch: Callable[[], None]) -> Iterator[Lab]:
    """Run a lab with one place: a raw console on ``console_port`` and a switch."""
    directory = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        power = stack.enter_context(serve_power(switch))
        lab = Lab(directory, _free_port())
        stack.callback(lab.close)
        lab.start_coordinator()
        lab.start_exporter(
            f"""
box:
  NetworkSerialPort:
    host: 127.0.0.1
    port: {console_port}
    protocol: raw
  NetworkPowerPort:
    model: simplerest
    host: 'http://127.0.0.1:{power}/relay/{{index}}/{{value}}'
    index: 1
""",
            "NetworkPowerPort",
        )
        lab.create(place, "lab/box/*")
        yield lab


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
