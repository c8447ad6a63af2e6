# SPDX-License-Identifier: Apache-2.0
"""The calls of the control host. Loaded by the call thread, off the path of a restore.

Each method takes the call's ``args`` and returns its ``ok``, or that and a function to run once the
reply has been sent.
"""

from __future__ import annotations

import os
import time

from ..base import host
from ..base.fast_stdlib import (
    TYPE_CHECKING,
    encode_json,
    now_ns,
    read_text,
    run_parallel,
    run_program,
)
from ..base.names import CallError
from ..guest.guest_agent import ask_time
from ..guest.guests import Guest
from ..guest.spec import GuestSpec
from ..guest.vmm_qemu import RUN_DIR, VmmError
from ..update.adopt import write_state
from ..update.handover import HandoverError
from .args import device_of, guest_of, integer, text

if TYPE_CHECKING:
    from .args import After, Args
    from .main import Agent

GUESTS_MAX = 64
QGA_S = 10.0
#: of one answer to update_log
LOG_REPLY_BYTES = 2 << 20
_LOADERS = {"file": "-s", "legacy": "-c"}


class Calls:
    """The calls that the control host can make: call NAME is the method ``_call_NAME``."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._handover = agent.handover
        #: pages that keep memory fragmented, as long as this kernel runs
        self._pins: object = None
        self._fragmented: Args | None = None
        self._hugetlb: Args | None = None

    def run(self, name: str, args: Args) -> tuple[Args, After]:
        """Carry out one call.

        :raises CallError, HandoverError, VmmError, SpecError, OSError: the call failed.
        """
        if name == "jump":
            self._handover.check_jump()
            return {}, self._handover.jump
        if name == "inject":
            from .inject import inject

            return {}, inject(self._agent, args)
        call = getattr(self, f"_call_{name}", None)
        if call is None:
            names = [each.removeprefix("_call_") for each in dir(self) if each.startswith("_call_")]
            known = " ".join(sorted([*names, "jump", "inject"]))
            raise CallError("unknown-call", f"no call '{name}'; there are: {known}")
        return call(args), None

    # --- host

    def _call_ping(self, _args: Args) -> Args:
        return {"boot_id": host.boot_id()}

    def _call_set_nonce(self, args: Args) -> Args:
        with open(f"{RUN_DIR}/nonce", "w") as file:
            file.write(text(args, "nonce"))
        return {}

    def _call_set_time(self, args: Args) -> Args:
        time.clock_settime_ns(time.CLOCK_REALTIME, integer(args, "realtime_ns"))
        return {}

    def _call_facts(self, _args: Args) -> Args:
        return host.facts(self._handover.preserved_bytes)

    def _call_load_kernel(self, args: Args) -> Args:
        loader = args.get("loader", "file")
        if not isinstance(loader, str) or loader not in _LOADERS:
            raise CallError("args", f"'loader' is {loader!r}, must be one of {sorted(_LOADERS)}")
        began = time.monotonic_ns()
        path = text(args, "path")
        # kexec would load one that is cut short, too
        if "sha256" in args and host.file_sha256(path) != args["sha256"]:
            raise CallError("image", f"'{path}' is not what was copied: its sha256 differs")
        if read_text("/sys/kernel/kexec_loaded") == "1":
            _kexec("-u")
        words = f"{text(args, 'append')} {self._handover.next_words()}".rstrip()
        was_loaded = read_text("/sys/kernel/kexec_loaded")
        _kexec(_LOADERS[loader], "-l", path, f"--command-line={words}")
        return {
            "elapsed_ns": time.monotonic_ns() - began,
            "command": f"kexec {_LOADERS[loader]} -l {path}",
            "was_loaded": was_loaded,
            "is_loaded": read_text("/sys/kernel/kexec_loaded"),
        }

    def _call_unload_kernel(self, _args: Args) -> Args:
        if read_text("/sys/kernel/kexec_loaded") == "1":
            _kexec("-u")
        return {}

    def _call_prepare(self, args: Args) -> Args:
        digest = args.get("digest")
        if isinstance(digest, bool):
            for guest in self._agent.guests.values():
                guest.spec.digest = digest
            if self._agent.update.lock is not None:
                self._agent.update.lock.digest = digest
        return self._handover.prepare()

    def _call_abandon(self, _args: Args) -> Args:
        return self._handover.abandon()

    def _call_finish(self, _args: Args) -> Args:
        return self._handover.finish()

    # --- an operator's update

    def _call_update_begin(self, args: Args) -> Args:
        lock = self._agent.update.begin(args)
        self._agent.holder = text(args, "id")
        return lock

    def _call_update_status(self, _args: Args) -> Args:
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

    def _call_update_watch(self, args: Args) -> Args:
        self._agent.update.watch(args.get("guests"))
        return {}

    def _call_update_log(self, args: Args) -> Args:
        return self._agent.update.read(integer(args, "from"), LOG_REPLY_BYTES)

    def _call_update_end(self, _args: Args) -> Args:
        if self._handover.state != "idle":
            state = self._handover.state
            raise CallError("state", f"state is '{state}': 'abandon' or 'finish' first")
        self._agent.update.end()
        return {}

    def _call_survey(self, args: Args) -> Args:
        from ..update.survey import survey

        return survey(self._agent, args)

    # --- guests

    def _call_start_guests(self, args: Args) -> Args:
        if self._handover.state != "idle":
            raise CallError("state", f"state is '{self._handover.state}', must be 'idle'")
        raw = args.get("guests")
        if not isinstance(raw, list) or not 0 < len(raw) <= GUESTS_MAX:
            raise CallError("args", f"'guests' must be a list of 1 to {GUESTS_MAX}")
        agent = self._agent
        specs = [GuestSpec(each) for each in raw]
        # a guest whose VMM has ended may be started again; until then its state can be queried
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

    def _call_guest_status(self, _args: Args) -> Args:
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

    def _call_stop_guests(self, _args: Args) -> Args:
        _raise_first(run_parallel([g.vmm.stop for g in self._agent.guests.values()]))
        return {}

    def _call_cont_guests(self, _args: Args) -> Args:
        _raise_first(run_parallel([g.vmm.cont for g in self._agent.guests.values()]))
        return {}

    # --- devices

    def _call_start_devices(self, args: Args) -> Args:
        from ..device.devices import ERRORS, start_devices

        if self._handover.state != "idle" or self._handover.devices:
            raise CallError("state", "devices are started once, before a hop")
        taken = {each.bdf for guest in self._agent.guests.values() for each in guest.spec.devices}
        try:
            started = start_devices(args.get("devices"), self._agent.emit, taken)
        except ERRORS as err:
            raise CallError("device", str(err)) from err
        self._handover.devices.update(started)
        return self._call_device_status({})

    def _call_device_status(self, _args: Args) -> Args:
        said: Args = {name: device.status() for name, device in self._handover.devices.items()}
        for guest in self._agent.guests.values():
            said.update((each.name, each.status()) for each in guest.spec.devices)
        return said

    def _call_device_frames(self, args: Args) -> Args:
        iova, frames = device_of(self._handover.devices, args).frames()
        return {"iova": iova, **_pack_frames(frames)}

    def _call_stop_devices(self, _args: Args) -> Args:
        from ..device.devices import ERRORS, stop_devices
        from ..guest.passthrough import stop_guests

        said = stop_devices(self._handover.devices)
        return {**said, **stop_guests(self._agent.guests.values(), ERRORS)}

    def _call_payload(self, args: Args) -> Args:
        sock = guest_of(self._agent.guests, args).vmm.payload
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

    def _call_qga_ping(self, args: Args) -> Args:
        return {"realtime_ns": ask_time(guest_of(self._agent.guests, args), QGA_S)}

    def _call_pfns(self, args: Args) -> Args:
        ram = guest_of(self._agent.guests, args).ram
        if ram is None:
            raise CallError("no-guest", "the guest has no memory")
        return _pack_frames(host.page_frames(ram.fd, ram.size, ram.offset))

    # --- costs

    def _call_fragment(self, args: Args) -> Args:
        """Fragment the host's free memory, once."""
        from ..update import fragment

        share = args.get("share")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise CallError("args", f"'share' is {share!r}, must be a number above 0, at most 1")
        if self._fragmented is not None:
            raise CallError("state", "memory is fragmented once only")
        try:
            self._pins, self._fragmented = fragment.fragment(share)
        except (fragment.FragmentError, OSError) as err:
            raise CallError("fragment", str(err)) from err
        return self._fragmented

    def _call_costs(self, _args: Args) -> Args:
        """Return the fields of ``CostFacts``."""
        from ..update import costs

        guests = [guest for guest in self._agent.guests.values() if guest.error is None]
        return costs.of_host(self._handover.open(), guests, self._fragmented, self._hugetlb)

    def _call_hugetlb(self, args: Args) -> Args:
        """Allocate as much memory from hugetlbfs and free it; return the fields of
        ``HugetlbFacts``.
        """
        from ..update import costs

        size = integer(args, "bytes")
        if size <= 0 or size % costs.HUGE_BYTES:
            raise CallError("args", f"'bytes' is {size}, must be a multiple of 2 MiB")
        self._hugetlb = costs.try_hugetlb(size)
        return self._hugetlb

    def _call_kho_map(self, _args: Args) -> Args:
        """Return KHO's root devicetree, for a reader of all RAM; "" when it is not visible."""
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
    """Run kexec-tools; its output becomes the error's message."""
    status, text = run_program([host.KEXEC, *args])
    if status:
        raise HandoverError("kexec", f"kexec {args[0]} ended with {status}: {text}")
