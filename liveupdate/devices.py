# SPDX-License-Identifier: Apache-2.0
"""The passed-through devices of a testbed: started, fed with frames, followed through a hop.

Facts only. The driver is the agent's; here is what surrounds it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from liveupdate.deadline import Deadline, wait_until
from liveupdate.errors import DeadlineExceeded, LiveUpdateError
from liveupdate.formats.frames import build_frame
from liveupdate.model import codec
from liveupdate.model.evidence import DeviceFacts, FrameAccount, Landed
from liveupdate.model.scenario import DeviceSpec
from liveupdate.probes.frames import FrameSender
from liveupdate.steps import Steps
from liveupdate.target.qemu_argv import device_mac
from liveupdate.testbed import WIRE_MAC, DeviceStatus, Testbed
from liveupdate.transport.agent import AgentEvent

#: binding, reset, link: seconds under TCG
START_S = 60.0
#: an agent that does not answer is not waited for at length: its machine is about to go anyway
GIVE_BACK_S = 15.0
#: frames that were taken by the wire are in the account a moment later
DRAIN_S = 5.0
_PAUSE_S = 0.05


def start_devices(bed: Testbed, steps: Steps) -> None:
    """Have the agent take all devices of the plan.

    :raises RemoteError: one cannot be had; the reason names it.
    """
    if not bed.plan.devices:
        return
    with steps.step("start-devices", devices=len(bed.plan.devices)):
        bed.call(
            "start_devices",
            {"devices": [_start_args(bed, spec) for spec in bed.plan.devices]},
            timeout_s=START_S,
        )


def _start_args(bed: Testbed, spec: DeviceSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "kind": spec.kind,
        "bdf": spec.bdf or "",
        "access": spec.access,
        "entries": spec.ring,
        "stream": str(bed.stream),
    }


def stop_devices(bed: Testbed, steps: Steps) -> None:
    """Have the agent give all devices back; says which it could not. Never raises."""
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

    return FrameSender(spec.name, bed.own_machine.feeds[spec.name], build, spec.rate)


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
        self._before: Mapping[str, DeviceStatus] = {}
        self._after: Mapping[str, DeviceStatus] = {}

    def begin(self) -> None:
        """Note where the accounts stand, and let frames flow."""
        if not self._senders:
            return
        self._before = read_status(self._bed)
        for sender in self._senders.values():
            sender.resume()

    def end(self) -> None:
        """Stop the flow, wait for what is on its way, and read the accounts."""
        if not self._senders:
            return
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
        """Store what there is; frames go on to nobody when the hop ended early."""
        for name, sender in self._senders.items():
            sender.pause()
            self._bed.record.put_frames(self._hop, name, sender.take())
            facts = self._facts(name)
            if facts is not None:
                self._bed.record.put_device(self._hop, facts)

    def _facts(self, name: str) -> DeviceFacts | None:
        before, after = self._before.get(name), self._after.get(name)
        if before is None:
            return None
        events = {
            event.name: event
            for event in self._bed.host.agent.events(self._mark)
            if event.data.get("device") == name
        }
        frozen, landed = events.get("device-frozen"), events.get("device-landed")
        adopted, failed = events.get("device-adopted"), events.get("device-failed")
        not_kept = events.get("device-not-kept")
        error = _text(failed, "message") if failed else (after.error if after else None)
        try:
            return DeviceFacts(
                device=name,
                bdf=before.bdf,
                before=before.account,
                frozen=_account(frozen) if frozen else None,
                frozen_ns=frozen.at_ns if frozen else None,
                landed=_landed(landed) if landed else None,
                adopted_ns=adopted.at_ns if adopted else None,
                keep=_text(adopted, "keep") if adopted else None,
                after=after.account if after else None,
                not_kept=_text(not_kept, "message") if not_kept else None,
                error=error,
            )
        except codec.CodecError as problem:
            self._steps.note("device-facts-garbled", device=name, error=str(problem))
            return None


def _text(event: AgentEvent, key: str) -> str | None:
    value = event.data.get(key)
    return value if isinstance(value, str) else None


def _account(event: AgentEvent) -> FrameAccount:
    return codec.decode(FrameAccount, event.data.get("account"), "device-frozen.account")


def _landed(event: AgentEvent) -> Landed:
    fields = {key: value for key, value in event.data.items() if key not in ("device", "guest")}
    return codec.decode(Landed, {**fields, "host_ns": event.at_ns}, "device-landed")
