# SPDX-License-Identifier: Apache-2.0
"""A host under an operator's update, faked at the agent's seam: calls in, answers and events out.

What the agent remembers of an update is the real thing (``liveupdate.agent.update.lock_record``),
and so are the digests; guests are threads that tick in a memfd. A kexec is a change of boot id.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liveupdate.agent.base import framing
from liveupdate.agent.base.names import CallError
from liveupdate.agent.guest import digest
from liveupdate.agent.guest.spec import GuestSpec
from liveupdate.agent.mechanisms.base import Ram
from liveupdate.agent.update.lock_record import Update
from liveupdate.agent.update.survey import SPEC_KEYS
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import DeadlineExceeded, LaunchError, OutcomeUnknown, RemoteError
from liveupdate.formats.tickpage import TickPage, encode_tick
from liveupdate.target.ssh.host import HostLocked
from liveupdate.transport.agent_link import AgentEvent

PAGE = 4096
MEMORY = 16 << 20
TICK_PAGE = 3
PATTERN_PAGES = 8
#: one that runs ticks within this time
ALIVE_S = 5.0
#: of a VM state
DIGEST = "5a" * 16


class FakeGuest:
    """Ticks every 5 ms while it runs; looks to ``Update`` like the agent's own guest."""

    def __init__(self, name: str, index: int) -> None:
        self.spec = GuestSpec(
            {
                "name": name,
                "index": index,
                "memory_bytes": MEMORY,
                "pattern_bytes": PATTERN_PAGES * PAGE,
            }
        )
        self.ram: Ram | None = Ram(os.memfd_create(name), MEMORY)
        os.ftruncate(self.ram.fd, MEMORY)
        for page in range(PATTERN_PAGES):
            os.pwrite(self.ram.fd, secrets.token_bytes(PAGE), (16 + page) * PAGE)
        self.boot = secrets.randbits(63)
        self.seq = 0
        self.running = True
        self.error: str | None = None
        self._end = False
        self._write = threading.Lock()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def _tick(self) -> None:
        while not self._end:
            with self._write:
                if self.running and self.ram is not None:
                    self.seq += 1
                    page = TickPage(
                        lock=0, boot=self.boot, seq=self.seq, tsc=self.seq,
                        monotonic_ns=self.seq, boottime_ns=self.seq, realtime_ns=self.seq,
                        seed=0, pattern_pages=PATTERN_PAGES, pattern_bad=0, journal_seq=0,
                        echo_count=0,
                    )  # fmt: skip
                    os.pwrite(self.ram.fd, encode_tick(page), TICK_PAGE * PAGE)
            time.sleep(0.005)

    def pause(self) -> None:
        with self._write:
            self.running = False

    def end(self) -> None:
        self._end = True
        self._thread.join()
        if self.ram is not None:
            self.ram.close()
            self.ram = None

    @property
    def is_alive(self) -> bool:
        """Whether it ticks; its thread may have to wait for a busy machine."""
        before, until = self.seq, time.monotonic() + ALIVE_S
        while self.running and self.seq == before and time.monotonic() < until:
            time.sleep(0.01)
        return self.running and self.seq > before


@dataclass
class FakeHost:
    """The machine. ``faults``: called instead of, or before, a call of that name."""

    incoming_build: str
    guests: dict[str, FakeGuest] = field(default_factory=dict)
    boot_id: str = "boot-0"
    generation: int = 0
    build: str = "aaaa"
    state: str = "idle"
    loaded: bool = False
    recovered: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    nonce: str = ""
    #: the network
    up: bool = True
    #: answers are lost, calls are not
    mute: bool = False
    faults: dict[str, Callable[[], None]] = field(default_factory=dict)
    refuse_jump: str = ""
    #: what the incoming kernel does: "" comes up, "reset": back to the old one, "hang"
    incoming: str = ""
    #: a guest that the incoming agent cannot bring back
    lost: str = ""
    #: the guest whose VM state comes over with another digest
    spoilt: str = ""
    calls: list[str] = field(default_factory=list)
    events: list[AgentEvent] = field(default_factory=list)
    power: Callable[[], None] | None = None
    wrong_key: Exception | None = None

    def __post_init__(self) -> None:
        for index, name in enumerate(("vm0", "vm1", "vm2")):
            self.guests[name] = FakeGuest(name, index)
        self._n = 0
        self.update = Update(self.guests)  # type: ignore[arg-type]  # as far as it looks

    def close(self) -> None:
        self.update.unwatch()
        time.sleep(0.05)
        for guest in self.guests.values():
            guest.end()

    @property
    def alive(self) -> list[str]:
        return [name for name, guest in self.guests.items() if guest.is_alive]

    def emit(self, name: str, **data: object) -> None:
        self._n += 1
        self.update.note(name, framing.encode_event(self._n, name, data))
        self.events.append(
            AgentEvent(name=name, n=self._n, boot=1, at_ns=time.monotonic_ns(), t_ns=0, data=data)
        )

    # --- what happens to it

    def crash_agent(self) -> None:
        """The agent ends and another is started: sessions are closed, guests run on."""
        self.update.unwatch()
        self.update = Update(self.guests)  # type: ignore[arg-type]
        self.state = "idle"
        for guest in self.guests.values():
            guest.running = True

    def boot_cold(self) -> None:
        """A reset: what was in memory is gone, the guests with it."""
        self.update.unwatch()
        for guest in self.guests.values():
            guest.pause()
        self.guests = {}
        self.update = Update({})
        self.boot_id, self.generation = f"cold-{secrets.token_hex(2)}", 0
        self.state, self.loaded, self.recovered, self.build = "idle", False, False, "aaaa"
        self.files.clear()
        self.up = True

    # --- calls

    def call(self, name: str, args: Mapping[str, Any]) -> dict[str, object]:
        self.calls.append(name)
        if name in self.faults:
            self.faults[name]()
        if name == "survey":
            return self._survey()
        if name == "facts":
            return self._facts()
        method = getattr(self, f"_call_{name}")
        result: dict[str, object] = method(args)
        return result

    def _facts(self) -> dict[str, object]:
        return {
            "boot_id": self.boot_id, "release": f"7.3-{self.build}", "build_id": self.build,
            "cmdline": "x", "tsc_khz": 1000, "kho_found": self.recovered,
            "generation": self.generation, "luo_number": self.generation or None,
            "liveupdate": True, "mem_free_bytes": 1 << 30, "preserved_bytes": 0,
            "scratch_bytes": 1 << 28,
        }  # fmt: skip

    def _survey(self) -> dict[str, object]:
        lock = self.update.lock
        return {
            "facts": self._facts(),
            "abi": ["kho-v4", "luo-v5"],
            "options": {"KEXEC_HANDOVER": "y", "LIVEUPDATE": "y", "LIVEUPDATE_MEMFD": "y"},
            "kexec": {"program": True, "loaded": self.loaded, "disabled": False},
            "owners": [{"pid": 7, "name": "python3"}],
            "memory": {"MemTotal": 4 << 30, "MemFree": 2 << 30, "MemAvailable": 2 << 30},
            "run_free_bytes": 1 << 30,
            "guests": {
                name: {
                    "spec": {key: getattr(guest.spec, key) for key in SPEC_KEYS},
                    "pid": 100, "status": "running",
                    "adapter": "cpr-reboot", "disk": "/dev/vdx", "ram_bytes": MEMORY,
                    "error": guest.error,
                }
                for name, guest in self.guests.items()
            },
            "strangers": [],
            "devices": {},
            "vfio": [],
            "agent": {
                "pid": 7, "handover": self.state, "unit": True,
                "update": lock.to_json() if lock is not None else None,
            },
        }  # fmt: skip

    def _call_update_status(self, _args: Mapping[str, Any]) -> dict[str, object]:
        lock, failed = self.update.lock, self.update.find("freeze-failed")
        return {
            "update": lock.to_json() if lock is not None else None,
            "handover": self.state, "loaded": self.loaded, "boot_id": self.boot_id,
            "release": "x", "generation": self.generation,
            "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            "recovered": self.recovered, "sessions": self._sessions(),
            "restored": self.update.find("restored") is not None,
            "failure": failed["message"] if failed is not None else None,
        }  # fmt: skip

    def _sessions(self) -> list[dict[str, object]]:
        if not self.recovered:
            return []
        names = ["lu.agent", *(f"lu.guest.{name}" for name in self.guests)]
        return [{"name": n, "error": None, "tokens": 2, "retrieve_ns": 1} for n in names]

    def _call_update_watch(self, args: Mapping[str, Any]) -> dict[str, object]:
        self.update.watch(args["guests"])
        return {}

    def _call_update_log(self, args: Mapping[str, Any]) -> dict[str, object]:
        return self.update.read(args["from"], 1 << 20)

    def _call_update_end(self, _args: Mapping[str, Any]) -> dict[str, object]:
        if self.state != "idle":
            raise RemoteError("update_end", "state", self.state)
        self.update.end()
        return {}

    def _call_payload(self, args: Mapping[str, Any]) -> dict[str, object]:
        name, command = args["guest"], args["command"]["cmd"]
        guest = self.guests[name]
        if guest.error is not None:
            raise RemoteError("payload", "epipe", "[Errno 32] Broken pipe")
        if not guest.running:
            return {}
        if command == "hello":
            line = (
                f'{{"ev":"ready","boot":"{guest.boot}","tick_gpa":"{TICK_PAGE * PAGE}",'
                f'"pattern_gpa_first":"{16 * PAGE}","pattern_pages":{PATTERN_PAGES},"seed":"0",'
                f'"name":"{name}","disk_sectors":"1","mac":""}}'
            )
        else:
            line = f'{{"ev":"verified","pages":{PATTERN_PAGES},"bad":0}}'
        self.emit("guest-line", guest=name, line=line)
        return {}

    def _call_read_ram(self, args: Mapping[str, Any]) -> dict[str, object]:
        guest = self.guests[args["guest"]]
        if not guest.running or guest.ram is None:
            raise RemoteError("read_ram", "paused", "paused")
        data = os.pread(guest.ram.fd, args["bytes"], args["offset"])
        return {"data": base64.b64encode(data).decode()}

    def _call_pfns(self, args: Mapping[str, Any]) -> dict[str, object]:
        base = (self.guests[args["guest"]].spec.index + 1) << 20
        count = MEMORY // PAGE
        raw = struct.pack(f"<{count}Q", *range(base, base + count))
        return {"pages": count, "pfns": base64.b64encode(zlib.compress(raw)).decode()}

    def _call_guest_status(self, _args: Mapping[str, Any]) -> dict[str, object]:
        return {
            name: {
                "vmm_pid": 1,
                "status": "running" if guest.running else "paused",
                "error": guest.error,
            }
            for name, guest in self.guests.items()
        }

    def _call_set_nonce(self, args: Mapping[str, Any]) -> dict[str, object]:
        self.nonce = args["nonce"]
        return {}

    def _need(self, call: str, *states: str) -> None:
        if self.state not in states:
            raise RemoteError(call, "state", f"state is '{self.state}'")

    def _call_prepare(self, args: Mapping[str, Any]) -> dict[str, object]:
        self._need("prepare", "idle")
        assert self.update.lock is not None
        self.update.lock.digest = args["digest"]
        self.record = os.memfd_create("record")
        os.ftruncate(self.record, self.update.log_bytes())
        self.state = "prepared"
        return {}

    def _call_load_kernel(self, args: Mapping[str, Any]) -> dict[str, object]:
        found = hashlib.sha256(self.files[args["path"]]).hexdigest()
        if found != args["sha256"]:
            raise RemoteError("load_kernel", "image", "its sha256 differs")
        self.loaded = True
        return {}

    def _call_unload_kernel(self, _args: Mapping[str, Any]) -> dict[str, object]:
        self.loaded = False
        return {}

    def _call_abandon(self, _args: Mapping[str, Any]) -> dict[str, object]:
        self._need("abandon", "prepared", "failed")
        self.state = "idle"
        os.close(self.record)
        return {}

    def _call_finish(self, _args: Mapping[str, Any]) -> dict[str, object]:
        self._need("finish", "restored")
        self.state = "idle"
        return {}

    def _call_jump(self, _args: Mapping[str, Any]) -> dict[str, object]:
        self._need("jump", "prepared")
        if not self.loaded:
            raise RemoteError("jump", "not-loaded", "no kernel is loaded")
        for name, guest in self.guests.items():
            guest.pause()
            self.emit("paused", guest=name)
            self._digests(guest, "freeze")
            self.emit("saved", guest=name, bytes=1, state_bytes=4096, state_digest=DIGEST)
            self.emit("preserved", guest=name, unplaced="no pagemap")
        if self.refuse_jump:
            self.emit("freeze-failed", guest="", message=self.refuse_jump)
            self.state = "failed"
            for guest in self.guests.values():
                guest.running = True
            self.update.watch()
            return {}
        self.emit("jumping")
        self.update.unwatch()
        self.update.save(self.record)
        if self.incoming == "reset":
            self.boot_cold()
        elif self.incoming == "hang":
            self.up = False
        else:
            self._come_up()
        return {}

    def _digests(self, guest: FakeGuest, moment: str) -> None:
        assert guest.ram is not None
        for first, text in digest.pages(guest.ram):
            self.emit("digests", guest=guest.spec.name, moment=moment, first=first, digests=text)

    def _come_up(self) -> None:
        self.boot_id, self.generation = f"boot-{self.generation + 1}", self.generation + 1
        self.build, self.loaded, self.recovered, self.state = (
            self.incoming_build, False, True, "restored",
        )  # fmt: skip
        self.files.clear()
        self.update = Update(self.guests)  # type: ignore[arg-type]
        self.update.take_over(self.record)
        os.close(self.record)
        self.emit("hello", boot_id=self.boot_id)
        self.update.watch()
        for name, guest in self.guests.items():
            self.emit("retrieved", guest=name)
            self._digests(guest, "boot")
            if name == self.lost:
                guest.error = "QEMU ended"
                self.emit("restore-failed", guest=name, kind="vmm", message=guest.error)
                continue
            self.emit("vmm-up", guest=name)
            found = "0" * 32 if name == self.spoilt else DIGEST
            self.emit("state-read", guest=name, state_bytes=4096, state_digest=found)
            if name == self.spoilt:
                guest.error = "another digest; it was not loaded"
                self.emit("restore-failed", guest=name, kind="state", message=guest.error)
                continue
            self.emit("loaded", guest=name)
            self.emit("resumed", guest=name)
            guest.running = True
        self.emit("restored", sessions=self._sessions())


class FakeLink:
    """The agent's channel, of one process."""

    def __init__(self, host: FakeHost, check: Callable[[], None]) -> None:
        self._host = host
        self._check = check

    def mark(self) -> int:
        return len(self._host.events)

    def call(
        self, name: str, args: Mapping[str, object] | None, deadline: Deadline
    ) -> Mapping[str, object]:
        self._check()
        if not self._host.up:
            time.sleep(0.02)
            raise DeadlineExceeded(deadline.what, 0.02)
        answer = self._host.call(name, args or {})
        if self._is_cut():
            raise OutcomeUnknown(f"the line was cut before the answer to '{name}'")
        return answer

    def _is_cut(self) -> bool:
        return self._host.mute or not self._host.up

    def wait_for(
        self, wanted: Callable[[AgentEvent], bool], deadline: Deadline, *, what: str, since: int = 0
    ) -> AgentEvent:
        for event in self._host.events[since:]:
            if wanted(event):
                return event
        raise deadline.exceeded(what)


@dataclass
class FakeDone:
    stdout: bytes


class FakeSsh:
    is_alive = True

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    def close(self) -> None:
        pass

    def run(self, argv: Sequence[str], deadline: Deadline, *, check: bool = False) -> FakeDone:
        if not self._host.up:
            raise OutcomeUnknown("the line was cut")
        if argv[0] == "sha256sum":
            return FakeDone(hashlib.sha256(self._host.files[argv[1]]).hexdigest().encode() + b"  x")
        if argv[0] == "rm":
            self._host.files.pop(argv[2], None)
            return FakeDone(b"")
        return FakeDone(f"{self._host.boot_id}\n{self._host.nonce}\n".encode())


class FakeHeld:
    """One process's connection; made anew by the next."""

    #: as every host that is there already, it is not seen from outside
    outside = None
    has_console = False
    problems: tuple[str, ...] = ()

    def __init__(self, host: FakeHost, update: str, owner: str) -> None:
        self._host = host
        self._claim: dict[str, object] = {"id": update, "owner": owner}
        self.agent = FakeLink(host, self._attach)

    def _attach(self) -> None:
        """As the relay does on every new line."""
        if self._host.wrong_key is not None:
            raise self._host.wrong_key
        if not self._host.up:
            return
        try:
            self._host.update.begin(self._claim)
        except CallError as error:
            raise HostLocked(str(error)) from error

    @property
    def trouble(self) -> str:
        return "" if self._host.up else "no route to host"

    def __enter__(self) -> FakeHeld:
        self._attach()
        return self

    def shutdown(self) -> tuple[str, ...]:
        return ()

    def death(self) -> Exception | None:
        return None

    def reconnect(self) -> None:
        pass

    def wait_line(self, deadline: Deadline) -> None:
        pass

    def reset(self, deadline: Deadline) -> None:
        if self._host.power is None:
            raise LaunchError("the power command failed: 'false' failed (exit 1): no output")
        self._host.power()

    def push_kernel(self, path: Path) -> str:
        if not self._host.up:
            raise OutcomeUnknown("the line was cut")
        self._host.files["/run/liveupdate/next-kernel"] = path.read_bytes()
        return "/run/liveupdate/next-kernel"

    def ssh(self, deadline: Deadline) -> FakeSsh:
        if not self._host.up:
            raise deadline.exceeded("no answer")
        return FakeSsh(self._host)
