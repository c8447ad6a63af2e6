# SPDX-License-Identifier: Apache-2.0
"""Devices that a guest has: what its VMM is given, and the order of sleeping and waking."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import cast

import pytest

from liveupdate.agent.base.names import SpecError
from liveupdate.agent.device.driver_binding import Pin, PinError
from liveupdate.agent.guest import guests as module
from liveupdate.agent.guest.guests import AWAKE, Guest
from liveupdate.agent.guest.passthrough import DEVICES_MAX, Assigned, stop_guests
from liveupdate.agent.guest.spec import GuestSpec
from liveupdate.agent.guest.vmm_qemu import QemuVmm, VmmError, build_argv
from liveupdate.agent.mechanisms.base import PreservedSet, Ram
from liveupdate.agent.mechanisms.files import FileMechanism

NIC = {"name": "nic0", "kind": "igb", "bdf": "0000:01:00.0"}
DISK = {"name": "disk0", "kind": "nvme", "bdf": "0000:02:00.0", "access": "cdev"}
GOOD: dict[str, object] = {"name": "vm0", "index": 0, "memory_bytes": 16 << 20}


def spec(*devices: dict[str, str]) -> GuestSpec:
    return GuestSpec({**GOOD, "devices": list(devices)})


def test_a_spec_with_devices_goes_through_the_manifest() -> None:
    made = spec(NIC, DISK)
    again = GuestSpec(made.to_json())
    assert again.to_json() == made.to_json()
    assert [each.bdf for each in again.devices] == ["0000:01:00.0", "0000:02:00.0"]
    assert GuestSpec(GOOD).devices == []


@pytest.mark.parametrize(
    "devices",
    [
        "nic0",
        ["nic0"],
        [{**NIC, "name": "../x"}],
        [{**NIC, "kind": "gpu"}],
        [{**NIC, "access": "magic"}],
        [{**NIC, "bdf": "0000:01:00.0,romfile=/etc/shadow"}],
        [{"name": "nic0", "kind": "igb"}],
        [NIC, NIC],
        [{**NIC, "name": f"nic{number}"} for number in range(DEVICES_MAX + 1)],
    ],
    ids=["text", "names", "name", "kind", "access", "option", "bdf", "twice", "many"],
)
def test_devices_that_make_no_sense_are_refused(devices: object) -> None:
    with pytest.raises(SpecError):
        GuestSpec({**GOOD, "devices": devices})


def test_both_vmms_get_the_same_devices_behind_ports_of_their_own() -> None:
    ram, fds = Ram(7, 16 << 20), {"tap": 8, "qmp": 9, "payload": 10}
    argv = build_argv(spec(NIC, DISK), ram, fds, "/dev/vdc", incoming=False)
    text = " ".join(argv)
    assert "pcie-root-port,id=port-nic0,chassis=1,addr=0x8" in text
    assert "vfio-pci,host=0000:01:00.0,id=dev-nic0,bus=port-nic0" in argv
    assert "pcie-root-port,id=port-disk0,chassis=2,addr=0x9" in text
    assert "vfio-pci,host=0000:02:00.0,id=dev-disk0,bus=port-disk0,iommufd=iommufd0" in argv
    assert argv.count("iommufd,id=iommufd0") == 1
    assert " lu.nvme" in argv[argv.index("-append") + 1]
    assert "kvm-apic.vapic=off" in argv
    incoming = build_argv(spec(NIC, DISK), ram, fds, "/dev/vdc", incoming=True)
    assert incoming == [*argv, "-incoming", "defer"]
    without = " ".join(build_argv(spec(NIC), ram, fds, "/dev/vdc", incoming=False))
    assert "iommufd" not in without
    assert "lu.nvme" not in without


class FakeVmm:
    """Notes what it is asked; ``awake``: the payload says so when it is woken."""

    def __init__(self, guest: Guest, *, awake: bool = True, sleeps: bool = True) -> None:
        self.calls: list[str] = []
        self.ending = False
        self._guest = guest
        self._awake = awake
        self._sleeps = sleeps

    def __getattr__(self, name: str) -> object:
        return lambda *_args, **_kw: self.calls.append(name)

    def send_to_sleep(self) -> None:
        self.calls.append("send_to_sleep")
        if not self._sleeps:
            raise VmmError("sleep", "guest 'vm0' does not go to sleep: no answer in time")

    def query_status(self) -> str:
        return "suspended" if self._sleeps else "running"

    def save(self, state: int) -> int:
        self.calls.append("save")
        return os.fstat(state).st_size

    def wake(self) -> None:
        self.calls.append("wake")
        if self._awake:
            threading.Timer(0.01, self._guest.heard, (AWAKE,)).start()


@pytest.fixture
def events() -> list[str]:
    return []


def make_guest(events: list[str], *devices: dict[str, str], **how: bool) -> tuple[Guest, FakeVmm]:
    made = SimpleNamespace(preserve=lambda *_: None, seal=lambda: None, places=lambda *_: [])
    session = cast(PreservedSet, made)
    network = SimpleNamespace(open_tap=lambda _name: os.open("/dev/null", os.O_RDONLY))
    guest = Guest(
        spec(*devices),
        FileMechanism("none", "/nonexistent"),
        network,  # type: ignore[arg-type]
        lambda name, _data: events.append(name),
        lambda _guest: None,
    )
    guest.session = session
    vmm = FakeVmm(guest, **how)
    guest.vmm = cast(QemuVmm, vmm)
    guest.ram = Ram(os.memfd_create("vm0"), 16 << 20)
    guest.state = os.memfd_create("state")
    return guest, vmm


def close(guest: Guest) -> None:
    assert guest.ram is not None
    guest.ram.close()
    os.close(guest.state)


def test_a_guest_with_devices_sleeps_before_it_is_saved(events: list[str]) -> None:
    guest, vmm = make_guest(events, NIC)
    guest.freeze(lambda _guest, _moment: None)
    assert vmm.calls == ["send_to_sleep", "stop", "save"]
    assert events == ["falling-asleep", "asleep", "paused", "saved", "preserved"]
    close(guest)


def test_a_guest_without_devices_does_not_sleep(events: list[str]) -> None:
    guest, vmm = make_guest(events)
    guest.freeze(lambda _guest, _moment: None)
    assert vmm.calls == ["stop", "save"]
    close(guest)


def test_a_guest_is_resumed_when_it_says_that_it_is_awake(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(Pin, "take", lambda pin: taken.append(pin.bdf))
    monkeypatch.setattr(module, "find_disk", lambda _name: "/dev/vdc")
    guest, vmm = make_guest(events, NIC, DISK)
    guest.resume()
    assert taken == ["0000:01:00.0", "0000:02:00.0"]
    assert vmm.calls == ["spawn", "greet", "load", "cont", "wake"]
    assert events == ["state-read", "vmm-up", "loaded", "guest-line", "awake", "resumed"]
    close(guest)


def test_a_guest_that_does_not_wake_up_is_not_resumed(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pin, "take", lambda _pin: None)
    monkeypatch.setattr(module, "find_disk", lambda _name: "/dev/vdc")
    monkeypatch.setattr(module, "SLEEP_S", 0.05)
    monkeypatch.setattr(module, "REOPEN_S", 0.01)
    guest, vmm = make_guest(events, NIC, awake=False)
    with pytest.raises(VmmError, match="does not wake up"):
        guest.resume()
    # a guest that takes its port for closed is not heard before that is opened anew
    assert vmm.calls.count("reopen_payload") == 5
    assert "resumed" not in events
    close(guest)


def test_a_guest_that_sleeps_is_woken_by_the_way_back(events: list[str]) -> None:
    guest, vmm = make_guest(events, NIC)
    guest.freeze(lambda _guest, _moment: None)
    guest.thaw()
    assert vmm.calls[-2:] == ["cont", "wake"]
    assert events[-2:] == ["awake", "resumed"]
    close(guest)


def test_a_guest_that_would_not_sleep_goes_on(events: list[str]) -> None:
    guest, vmm = make_guest(events, NIC, sleeps=False)
    with pytest.raises(VmmError, match="does not go to sleep"):
        guest.freeze(lambda _guest, _moment: None)
    assert "paused" not in events
    guest.thaw()
    assert vmm.calls == ["send_to_sleep", "cont"]


def test_a_guest_that_would_not_sleep_is_quoted(events: list[str]) -> None:
    guest, vmm = make_guest(events, NIC, sleeps=False)

    def refuse() -> None:
        guest.heard('{"ev":"error","message":"sleep: Device or resource busy"}')
        raise VmmError("sleep", "guest 'vm0' does not go to sleep: no answer in time")

    vmm.send_to_sleep = refuse  # type: ignore[method-assign]
    with pytest.raises(VmmError, match="it said .*Device or resource busy") as caught:
        guest.freeze(lambda _guest, _moment: None)
    assert caught.value.kind == "sleep"
    close(guest)


def test_devices_are_given_back_when_no_vmm_has_them(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, vmm = make_guest(events, NIC)
    vmm.calls.clear()
    ram, guest.ram = guest.ram, None

    def give_back(pin: Pin) -> str:
        assert "wait_end" in vmm.calls
        return "igb"

    monkeypatch.setattr(Pin, "give_back", give_back)
    guest.session = None
    assert stop_guests([guest], (PinError,)) == {"nic0": {"driver": "igb", "error": None}}
    assert guest.error is not None
    monkeypatch.setattr(Pin, "give_back", lambda _pin: (_ for _ in ()).throw(PinError("gone")))
    assert stop_guests([guest], (PinError,)) == {"nic0": {"driver": None, "error": "gone"}}
    assert ram is not None
    ram.close()


def test_status_is_that_of_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pin, "driver", property(lambda _pin: "vfio-pci"))
    monkeypatch.setattr(Pin, "keep_state", lambda _pin: None)
    said = Assigned(NIC).status()
    assert said == {
        "bdf": "0000:01:00.0",
        "driver": "vfio-pci",
        "keep": None,
        "error": None,
        "account": None,
    }
