# SPDX-License-Identifier: Apache-2.0
"""The calls of the control host. Loaded by the call thread, off the path of a restore.

Each method takes the call's ``args`` and returns its ``ok``, or that and a function to be run once
the reply is on its way.
"""

from __future__ import annotations

import os
import time

from . import host
from .guests import Guest
from .handover import HandoverError
from .lean import decode_json, encode_json, read_text, run_parallel, run_program
from .spec import GuestSpec
from .vmm_qemu import RUN_DIR, VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .main import Agent

    Args = dict[str, object]
    After = Callable[[], None] | None

KEXEC = "/usr/sbin/kexec"
GUESTS_MAX = 64
QGA_S = 10.0
_LOADERS = {"file": "-s", "legacy": "-c"}

__all__ = ["CallError", "Calls"]


class CallError(Exception):
    """A call that cannot be carried out; ``kind`` is for programs."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Calls:
    """What the control host can ask for."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._handover = agent.handover
        self._table: dict[str, Callable[[Args], Args]] = {
            "ping": self._ping,
            "set_nonce": self._set_nonce,
            "set_time": self._set_time,
            "facts": self._facts,
            "start_guests": self._start_guests,
            "guest_status": self._guest_status,
            "stop_guests": self._stop_guests,
            "cont_guests": self._cont_guests,
            "start_devices": self._start_devices,
            "device_status": self._device_status,
            "stop_devices": self._stop_devices,
            "payload": self._payload,
            "qga_ping": self._qga_ping,
            "load_kernel": self._load_kernel,
            "prepare": lambda _args: self._handover.prepare(),
            "pfns": self._pfns,
            "abandon": lambda _args: self._handover.abandon(),
            "finish": lambda _args: self._handover.finish(),
        }

    def run(self, name: str, args: Args) -> tuple[Args, After]:
        """Carry out one call.

        :raises CallError, HandoverError, VmmError, SpecError, OSError: when it cannot be.
        """
        if name == "jump":
            self._handover.check_jump()
            return {}, self._handover.jump
        if name == "inject":
            return {}, self._inject(args)
        if name not in self._table:
            known = " ".join(sorted([*self._table, "jump", "inject"]))
            raise CallError("unknown-call", f"no call '{name}'; there are: {known}")
        return self._table[name](args), None

    # --- host

    def _ping(self, _args: Args) -> Args:
        return {"boot_id": host.boot_id()}

    def _set_nonce(self, args: Args) -> Args:
        with open(f"{RUN_DIR}/nonce", "w") as file:
            file.write(_text(args, "nonce"))
        return {}

    def _set_time(self, args: Args) -> Args:
        time.clock_settime_ns(time.CLOCK_REALTIME, _integer(args, "realtime_ns"))
        return {}

    def _facts(self, _args: Args) -> Args:
        return host.facts(self._handover.preserved_bytes)

    def _load_kernel(self, args: Args) -> Args:
        loader = args.get("loader", "file")
        if not isinstance(loader, str) or loader not in _LOADERS:
            raise CallError("args", f"'loader' is {loader!r}, must be one of {sorted(_LOADERS)}")
        began = time.monotonic_ns()
        if read_text("/sys/kernel/kexec_loaded") == "1":
            _kexec("-u")
        append = f"--command-line={_text(args, 'append')}"
        _kexec(_LOADERS[loader], "-l", _text(args, "path"), append)
        return {"elapsed_ns": time.monotonic_ns() - began}

    # --- guests

    def _start_guests(self, args: Args) -> Args:
        if self._handover.state != "idle":
            raise CallError("state", f"state is '{self._handover.state}', must be 'idle'")
        raw = args.get("guests")
        if not isinstance(raw, list) or not 0 < len(raw) <= GUESTS_MAX:
            raise CallError("args", f"'guests' must be a list of 1 to {GUESTS_MAX}")
        agent = self._agent
        specs = [GuestSpec(each) for each in raw]
        taken = [guest.spec for guest in agent.guests.values()] + specs
        names, indexes = [spec.name for spec in taken], [spec.index for spec in taken]
        if len(set(names)) < len(names):
            raise CallError("args", f"guest names must differ: {names}")
        if len(set(indexes)) < len(indexes):
            raise CallError("args", f"guest indexes must differ: {indexes}")
        carrier = self._handover.open()
        guests = [Guest(spec, carrier, agent.network, agent.emit, agent.watch) for spec in specs]
        errors = run_parallel([guest.start for guest in guests])
        try:
            _raise_first(errors)
            guests[0].vmm.check_adapter()
        except Exception:
            for guest in guests:
                guest.discard()
            raise
        agent.guests.update((guest.spec.name, guest) for guest in guests)
        argv = {guest.spec.name: guest.vmm.argv for guest in guests}
        return {"argv": argv, "qemu_version": guests[0].vmm.version}

    def _guest_status(self, _args: Args) -> Args:
        result: Args = {}
        for name, guest in self._agent.guests.items():
            status, error = None, guest.error
            if error is None:
                try:
                    status = guest.vmm.query_status()
                except VmmError as err:
                    error = str(err)
            result[name] = {"vmm_pid": guest.vmm.pid, "status": status, "error": error}
        return result

    def _stop_guests(self, _args: Args) -> Args:
        _raise_first(run_parallel([g.vmm.stop for g in self._agent.guests.values()]))
        return {}

    def _cont_guests(self, _args: Args) -> Args:
        _raise_first(run_parallel([g.vmm.cont for g in self._agent.guests.values()]))
        return {}

    # --- devices

    def _start_devices(self, args: Args) -> Args:
        from .devices import ERRORS, start_devices

        if self._handover.state != "idle" or self._handover.devices:
            raise CallError("state", "devices are started once, before a hop")
        try:
            started = start_devices(args.get("devices"), self._agent.emit)
        except ERRORS as err:
            raise CallError("device", str(err)) from err
        self._handover.devices.update(started)
        return self._device_status({})

    def _device_status(self, _args: Args) -> Args:
        return {name: device.status() for name, device in self._handover.devices.items()}

    def _stop_devices(self, _args: Args) -> Args:
        from .devices import stop_devices

        return stop_devices(self._handover.devices)

    def _payload(self, args: Args) -> Args:
        sock = self._guest(args).vmm.payload
        command = args.get("command")
        if sock is None or not isinstance(command, dict):
            raise CallError("args", "'command' must be an object, and the VMM must run")
        line = encode_json(command) + b"\n"
        try:
            sent = sock.send(line)
        except BlockingIOError:
            sent = 0
        if sent != len(line):
            raise CallError("busy", "the guest does not read its payload port")
        return {}

    def _qga_ping(self, args: Args) -> Args:
        guest = self._guest(args)
        sock = guest.vmm.qga
        if sock is None:
            raise CallError("args", f"guest '{guest.spec.name}' has no guest agent port")
        sync = time.monotonic_ns() & 0x7FFFFFFF
        deadline = time.monotonic() + QGA_S
        # guest-sync first: skips answers to a question that timed out earlier
        text = encode_json({"execute": "guest-sync", "arguments": {"id": sync}}) + b"\n"
        text += encode_json({"execute": "guest-get-time"}) + b"\n"
        buffer, synced = b"", False
        try:
            sock.settimeout(QGA_S)
            sock.sendall(text)
            while time.monotonic() < deadline and len(buffer) < 1 << 16:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                data = sock.recv(4096)
                if not data:
                    break
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    reply = decode_json(line.lstrip(b"\xff")) if line.strip() else None
                    value = reply.get("return") if isinstance(reply, dict) else None
                    if synced and isinstance(value, int):
                        return {"realtime_ns": value}
                    synced = synced or value == sync
        except (OSError, ValueError) as err:
            raise CallError("qga", f"guest agent: {err}") from err
        raise CallError("qga", "the guest agent does not answer")

    def _pfns(self, args: Args) -> Args:
        from base64 import b64encode
        from struct import pack
        from zlib import compress

        ram = self._guest(args).ram
        if ram is None:
            raise CallError("no-guest", "the guest has no memory")
        frames = host.page_frames(ram.fd, ram.size, ram.offset)
        packed = compress(pack(f"<{len(frames)}Q", *frames), 1)
        return {"pages": len(frames), "pfns": b64encode(packed).decode("ascii")}

    # --- faults

    def _inject(self, args: Args) -> After:
        fault = args.get("fault")
        details = args.get("args", {})
        if not isinstance(details, dict):
            raise CallError("args", "'args' must be an object")
        # accept both {"fault": F, "args": {...}} and the details beside the name
        details = {**{k: v for k, v in args.items() if k not in ("fault", "args")}, **details}
        record: Args = {"fault": fault, **details}
        if fault in ("close-session", "kill-vmm-at-freeze", "refuse-state", "spin-at-jump"):
            if "guest" in details:
                self._guest(details)
            self._handover.faults.append(record)
            return None
        if fault == "move-page" or (fault == "kill-vmm" and details.get("when") == "resumed"):
            guest = self._guest(details)
            if fault == "move-page" and not 0 <= _integer(details, "page") < guest.spec.pages:
                raise CallError("args", f"'page' must be below {guest.spec.pages}")
            guest.faults.append(record)
            return None
        if fault in ("map-unpreserved", "release-page", "reset-device"):
            self._inject_device(str(fault), _text(details, "device"))
            return None
        if fault == "kill-vmm":
            return self._guest(details).vmm.kill
        if fault == "reset-guest":
            return self._guest(details).vmm.reset
        if fault == "fill-region":
            return self._fill_region
        if fault == "spin":
            return self._spin
        if fault == "exit":
            return self._exit
        raise CallError("args", f"no fault {fault!r}")

    def _inject_device(self, fault: str, name: str) -> None:
        device = self._handover.devices.get(name)
        if device is None:
            raise CallError("no-device", f"no device '{name}'")
        if fault == "map-unpreserved":
            device.map_unpreserved()
        elif fault == "release-page":
            device.release_page()
        else:
            device.spec.fault = fault

    def _fill_region(self) -> None:
        from .faults import fill

        fill(self._handover.open())

    def _spin(self) -> None:
        from .faults import spin

        self._agent.port.drain(1.0)
        spin()

    def _exit(self) -> None:
        self._agent.port.drain(1.0)
        os._exit(1)

    def _guest(self, args: Args) -> Guest:
        name = _text(args, "guest")
        if name not in self._agent.guests:
            raise CallError("no-guest", f"no guest '{name}' in {sorted(self._agent.guests)}")
        return self._agent.guests[name]


def _text(args: Args, key: str) -> str:
    value = args.get(key)
    if not isinstance(value, str):
        raise CallError("args", f"'{key}' must be a string, is {value!r}")
    return value


def _integer(args: Args, key: str) -> int:
    value = args.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CallError("args", f"'{key}' must be an integer, is {value!r}")
    return value


def _raise_first(errors: list[Exception | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _kexec(*args: str) -> None:
    """Run kexec-tools; what it says becomes the error's message."""
    status, text = run_program([KEXEC, *args])
    if status:
        raise HandoverError("kexec", f"kexec {args[0]} ended with {status}: {text}")
