# SPDX-License-Identifier: Apache-2.0
"""A running host under update with its guests, as the runner sees it.

Bring-up (:mod:`liveupdate.run.bringup`) makes one, a hop (:mod:`liveupdate.run.hop`) uses it, a
fault (:mod:`liveupdate.faults`) strikes it. Guests are addressed through their page frame numbers,
which are read again whenever they may have moved.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import EvidenceError, LiveUpdateError, LostMachine, StateError
from liveupdate.core.units import PAGE_BYTES, PhysAddr
from liveupdate.evidence import RunDir
from liveupdate.formats import payload, tickpage
from liveupdate.formats.iommu import Requester
from liveupdate.formats.qemu_pci import find_function
from liveupdate.model.base import Value
from liveupdate.model.evidence import FrameAccount
from liveupdate.model.mechanism import Requirements
from liveupdate.model.plan import Plan
from liveupdate.model.scenario import GuestSpec
from liveupdate.model.vm_state import Places
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.probes.frames import FrameSender
from liveupdate.probes.link import read_link
from liveupdate.probes.memory import guest_page_index, page_address
from liveupdate.probes.qemu_machine import Machine
from liveupdate.target.base import Host
from liveupdate.target.qemu.argv import SSH_NIC, device_id, wire_id
from liveupdate.target.qemu.host import QemuHost
from liveupdate.transport.agent_link import AgentEvent
from liveupdate.transport.ssh import Ssh

T = TypeVar("T")
Line = TypeVar("Line", bound=payload.PayloadEvent)

CALL_S = 30.0
#: a host that hangs is not asked for its guests' ticks for longer than this
_READ_S = 5.0
#: a guest of 64 GiB has 16 Mi pages of 8 bytes
_MAX_PFN_BYTES = 8 * (64 << 30) // PAGE_BYTES
WIRE_MAC = "52:54:00:30:00:01"


@dataclass(slots=True)
class GuestHandle:
    """One running guest: what its payload reported, and where its RAM is."""

    spec: GuestSpec
    index: int
    ready: payload.Ready | None = None
    pfns: bytes = b""
    #: where its VM state lies while no kernel has it: from the freeze on
    state_places: Places = ()

    @property
    def mac(self) -> str:
        """MAC address of the guest's network card."""
        return f"52:54:00:20:00:{self.index:02x}"

    def tick_address(self) -> PhysAddr:
        """Host-physical address of the tick page.

        :raises ValueError: it is not known, or has no page frame.
        """
        index, rest = divmod(self.tick_offset(), PAGE_BYTES)
        return PhysAddr(page_address(self.pfns, index) + rest)

    def tick_offset(self) -> int:
        """Offset of the tick page in the guest's RAM. :raises ValueError: it is not known."""
        if self.ready is None or not self.ready.tick_gpa:
            raise ValueError(f"guest '{self.spec.name}' has no tick page")
        index = guest_page_index(self.ready.tick_gpa, self.spec.memory_bytes)
        return index * PAGE_BYTES + self.ready.tick_gpa % PAGE_BYTES

    def pattern_page(self) -> int:
        """Index of the RAM page that holds the pattern's first page."""
        if self.ready is None or not self.ready.pattern_gpa_first:
            raise ValueError(f"guest '{self.spec.name}' has no pattern")
        return guest_page_index(self.ready.pattern_gpa_first, self.spec.memory_bytes)

    def pattern_address(self) -> PhysAddr:
        """Host-physical address of the pattern's first page."""
        return page_address(self.pfns, self.pattern_page())


def field_of(fields: Mapping[str, object], key: str, kind: type[T]) -> T | None:
    """Return a field of what an agent sent; None: it is absent or of another type."""
    value = fields.get(key)
    return value if isinstance(value, kind) else None


def decode_pfns(answer: Mapping[str, object]) -> bytes:
    """Unpack the agent's answer to ``pfns``: u64 LE per page; bounded, because a host is not
    trusted.

    :raises EvidenceError: it does not follow the protocol.
    """
    text, pages = answer.get("pfns"), answer.get("pages")
    if not isinstance(text, str) or not isinstance(pages, int):
        raise EvidenceError("the agent's answer to 'pfns' lacks 'pfns' or 'pages'")
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(base64.b64decode(text, validate=True), _MAX_PFN_BYTES)
    except (ValueError, zlib.error) as error:
        raise EvidenceError(f"the agent's page frame numbers do not unpack: {error}") from error
    if len(raw) != pages * 8:
        raise EvidenceError(f"the agent sent {len(raw)} bytes of page frames for {pages} pages")
    return raw


class DeviceStatus(Value, frozen=True, kw_only=True):
    """What the agent says of one passed-through device."""

    bdf: str
    driver: str | None
    keep: str | None
    error: str | None
    account: FrameAccount | None


@dataclass(slots=True)
class Testbed:
    """The host, its guests, and where evidence goes."""

    plan: Plan
    host: Host
    record: RunDir
    guests: tuple[GuestHandle, ...]
    #: "cold", or "warm" with the key of the state
    start: str = "cold"
    guest_qemu_version: str | None = None
    agent_pid: int = 0
    #: marks the frames of this run
    stream: int = field(default_factory=lambda: secrets.randbits(64))
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    #: what feeds the devices, by name
    senders: dict[str, FrameSender] = field(default_factory=dict)
    _ssh: Ssh | None = None

    @property
    def machine(self) -> QemuHost | None:
        """The host as a machine that can be observed from outside, or None: it cannot."""
        return self.host.outside

    @property
    def own_machine(self) -> QemuHost:
        """The same, for what the planner refuses for any other target.

        :raises StateError: it is another all the same.
        """
        if self.machine is None:
            raise StateError("the host", state="a lab machine", required="a machine of this run")
        return self.machine

    @property
    def mechanism(self) -> Requirements:
        """What the mechanism of this run says of itself."""
        return MECHANISMS[self.plan.mechanism]

    @property
    def first_guest(self) -> GuestHandle:
        """The first guest of the plan, which faults strike."""
        return self.guests[0]

    def call(
        self, name: str, args: Mapping[str, object] | None = None, *, timeout_s: float = CALL_S
    ) -> Mapping[str, object]:
        """Call the agent; errors as :meth:`AgentLink.call`."""
        return self.host.agent.call(
            name, args, Deadline.after(timeout_s, f"the agent's answer to '{name}'")
        )

    def read_pfns(self, guest: GuestHandle) -> bytes:
        """Ask the running kernel where the guest's RAM is (inside view)."""
        return decode_pfns(self.call("pfns", {"guest": guest.spec.name}, timeout_s=60.0))

    def device_frames(self, name: str) -> tuple[int, bytes]:
        """Ask what the driver of a device has mapped: the first IOVA, and :func:`decode_pfns`.

        :raises EvidenceError: the answer makes no sense.
        """
        answer = self.call("device_frames", {"device": name}, timeout_s=60.0)
        iova = answer.get("iova")
        if not isinstance(iova, int) or iova < 0:
            raise EvidenceError(f"device_frames: 'iova' is {iova!r}")
        return iova, decode_pfns(answer)

    def find_device(self, name: str) -> tuple[int, Requester]:
        """Find the IOMMU's root pointer and a passed-through device's address, as they are now.

        :raises EvidenceError: the machine has no such device.
        """
        qmp = self.own_machine.qmp
        deadline = Deadline.after(CALL_S, "QEMU's list of PCI devices")
        found = find_function(qmp.execute("query-pci", {}, deadline), device_id(name))
        if found is None:
            raise EvidenceError(f"device '{name}' is not there")
        return Machine.find(qmp).unit.read_status(qmp).rtaddr, found.address

    def cut_cable(self, name: str) -> None:
        """Pull out the cable of a passed-through network card."""
        link = {"name": wire_id(name), "up": False}
        self.own_machine.qmp.execute("set_link", link, Deadline.after(CALL_S, "set_link"))

    def read_link(self, name: str = "") -> str:
        """Read from outside whether a network card has a link: "up" or "down".

        :param name: of a passed-through device; "": SSH's card.
        :raises DeadlineExceeded: its register cannot be read.
        """
        kind = next((each.kind for each in self.plan.devices if each.name == name), "virtio")
        card = device_id(name) if name else SSH_NIC
        deadline = Deadline.after(CALL_S, f"the link register of '{card}' to be readable")
        return wait_until(lambda: read_link(self.own_machine.qmp, card, kind), deadline)

    def device_mappings(self, name: str) -> frozenset[str]:
        """Walk the IOMMU's tables of a passed-through device in RAM; each run of pages as text.

        :raises EvidenceError: the machine has no such device, or no IOMMU.
        """
        machine = self.own_machine
        root, device = self.find_device(name)
        sets = Machine.find(machine.qmp).unit.decode(machine.ram, root, [device]).sets
        return frozenset(str(run) for each in sets for run in each.runs)

    def refresh_pfns(self) -> None:
        """Read the page frames of all guests again, after they may have moved."""
        for guest in self.guests:
            guest.pfns = self.read_pfns(guest)

    def read_tick_page(self, guest: GuestHandle) -> bytes:
        """Read the guest's tick page, from outside if possible.

        :raises ValueError: it is not known where it is.
        :raises tickpage.TickPageError: the host could not be asked.
        """
        if self.machine is not None:
            return self.machine.ram.read(guest.tick_address(), tickpage.SIZE_BYTES)
        try:
            answer = self.host.agent.call(
                "read_ram",
                {
                    "guest": guest.spec.name,
                    "offset": guest.tick_offset(),
                    "bytes": tickpage.SIZE_BYTES,
                },
                Deadline.after(_READ_S, "a tick page"),
            )
            return base64.b64decode(str(answer.get("data")), validate=True)
        except (LiveUpdateError, binascii.Error) as error:
            raise tickpage.TickPageError(
                f"the host does not say: {error}", where="read_ram"
            ) from error

    def ssh(self, deadline: Deadline) -> Ssh:
        """Return a connection that works; a new one when a kexec has cut the last one."""
        if self._ssh is None or not self._ssh.is_alive:
            self.close_ssh()
            self._ssh = self.host.ssh(deadline)
        return self._ssh

    def close_ssh(self) -> None:
        """Close the SSH connection, if there is one."""
        if self._ssh is not None:
            self._ssh.close()
            self._ssh = None

    def command(self, guest: GuestHandle, command: Mapping[str, str]) -> int:
        """Send a line to the guest's payload; return the event position to wait from."""
        mark = self.host.agent.mark()
        self.call("payload", {"guest": guest.spec.name, "command": dict(command)})
        return mark

    def wait_payload(
        self,
        guest: GuestHandle,
        kind: type[Line],
        deadline: Deadline,
        *,
        since: int = 0,
    ) -> Line:
        """Wait for a line of one kind from the guest's payload.

        :raises EvidenceError: the payload said instead that it could not.
        :raises LostMachine: its VMM ended.
        """
        found: list[Line] = []

        def wanted(event: AgentEvent) -> bool:
            if event.name == "vmm-exit" and event.guest == guest.spec.name:
                raise LostMachine(
                    f"the VMM of guest '{guest.spec.name}' ended: {event.data.get('last_words')}",
                    how="exited",
                )
            if event.name != "guest-line" or event.guest != guest.spec.name:
                return False
            line = parse_guest_line(event)
            if isinstance(line, payload.Failure):
                raise EvidenceError(f"guest '{guest.spec.name}' says: {line.message}")
            if isinstance(line, kind):
                found.append(line)
            return bool(found)

        self.host.agent.wait_for(
            wanted,
            deadline,
            what=f"a '{kind.__name__}' line of guest '{guest.spec.name}'",
            since=since,
        )
        return found[0]


def parse_guest_line(event: AgentEvent) -> payload.PayloadEvent | None:
    """Return the payload's line in a ``guest-line`` event; None: a guest may write anything."""
    text = field_of(event.data, "line", str)
    try:
        return None if text is None else payload.decode_line(text)
    except payload.PayloadLineError:
        return None
