# SPDX-License-Identifier: Apache-2.0
"""The passed-through devices of a testbed: started, fed with frames, followed through a hop.

Facts only. The driver is the agent's; this module does the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded, EvidenceError, LiveUpdateError
from liveupdate.core.steps import Steps
from liveupdate.formats.frames import build_frame
from liveupdate.formats.qemu_pci import find_function
from liveupdate.model import codec, slots
from liveupdate.model.evidence import DeviceFacts, FrameAccount, Landed
from liveupdate.model.scenario import DeviceSpec
from liveupdate.probes.frames import FrameSender
from liveupdate.run.observers.guest_device_use import GuestUseWatch
from liveupdate.run.testbed import WIRE_MAC, DeviceStatus, Testbed, field_of
from liveupdate.target.qemu.argv import device_id, device_mac, throttle_id
from liveupdate.transport.agent_link import AgentEvent

#: binding, reset, link: seconds under TCG
START_S = 60.0
#: an agent that does not answer is not waited for at length: its machine is about to go anyway
GIVE_BACK_S = 15.0
#: frames that were taken by the wire are in the account a moment later
DRAIN_S = 5.0
_PAUSE_S = 0.05
_LIMIT_S = 10.0
_BLOCKS, _BLOCK_BYTES = 4096, 512


def start_devices(bed: Testbed, steps: Steps) -> None:
    """Let the agent take all devices of the plan.

    :raises RemoteError: one cannot be taken; the reason names it.
    """
    specs = [spec for spec in bed.plan.devices if spec.guest is None]
    if not specs:
        return
    for spec in specs:
        if spec.kind == "nvme":
            _fill_namespace(bed, spec)
    with steps.step("start-devices", devices=len(specs)):
        bed.call(
            "start_devices",
            {"devices": [_start_args(bed, spec) for spec in specs]},
            timeout_s=START_S,
        )


def find_guests_own(bed: Testbed) -> Mapping[str, str]:
    """Find the addresses of the devices that guests have, by name: buses have numbers by now.

    :raises EvidenceError: QEMU does not know one.
    """
    wanted = [spec.name for spec in bed.plan.devices if spec.guest is not None]
    if not wanted:
        return {}
    deadline = Deadline.after(_LIMIT_S, "QEMU's list of PCI devices")
    answer = bed.own_machine.qmp.execute("query-pci", {}, deadline)
    found: dict[str, str] = {}
    for name in wanted:
        function = find_function(answer, device_id(name))
        if function is None:
            raise EvidenceError(f"QEMU knows no PCI device '{device_id(name)}'")
        found[name] = function.address.bdf
    return found


def _start_args(bed: Testbed, spec: DeviceSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "kind": spec.kind,
        "bdf": spec.bdf or "",
        "access": spec.access,
        "tier": spec.tier,
        "entries": spec.ring,
        "extra": spec.mapped_bytes or 0,
        "stream": str(bed.stream),
    }


def _fill_namespace(bed: Testbed, spec: DeviceSpec) -> None:
    """Put a frame into each block that is read, and set how fast they can be.

    The size of a block and their number are those of ``liveupdate/agent/device/nvme.py``.
    """
    blocks = b"".join(
        build_frame(destination=WIRE_MAC, source=WIRE_MAC, stream=bed.stream, number=number).ljust(
            _BLOCK_BYTES, b"\0"
        )
        for number in range(_BLOCKS)
    )
    with bed.own_machine.namespaces[spec.name].open("r+b") as file:
        file.write(blocks)
    bed.own_machine.qmp.execute(
        "qom-set",
        {
            "path": f"/objects/{throttle_id(spec.name)}",
            "property": "limits",
            "value": {"iops-total": spec.rate},
        },
        Deadline.after(_LIMIT_S, "QEMU to limit a disk"),
    )


def stop_devices(bed: Testbed, steps: Steps) -> None:
    """Let the agent give all devices back; note which it could not. Never raises."""
    if not bed.plan.devices:
        return
    try:
        with steps.step("give-back-devices"):
            answer = bed.call("stop_devices", timeout_s=GIVE_BACK_S)
    except LiveUpdateError as error:
        # A machine that is lost has nothing to give back.
        steps.note("devices-not-given-back", reason=str(error))
        return
    for name, said in answer.items():
        fields = said if isinstance(said, dict) else {"error": str(said)}
        steps.note("device-given-back", device=name, **fields)


def make_sender(bed: Testbed, spec: DeviceSpec) -> FrameSender:
    """Make what feeds one device."""
    number = [each.name for each in bed.plan.devices].index(spec.name)
    mac = device_mac(number)

    def build(frame: int) -> bytes:
        return build_frame(destination=mac, source=WIRE_MAC, stream=bed.stream, number=frame)

    return FrameSender(spec.name, bed.own_machine.feeds[spec.name].send_within, build, spec.rate)


def read_status(bed: Testbed) -> Mapping[str, DeviceStatus]:
    """Ask the agent for all devices.

    :raises codec.CodecError: it is not what the protocol says.
    """
    answer = bed.call("device_status")
    return codec.decode(Mapping[str, DeviceStatus], dict(answer), "device_status")  # type: ignore[type-abstract]


class DeviceHop:
    """The devices of one hop. :meth:`begin`, :meth:`end`; :meth:`store` whatever happened."""

    def __init__(
        self, bed: Testbed, hop: int, senders: Mapping[str, FrameSender], steps: Steps
    ) -> None:
        self._bed = bed
        self._hop = hop
        self._senders = senders
        self._steps = steps
        self._mark = bed.host.agent.mark()
        self._uses = {
            spec.name: GuestUseWatch(bed, spec, spec.guest, steps)
            for spec in bed.plan.devices
            if spec.guest is not None
        }
        self._before: Mapping[str, DeviceStatus] = {}
        self._after: Mapping[str, DeviceStatus] = {}

    def begin(self) -> None:
        """Store the state of the accounts, and start the frames."""
        if not self._bed.plan.devices:
            return
        self._before = read_status(self._bed)
        for sender in self._senders.values():
            sender.resume()
        for use in self._uses.values():
            use.begin()

    def resumed(self) -> None:
        """Watch how guests use their own devices, now that they run again."""
        for use in self._uses.values():
            use.resumed()

    def end(self) -> None:
        """Stop the frames, wait for those in flight, and read the accounts."""
        if not self._bed.plan.devices:
            return
        for use in self._uses.values():
            use.end()
        last = {name: sender.pause() for name, sender in self._senders.items()}

        def drained() -> bool:
            self._after = read_status(self._bed)
            return all(
                status.error is not None
                or status.account is None
                or status.account.expected >= last.get(name, 0)
                for name, status in self._after.items()
            )

        with contextlib.suppress(DeadlineExceeded):
            # What is missing then is missing: the account says so, and the judge.
            deadline = Deadline.after(DRAIN_S, "the last frames to be received")
            wait_until(drained, deadline, interval_s=_PAUSE_S)

    def store(self) -> None:
        """Store what there is, and stop the frames when the hop ended early."""
        for use in self._uses.values():
            use.close()
        for name, sender in self._senders.items():
            sender.pause()
            self._bed.record.add(slots.FRAMES, sender.take(), self._hop, name)
        for name in self._before:
            facts = self._facts(name)
            if facts is not None:
                self._bed.record.put(slots.DEVICE, facts, self._hop, facts.device)

    def _facts(self, name: str) -> DeviceFacts | None:
        before, after = self._before[name], self._after.get(name)
        events = {
            event.name: event
            for event in self._bed.host.agent.events(self._mark)
            if event.data.get("device") == name
        }
        frozen, landed = events.get("device-frozen"), events.get("device-landed")
        adopted, failed = events.get("device-adopted"), events.get("device-failed")
        not_kept = events.get("device-not-kept")
        error = (
            field_of(failed.data, "message", str) if failed else (after.error if after else None)
        )
        try:
            return DeviceFacts(
                device=name,
                bdf=before.bdf,
                before=before.account,
                frozen=_account(frozen) if frozen else None,
                frozen_ns=frozen.at_ns if frozen else None,
                landed=_landed(landed) if landed else None,
                adopted_ns=adopted.at_ns if adopted else None,
                keep=field_of(adopted.data, "keep", str) if adopted else None,
                after=after.account if after else None,
                not_kept=field_of(not_kept.data, "message", str) if not_kept else None,
                error=error,
                use=self._uses[name].facts() if name in self._uses else None,
            )
        except codec.CodecError as problem:
            self._steps.note("device-facts-garbled", device=name, error=str(problem))
            return None


def _account(event: AgentEvent) -> FrameAccount:
    return codec.decode(FrameAccount, event.data.get("account"), "device-frozen.account")


def _landed(event: AgentEvent) -> Landed:
    fields = {key: value for key, value in event.data.items() if key not in ("device", "guest")}
    return codec.decode(Landed, {**fields, "host_ns": event.at_ns}, "device-landed")
