# SPDX-License-Identifier: Apache-2.0
"""A device that is reset for a fault, and its register before and after."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from liveupdate.agent.device import fault_tools
from liveupdate.agent.device.devices import Device
from liveupdate.agent.device.driver_binding import KINDS, Pin


def test_register_is_read_before_and_after_the_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registers = tmp_path / "resource0"
    registers.write_bytes(bytes(0x100) + b"\x02\x80\x00\x04" + bytes(0xEFC))
    told: list[dict[str, Any]] = []

    def tell(event: str, **data: object) -> None:
        assert event == "struck"
        told.append(data)

    read = fault_tools._read
    monkeypatch.setattr(fault_tools, "_read", lambda path, at: read(str(registers), at))
    device = SimpleNamespace(spec=SimpleNamespace(kind="igb", bdf="0000:01:00.0"), tell=tell)
    pin = SimpleNamespace(reset=lambda: registers.write_bytes(bytes(4096)))
    fault_tools.reset(cast(Device, device), cast(Pin, pin))
    ((report),) = told
    assert (report["before"], report["after"]) == ("0x04008002", "0x00000000")
    assert report["where"] == "register 0x100 of 0000:01:00.0"


def test_every_kind_of_device_has_a_register() -> None:
    assert set(fault_tools._REGISTERS) == set(KINDS)
