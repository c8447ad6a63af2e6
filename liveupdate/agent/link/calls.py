# SPDX-License-Identifier: Apache-2.0
"""The calls of the control host. Loaded by the call thread, off the path of a restore.

Each method takes the call's ``args`` and returns its ``ok``, or that and a function to be run once
the reply is on its way.
"""

from __future__ import annotations

import os
import time

from ..base import host
from ..base.fast_stdlib import (
    encode_json,
    now_ns,
    read_text,
    run_parallel,
    run_program,
)
from ..guest.guest_agent import GuestAgentError, ask_time
from ..guest.guests import Guest
from ..guest.spec import GuestSpec
from ..guest.vmm_qemu import RUN_DIR, VmmError
from ..update.adopt import write_state
from ..update.handover import HandoverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .main import Agent

    Args = dict[str, object]
    After = Callable[[], None] | None

GUESTS_MAX = 64
QGA_S = 10.0
#: of one answer to update_log
LOG_REPLY_BYTES = 2 << 20
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
        self._pins: object = None
        self._fragmented: Args | None = None
        self._hugetlb: Args | None = None
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
            "device_frames": self._device_frames,
            "stop_devices": self._stop_devices,
            "payload": self._payload,
            "qga_ping": self._qga_ping,
            "load_kernel": self._load_kernel,
            "unload_kernel": self._unload_kernel,
            "prepare": self._prepare,
            "pfns": self._pfns,
            "fragment": self._fragment,
            "costs": self._costs,
            "hugetlb": self._try_hugetlb,
            "kho_map": self._kho_map,
            "abandon": lambda _args: self._handover.abandon(),
            "finish": lambda _args: self._handover.finish(),
            "update_begin": self._update_begin,
            "update_status": self._update_status,
            "update_watch": self._update_watch,
            "update_log": self._update_log,
            "update_end": self._update_end,
            "survey": self._survey,
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
        path = _text(args, "path")
        # kexec would load one that is cut short, too
        if "sha256" in args and host.file_sha256(path) != args["sha256"]:
            raise CallError("image", f"'{path}' is not what was copied: its sha256 differs")
        if read_text("/sys/kernel/kexec_loaded") == "1":
            _kexec("-u")
        words = f"{_text(args, 'append')} {self._handover.next_words()}".rstrip()
        _kexec(_LOADERS[loader], "-l", path, f"--command-line={words}")
        return {"elapsed_ns": time.monotonic_ns() - began}

    def _unload_kernel(self, _args: Args) -> Args:
        if read_text("/sys/kernel/kexec_loaded") == "1":
            _kexec("-u")
        return {}

    def _prepare(self, args: Args) -> Args:
        digest = args.get("digest")
        if isinstance(digest, bool):
            for guest in self._agent.guests.values():
                guest.spec.digest = digest
            if self._agent.update.lock is not None:
                self._agent.update.lock.digest = digest
        return self._handover.prepare()

    # --- an operator's update

    def _update_begin(self, args: Args) -> Args:
        lock = self._agent.update.begin(args)
        self._agent.holder = _text(args, "id")
        return lock

    def _update_status(self, _args: Args) -> Args:
        update, handover = self._agent.update, self._handover
        failed, restored = update.find("freeze-failed"), update.find("restored")
        return {
            "update": update.lock.to_json() if update.lock is not None else None,
            "handover": handover.state,
            "loaded": read_text("/sys/kernel/kexec_loaded") == "1",
            "boot_id": host.boot_id(),
            "release": os.uname().release,
            "generation": host.generation(),
            "boottime_ns": now_ns(),
            "recovered": bool(handover.sessions),
            "sessions": handover.sessions,
            "restored": restored is not None,
            "failure": str(failed.get("message")) if failed is not None else None,
        }

    def _update_watch(self, args: Args) -> Args:
        self._agent.update.watch(args.get("guests"))
        return {}

    def _update_log(self, args: Args) -> Args:
        return self._agent.update.read(_integer(args, "from"), LOG_REPLY_BYTES)

    def _update_end(self, _args: Args) -> Args:
        if self._handover.state != "idle":
            state = self._handover.state
            raise CallError("state", f"state is '{state}': 'abandon' or 'finish' first")
        self._agent.update.end()
        return {}

    def _survey(self, args: Args) -> Args:
        from ..update.survey import survey

        return survey(self._agent, args)

    # --- guests

    def _start_guests(self, args: Args) -> Args:
        if self._handover.state != "idle":
            raise CallError("state", f"state is '{self._handover.state}', must be 'idle'")
        raw = args.get("guests")
        if not isinstance(raw, list) or not 0 < len(raw) <= GUESTS_MAX:
            raise CallError("args", f"'guests' must be a list of 1 to {GUESTS_MAX}")
        agent = self._agent
        specs = [GuestSpec(each) for each in raw]
        # one whose VMM has ended may be started anew; until then it is there to be asked about
        wanted = {spec.name for spec in specs}
        dead = [
            g for g in agent.guests.values() if g.spec.name in wanted and g.vmm.status is not None
        ]
        taken = [guest.spec for guest in agent.guests.values() if guest not in dead] + specs
        names, indexes = [spec.name for spec in taken], [spec.index for spec in taken]
        if len(set(names)) < len(names):
            raise CallError("args", f"guest names must differ: {names}")
        if len(set(indexes)) < len(indexes):
            raise CallError("args", f"guest indexes must differ: {indexes}")
        for guest in dead:
            del agent.guests[guest.spec.name]
            guest.discard()
        mechanism = self._handover.open()
        guests = [Guest(spec, mechanism, agent.network, agent.emit, agent.watch) for spec in specs]
        errors = run_parallel([guest.start for guest in guests])
        try:
            _raise_first(errors)
            guests[0].vmm.check_adapter()
        except Exception:
            for guest in guests:
                guest.discard()
            raise
        agent.guests.update((guest.spec.name, guest) for guest in guests)
        write_state(agent)
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
        from ..device.devices import ERRORS, start_devices

        if self._handover.state != "idle" or self._handover.devices:
            raise CallError("state", "devices are started once, before a hop")
        taken = {each.bdf for guest in self._agent.guests.values() for each in guest.spec.devices}
        try:
            started = start_devices(args.get("devices"), self._agent.emit, taken)
        except ERRORS as err:
            raise CallError("device", str(err)) from err
        self._handover.devices.update(started)
        return self._device_status({})

    def _device_status(self, _args: Args) -> Args:
        said: Args = {name: device.status() for name, device in self._handover.devices.items()}
        for guest in self._agent.guests.values():
            said.update((each.name, each.status()) for each in guest.spec.devices)
        return said

    def _device_frames(self, args: Args) -> Args:
        name = _text(args, "device")
        device = self._handover.devices.get(name)
        if device is None:
            raise CallError("no-device", f"no device '{name}'")
        iova, frames = device.frames()
        return {"iova": iova, **_pack_frames(frames)}

    def _stop_devices(self, _args: Args) -> Args:
        from ..device.devices import ERRORS, stop_devices
        from ..guest.passthrough import stop_guests

        said = stop_devices(self._handover.devices)
        return {**said, **stop_guests(self._agent.guests.values(), ERRORS)}

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
        try:
            return {"realtime_ns": ask_time(self._guest(args), QGA_S)}
        except GuestAgentError as err:
            raise CallError(err.kind, str(err)) from err

    def _pfns(self, args: Args) -> Args:
        ram = self._guest(args).ram
        if ram is None:
            raise CallError("no-guest", "the guest has no memory")
        return _pack_frames(host.page_frames(ram.fd, ram.size, ram.offset))

    # --- costs

    def _fragment(self, args: Args) -> Args:
        from ..update.fragment import FragmentError, fragment

        share = args.get("share")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise CallError("args", f"'share' is {share!r}, must be a number above 0, at most 1")
        if self._fragmented is not None:
            raise CallError("state", "memory is fragmented once only")
        try:
            # the pins have to live as long as this kernel
            self._pins, self._fragmented = fragment(share)
        except (FragmentError, OSError) as err:
            raise CallError("fragment", str(err)) from err
        return self._fragmented

    def _costs(self, _args: Args) -> Args:
        from ..update import costs

        guests = [guest for guest in self._agent.guests.values() if guest.error is None]
        mechanism = self._handover.open()
        return costs.of_host(mechanism, guests, self._fragmented, self._hugetlb)

    def _try_hugetlb(self, args: Args) -> Args:
        from ..update import costs

        size = _integer(args, "bytes")
        if size <= 0 or size % costs.HUGE_BYTES:
            raise CallError("args", f"'bytes' is {size}, must be a multiple of 2 MiB")
        self._hugetlb = costs.try_hugetlb(size)
        return self._hugetlb

    def _kho_map(self, _args: Args) -> Args:
        """Give KHO's root devicetree, "" when there is none to be seen, for who sees all RAM."""
        from binascii import b2a_base64

        try:
            with open(f"{host.KHO_DEBUGFS}/out/fdt", "rb") as file:
                fdt = file.read(1 << 16)
        except OSError:
            fdt = b""
        return {
            "fdt": b2a_base64(fdt, newline=False).decode("ascii"),
            "preserved_bytes": self._handover.preserved_bytes,
        }

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
        if fault == "wrong-pointer":
            self._handover.open().mislead()
            return None
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
        from ..mechanisms.fault_tools import fill

        fill(self._handover.open())

    def _spin(self) -> None:
        from ..base.fault_tools import spin

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


def _pack_frames(frames: list[int]) -> Args:
    from base64 import b64encode
    from struct import pack
    from zlib import compress

    packed = compress(pack(f"<{len(frames)}Q", *frames), 1)
    return {"pages": len(frames), "pfns": b64encode(packed).decode("ascii")}


def _raise_first(errors: list[Exception | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _kexec(*args: str) -> None:
    """Run kexec-tools; what it says becomes the error's message."""
    status, text = run_program([host.KEXEC, *args])
    if status:
        raise HandoverError("kexec", f"kexec {args[0]} ended with {status}: {text}")
