# SPDX-License-Identifier: Apache-2.0
"""A guest of the payload right on the control host: what is tested is the payload, not the update.

Same devices in the same order as the VMM of the host under update gives its guests.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded
from liveupdate.core.proc import Child, spawn
from liveupdate.core.units import MIB, PAGE_BYTES
from liveupdate.formats.echo import EchoFrame, NotEchoError, build_request, decode_echo
from liveupdate.formats.payload import Done, PayloadEvent, Ready, decode_line
from liveupdate.formats.tickpage import TickPage, read_tick

GUEST_MAC = "52:54:00:20:00:01"
HOST_MAC = "52:54:00:00:00:01"
MEMORY_BYTES = 128 * MIB
DISK_BYTES = MIB
APPEND = "console=ttyS0 no_timer_check quiet panic=-1"
_BOOT_S = 60.0
_STEP_S = 20.0

E = TypeVar("E", bound=PayloadEvent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the machine is made of; the files in ``directory`` outlive it."""

    directory: Path
    kernel: Path
    initrd: Path
    append: str = ""
    disk: bool = True
    nic: bool = True
    port: bool = True
    incoming: bool = False
    device_args: tuple[str, ...] = ()

    @property
    def ram(self) -> Path:
        return self.directory / "ram"

    @property
    def disk_image(self) -> Path:
        return self.directory / "disk"

    @property
    def console(self) -> Path:
        return self.directory / "console"

    def build_argv(self) -> tuple[str, ...]:
        here = self.directory
        # fmt: off
        argv = [
            "qemu-system-x86_64", "-accel", "tcg", "-M", "q35,memory-backend=ram",
            "-m", f"{MEMORY_BYTES // MIB}M", "-smp", "1",
            "-object", f"memory-backend-file,id=ram,mem-path={self.ram},share=on,"
                       f"size={MEMORY_BYTES}",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-kernel", str(self.kernel), "-initrd", str(self.initrd),
            "-append", f"{APPEND} {self.append}",
            "-serial", f"file:{self.console}",
            "-qmp", f"unix:{here / 'qmp'},server=on,wait=off",
        ]
        if self.disk:
            argv += [
                "-drive", f"if=none,id=disk,format=raw,file={self.disk_image},werror=stop",
                "-device", "virtio-blk-pci,drive=disk,serial=g1",
            ]
        if self.nic:
            argv += [
                "-netdev", f"dgram,id=wire,local.type=unix,local.path={here / 'wire-guest'},"
                           f"remote.type=unix,remote.path={here / 'wire-host'}",
                "-device", f"virtio-net-pci,netdev=wire,mac={GUEST_MAC}",
            ]
        if self.port:
            argv += [
                "-device", "virtio-serial-pci",
                "-chardev", f"socket,id=port,path={here / 'port'},server=on,wait=off",
                "-device", "virtserialport,chardev=port,name=org.liveupdate.guest",
            ]
        # fmt: on
        argv += self.device_args
        if self.incoming:
            argv += ["-incoming", "defer"]
        return tuple(argv)


class Machine:
    """A running QEMU with one payload in it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        if setup.disk and not setup.disk_image.exists():
            setup.disk_image.write_bytes(bytes(DISK_BYTES))
        for name in ("wire-guest", "wire-host", "port", "qmp"):
            (setup.directory / name).unlink(missing_ok=True)
        self.wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.wire.bind(os.fspath(setup.directory / "wire-host"))
        self.wire.setblocking(False)
        with (setup.directory / "qemu.log").open("ab") as log:
            self.child: Child = spawn(setup.build_argv(), stdout=log, stderr=log)
        #: every event of the port so far
        self.seen: list[PayloadEvent] = []
        self._events: list[PayloadEvent] = []
        self._port: socket.socket | None = None
        self._port_rest = b""
        self._qmp: socket.socket | None = None
        self._qmp_file: io.BufferedIOBase = io.BytesIO()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.child.close()
        self.close_port()
        self._qmp_file.close()
        if self._qmp:
            self._qmp.close()
        self.wire.close()

    # --- console

    def wait_console(self, text: str) -> None:
        """Wait for a line of the payload on the console."""
        wait_until(
            lambda: text in self.read_console() or None,
            Deadline.after(_BOOT_S, f"'{text}' on the console"),
            describe=lambda: self.read_console()[-300:] + self.read_log()[-300:],
        )

    def read_console(self) -> str:
        path = self.setup.console
        return path.read_text(errors="replace") if path.exists() else ""

    def read_log(self) -> str:
        return (self.setup.directory / "qemu.log").read_text(errors="replace")

    # --- RAM

    def read_ram(self, gpa: int, size_bytes: int = PAGE_BYTES) -> bytes:
        with (
            self.setup.ram.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            return view[gpa : gpa + size_bytes]

    def write_ram(self, gpa: int, data: bytes) -> None:
        with self.setup.ram.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[gpa : gpa + len(data)] = data

    def read_tick(self, ready: Ready) -> TickPage:
        return read_tick(lambda: self.read_ram(ready.tick_gpa))

    def count_ticks(self, ready: Ready, duration_s: float) -> int:
        before = self.read_tick(ready).seq
        pass_time(duration_s)
        return self.read_tick(ready).seq - before

    # --- port

    def open_port(self) -> None:
        self.close_port()
        self._port = self._connect("port")
        self._port.setblocking(False)
        self._port.sendall(b"\n")

    def close_port(self) -> None:
        if self._port:
            self._port.close()
        self._port, self._port_rest = None, b""
        self._events.clear()

    def send(self, command: Mapping[str, str]) -> None:
        self.send_raw(json.dumps(dict(command)).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        assert self._port
        self._port.sendall(data)

    def wait_event(self, kind: type[E]) -> E:
        """Take the next event of this kind; those before it are dropped."""

        def take() -> E | None:
            self._poll_port()
            while self._events:
                event = self._events.pop(0)
                self.seen.append(event)
                if isinstance(event, kind):
                    return event
            return None

        return wait_until(
            take,
            Deadline.after(_BOOT_S, f"a {kind.__name__} line"),
            interval_s=0.005,
            describe=lambda: f"{self.seen[-5:]} console: {self.read_console()[-300:]}",
        )

    def command(self, command: Mapping[str, str]) -> None:
        """Send a command and wait until it is done."""
        self.send(command)
        assert self.wait_event(Done) == Done(cmd=command["cmd"])

    def _poll_port(self) -> None:
        assert self._port
        while True:
            try:
                data = self._port.recv(4096)
            except BlockingIOError:
                return
            if not data:
                return
            *whole, self._port_rest = (self._port_rest + data).split(b"\n")
            self._events += [event for event in map(decode_line, whole) if event]

    # --- wire

    def send_echo(self, seq: int) -> int:
        sent_ns = time.monotonic_ns()
        self.send_frame(
            build_request(destination=GUEST_MAC, source=HOST_MAC, seq=seq, sender_ns=sent_ns)
        )
        return sent_ns

    def send_frame(self, frame: bytes) -> None:
        self.wire.sendto(frame, os.fspath(self.setup.directory / "wire-guest"))

    def receive_echo(self, timeout_s: float = _STEP_S) -> EchoFrame | None:
        """The next echo frame, None when there is none in time."""

        def receive() -> EchoFrame | None:
            try:
                return decode_echo(self.wire.recv(2048))
            except (BlockingIOError, NotEchoError):
                return None

        try:
            return wait_until(receive, Deadline.after(timeout_s, "an echo"), interval_s=0.001)
        except DeadlineExceeded:
            return None

    # --- disk

    def read_disk(self) -> bytes:
        return self.setup.disk_image.read_bytes()

    # --- QMP

    def qmp(self, command: str, **arguments: object) -> object:
        """Execute a command; events on the way are ignored."""
        if self._qmp is None:
            self._qmp = self._connect("qmp")
            self._qmp.settimeout(_STEP_S)
            self._qmp_file = self._qmp.makefile("rb")
            self._qmp_file.readline()
            self.qmp("qmp_capabilities")
        request = {"execute": command, "arguments": arguments}
        self._qmp.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = json.loads(self._qmp_file.readline())
            if "error" in answer:
                raise AssertionError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def save(self, path: Path) -> None:
        """Stop, write the state (not the RAM, which is in a file) and end, as the agent does."""
        self.qmp("stop")
        self._set_migration()
        self.qmp("migrate", uri=f"file:{path}")
        self._wait_migration()
        self.qmp("quit")
        self.child.wait(Deadline.after(_STEP_S, "end of QEMU"))

    def load(self, path: Path) -> None:
        """Load a state and go on; the machine has been started with ``incoming``."""
        self._set_migration()
        self.qmp("migrate-incoming", uri=f"file:{path}")
        self._wait_migration()
        self.qmp("cont")

    def _set_migration(self) -> None:
        self.qmp(
            "migrate-set-capabilities",
            capabilities=[{"capability": "x-ignore-shared", "state": True}],
        )
        self.qmp("migrate-set-parameters", mode="cpr-reboot")

    def _wait_migration(self) -> None:
        def status() -> bool | None:
            info = self.qmp("query-migrate")
            assert isinstance(info, dict)
            assert info.get("status") != "failed", info
            return info.get("status") == "completed" or None

        wait_until(status, Deadline.after(_STEP_S, "migration"))

    def _connect(self, name: str) -> socket.socket:
        def connect() -> socket.socket | None:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(os.fspath(self.setup.directory / name))
            except OSError:
                sock.close()
                assert self.child.returncode is None, self.read_log()
                return None
            return sock

        return wait_until(connect, Deadline.after(_STEP_S, f"the socket '{name}'"))


def pass_time(duration_s: float) -> None:
    """Let the guest run; the one wait that waits for nothing else."""
    deadline = Deadline.after(duration_s, "time to pass")
    wait_until(lambda: deadline.expired, Deadline.after(duration_s + _STEP_S, "time to pass"))
