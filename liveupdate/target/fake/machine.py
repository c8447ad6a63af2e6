# SPDX-License-Identifier: Apache-2.0
"""What stands in for QEMU's process and all in it: threads at the far ends of its sockets.

Its guests tick in RAM, keep a journal and answer echoes. A kexec is a banner and another boot id.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.units import PAGE_BYTES, PhysAddr
from liveupdate.formats import echo
from liveupdate.formats.kvm_state import CLASSES
from liveupdate.model.plan import KernelImage
from liveupdate.target.fake.guest import FakeGuest
from liveupdate.target.qemu.argv import MachinePaths
from liveupdate.transport.guest_network import Wire
from liveupdate.transport.physmem import PhysMem, RamRange, digest_selected

AGENT_PID = 7
TSC_KHZ = 2_000_000
#: guests' RAM begins here, one after the other
_FIRST_FRAME = (1 << 20) // PAGE_BYTES
#: physical address of the VM states, a page each
_FIRST_STATE = 1 << 16
_TICK_S = 0.002
#: how long its network waits for a frame, and so how long it takes to end
_FRAME_S = 0.02
#: an incoming agent that is asked nothing goes on by itself
_ASKED_S = 1.0


class Refusal(Exception):
    """A call is answered with an error of this kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Script:
    """What a fake machine does other than work; may be changed while it runs."""

    #: reason for which the freeze fails
    refuse_freeze: str = ""
    #: what comes of the jump: "" the incoming kernel; "panic", "reset", "exit", "hang"; "empty": a
    #: kernel that recovers nothing
    incoming: str = ""
    #: why it panics
    panic: str = "fake"
    #: guests that the incoming agent cannot bring back
    lost: frozenset[str] = frozenset()
    #: guests of whose VM state the first half is preserved
    cut: frozenset[str] = frozenset()
    #: called with the arguments before a call of that name is answered; may raise :class:`Refusal`
    calls: dict[str, Callable[[Mapping[str, Any]], None]] = field(default_factory=dict)
    #: calls that are never answered
    silent: frozenset[str] = frozenset()
    is_ssh_up: bool = True
    #: the agent tells where VM states lie
    is_placed: bool = True
    #: from the last word of a kernel to the first of the next, and from there to its agent's
    kernel_s: float = 0.01


class FakeMachine:
    """QEMU's process and all in it: a :class:`~liveupdate.target.base.Process`."""

    def __init__(
        self, script: Script, paths: MachinePaths, memory_bytes: int, kernels: Sequence[KernelImage]
    ) -> None:
        """:param kernels: that of the first boot, and those of the hops."""
        self.script = script
        self.pid = os.getpid()
        self.start_time = proc.read_start_time(self.pid) or 0
        self.returncode: int | None = None
        self.guests: dict[str, FakeGuest] = {}
        #: names of all calls in order
        self.calls: list[str] = []
        self.boot_id, self.nonce, self.generation = f"boot-{secrets.token_hex(4)}", "", 0
        self._kernels = kernels
        self._disks = {disk.serial: disk.path for disk in paths.disks}
        #: told the reason of a reset
        self.on_reset: Callable[[str], None] = lambda _reason: None
        self._ram = whole_ram(paths.ram_fd, memory_bytes)
        self._wire = Wire(paths.wire_qemu, paths.wire_ours)
        self._listeners = [_listen(paths.console), _listen(paths.agent)]
        self._links: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._sending = threading.Lock()
        self._n = 0
        self._is_loaded = False
        #: by guest: where its VM state is, and what was reported about it when it was saved
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._saved: dict[str, dict[str, object]] = {}
        self._asked = threading.Event()

    # --- as a process

    def wait(self, deadline: Deadline) -> int:
        """Wait until it ends. :raises DeadlineExceeded: it has not."""
        return wait_until(lambda: self.returncode, deadline)

    def end(self, code: int) -> None:
        """End, as far as others see it; its threads go with :meth:`close`."""
        if self.returncode is None:
            self.returncode = code
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """End it. Idempotent."""
        self.end(-9)

    def close(self) -> None:
        """End it and join its threads. Idempotent."""
        self.kill()
        self._asked.set()
        for thread in self._threads:
            thread.join()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._ram)
            stack.enter_context(self._wire)
            for each in (*self._links, *self._listeners):
                stack.enter_context(each)
            for guest in self.guests.values():
                stack.callback(guest.close)

    # --- as a machine

    def start(self) -> None:
        """Let the CPUs run: the first kernel boots, and its agent says hello."""
        self._links = [listener.accept()[0] for listener in self._listeners]
        for work in (self._serve, self._live, self._network):
            self._begin(work)
        self._print_banner()
        self.emit("hello", pid=AGENT_PID, recovered=False)

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"fake-{work.__name__}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._links[0].sendall(f"{text}\r\n".encode())

    def _print_banner(self) -> None:
        self._print(f"[    0.000000] Linux version {self._kernels[self.generation].release} (fake)")

    def emit(self, name: str, **data: object) -> None:
        """Send an event of the agent's."""
        self._n += 1
        self._send({"n": self._n, "event": name, "t_ns": time.monotonic_ns(), "data": data})

    def _send(self, value: Mapping[str, object]) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._links[1].sendall(json.dumps(value).encode() + b"\n")

    def _live(self) -> None:
        while self.returncode is None:
            for guest in tuple(self.guests.values()):
                guest.live()
            time.sleep(_TICK_S)

    def _network(self) -> None:
        while self.returncode is None:
            frame = self._wire.recv(Deadline.after(_FRAME_S, "a frame"))
            if frame is None:
                continue
            with contextlib.suppress(echo.EchoError):
                request = echo.decode_echo(frame.data)
                index = int(request.destination.rpartition(":")[2], 16)
                for guest in tuple(self.guests.values()):
                    reply = guest.answer(request) if guest.index == index else None
                    if reply is not None:
                        self._wire.send(reply)

    def _serve(self) -> None:
        with self._links[1].makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                if line.strip():
                    self._take(json.loads(line))

    def _take(self, request: Mapping[str, Any]) -> None:
        name, args = request["call"], request["args"]
        self.calls.append(name)
        if name in self.script.silent:
            return
        try:
            if name in self.script.calls:
                self.script.calls[name](args)
            method = getattr(self, f"_call_{name}", None)
            if method is None:
                raise Refusal("call", f"unknown call '{name}'")
            self._send({"re": request["seq"], "ok": method(args) or {}})
        except Refusal as refusal:
            error = {"kind": refusal.kind, "message": str(refusal)}
            self._send({"re": request["seq"], "error": error})
            return
        if name == "jump":
            # the real agent answers before it does anything, too
            self._begin(self._jump)

    # --- the agent's calls

    def _call_facts(self, _args: Mapping[str, Any]) -> dict[str, object]:
        later, kernel = self.generation > 0, self._kernels[self.generation]
        return {
            "boot_id": self.boot_id, "release": kernel.release, "build_id": kernel.build_id,
            "cmdline": "console=ttyS0 kho=on liveupdate=on", "tsc_khz": TSC_KHZ,
            "kho_found": later, "generation": self.generation,
            "luo_number": self.generation or None, "liveupdate": True, "mem_free_bytes": 4 << 20,
            "preserved_bytes": later << 20, "scratch_bytes": 1 << 20,
            "mem_available_bytes": 5 << 20,
        }  # fmt: skip

    def _call_costs(self, _args: Mapping[str, Any]) -> dict[str, object]:
        return {"mechanism": "luo-memfd", "metadata_bytes": None, "rams": [], "fragment": None}

    def _call_ping(self, _args: Mapping[str, Any]) -> None:
        pass

    _call_set_time = _call_prepare = _call_finish = _call_ping

    def _call_set_nonce(self, args: Mapping[str, Any]) -> None:
        self.nonce = args["nonce"]
        self._asked.set()

    def _call_kho_map(self, _args: Mapping[str, Any]) -> dict[str, object]:
        return {"fdt": "", "preserved_bytes": 0}

    def _call_start_guests(self, args: Mapping[str, Any]) -> dict[str, object]:
        frame = _FIRST_FRAME
        for each in args["guests"]:
            guest = FakeGuest(each, self._ram, frame, self._disks[each["disk"]])
            self.guests[guest.name] = guest
            frame += guest.pages
            self._say(guest, "hello")
        return {"qemu_version": "fake"}

    def _call_stop_guests(self, _args: Mapping[str, Any]) -> None:
        for guest in self.guests.values():
            guest.pause()

    def _call_cont_guests(self, _args: Mapping[str, Any]) -> None:
        for guest in self.guests.values():
            guest.resume()

    def _call_guest_status(self, _args: Mapping[str, Any]) -> dict[str, object]:
        return {
            name: {"status": "running" if guest.is_running else "paused", "error": guest.error}
            for name, guest in self.guests.items()
        }

    def _call_payload(self, args: Mapping[str, Any]) -> None:
        guest = self.guests[args["guest"]]
        if guest.error is not None:
            raise Refusal("epipe", guest.error)
        self._say(guest, args["command"]["cmd"])

    def _say(self, guest: FakeGuest, command: str) -> None:
        line = guest.say(command) if guest.is_running else None
        if line is not None:
            self.emit("guest-line", guest=guest.name, line=json.dumps(line))

    def _call_pfns(self, args: Mapping[str, Any]) -> dict[str, object]:
        guest = self.guests[args["guest"]]
        return {"pages": guest.pages, "pfns": _pack(guest.pfns)}

    def _call_read_ram(self, args: Mapping[str, Any]) -> dict[str, object]:
        guest = self.guests[args["guest"]]
        data = self._ram.read(guest.address(0) + args["offset"], args["bytes"])
        return {"data": base64.b64encode(data).decode()}

    def _call_load_kernel(self, _args: Mapping[str, Any]) -> None:
        self._is_loaded = True

    def _call_abandon(self, _args: Mapping[str, Any]) -> None:
        self._is_loaded = False

    def _call_inject(self, args: Mapping[str, Any]) -> None:
        match args["fault"]:
            case "refuse-state":
                self.script.refuse_freeze = "the VMM's state was refused"
                told = ("the state's token", "lu.guest.vm0", "free", "taken")
            case "cut-state":
                guest = args["args"]["guest"]
                self.script.cut = frozenset({guest})
                told = ("length in bytes", f"the VM state of '{guest}'", "4096", "2048")
            case other:
                raise Refusal("fault", f"the fake has no fault '{other}'")
        names = ("what", "where", "before", "after")
        self.emit("struck", fault=args["fault"], **dict(zip(names, told, strict=True)))

    def _call_jump(self, _args: Mapping[str, Any]) -> None:
        if not self._is_loaded:
            raise Refusal("not-loaded", "no kernel is loaded")

    # --- the update

    def _jump(self) -> None:
        for guest in self.guests.values():
            guest.pause()
            self.emit("paused", guest=guest.name)
            self._tell_digests(guest, "freeze")
            self._tell_vcpus(guest, "before")
            self._save(guest)
        if self.script.refuse_freeze:
            self.emit("freeze-failed", guest="", message=self.script.refuse_freeze)
            self._call_cont_guests({})
            return
        self.emit("jumping")
        time.sleep(self.script.kernel_s)
        match self.script.incoming:
            case "exit":
                self.end(1)
            case "reset":
                self.reset("guest-reset")
            case "hang":
                pass
            case "panic":
                self._print(f"Kernel panic - not syncing: {self.script.panic}")
            case said:
                self._boot(is_empty=said == "empty")

    def _save(self, guest: FakeGuest) -> None:
        place = PhysAddr(_FIRST_STATE + guest.index * PAGE_BYTES)
        self._ram.write(place, secrets.token_bytes(PAGE_BYTES))
        self._places[guest.name] = [(place, PAGE_BYTES)]
        self._saved[guest.name] = self._sum_state(guest)
        self.emit("saved", guest=guest.name, **self._saved[guest.name])
        if guest.name in self.script.cut:
            self._places[guest.name] = [(place, PAGE_BYTES // 2)]
        places = self._places[guest.name]
        told = {"places": places} if self.script.is_placed else {"unplaced": "the fake"}
        self.emit("preserved", guest=guest.name, **told)

    def _sum_state(self, guest: FakeGuest) -> dict[str, object]:
        places = self._places[guest.name]
        size = sum(size for _, size in places)
        return {"state_bytes": size, "state_digest": self._ram.digest(places)}

    def _boot(self, *, is_empty: bool) -> None:
        self.generation += 1
        self.boot_id, self.nonce, self._is_loaded = f"boot-{secrets.token_hex(4)}", "", False
        self._print_banner()
        time.sleep(self.script.kernel_s)
        self._asked.clear()
        self.emit("hello", pid=AGENT_PID + self.generation, recovered=not is_empty, sessions=[])
        if is_empty:
            for guest in self.guests.values():
                guest.error = "nothing was left"
            return
        # not before the other side has begun to read memory that was not touched
        self._asked.wait(_ASKED_S)
        time.sleep(self.script.kernel_s)
        self._restore()

    def _restore(self) -> None:
        for name, guest in self.guests.items():
            self.emit("retrieved", guest=name)
            self._tell_digests(guest, "boot")
            if name in self.script.lost:
                guest.error = "the VMM ended"
                self.emit("restore-failed", guest=name, kind="vmm", message=guest.error)
                continue
            self.emit("vmm-up", guest=name)
            state = self._sum_state(guest)
            self.emit("state-read", guest=name, **state)
            if state != self._saved[name]:
                guest.error = "the VM state is another; it was not loaded"
                self.emit("restore-failed", guest=name, kind="state", message=guest.error)
                continue
            self.emit("loaded", guest=name)
            self._tell_vcpus(guest, "after")
            guest.resume()
            self.emit("resumed", guest=name)
        sessions = ["lu.agent", *(f"lu.guest.{name}" for name in self.guests)]
        self.emit(
            "restored",
            sessions=[
                {"name": name, "error": None, "tokens": 2, "retrieve_ns": 1} for name in sessions
            ],
        )

    def _tell_digests(self, guest: FakeGuest, moment: str) -> None:
        if guest.is_told:
            digests = _pack(digest_selected(self._ram.select_pages(guest.pfns)))
            self.emit("digests", guest=guest.name, moment=moment, first=0, digests=digests)

    def _tell_vcpus(self, guest: FakeGuest, moment: str) -> None:
        if not guest.has_vcpu_state:
            return
        classes = {name: bytes(size) for name, size in CLASSES.items()}
        classes["tsc_khz"] = TSC_KHZ.to_bytes(8, "little")
        told = {name: data.hex() for name, data in classes.items()}
        for vcpu in range(guest.vcpus):
            self.emit(
                "vcpu-state", guest=guest.name, moment=moment, vcpu=vcpu, classes=told,
                msrs={"10": "1"}, refused={},
            )  # fmt: skip

    def reset(self, reason: str) -> None:
        """Be reset, which ends a machine that may not reboot."""
        self.on_reset(reason)
        self.end(0)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def whole_ram(descriptor: int, size_bytes: int) -> PhysMem:
    """Map RAM that lies at address 0 in one piece."""
    span = RamRange(start=PhysAddr(0), size_bytes=size_bytes, offset=0)
    return PhysMem(descriptor, size_bytes, [span])
