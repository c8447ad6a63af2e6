# SPDX-License-Identifier: Apache-2.0
"""Configuration space: what must not move is compared, what may move is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats.pci_config import (
    CAP_EXPRESS,
    CAP_POWER,
    CONFIG_BYTES,
    ConfigSpaceError,
    decode_config,
    diff_config,
)
from tests.support.iommu_evidence import EXPRESS_CAP, POWER_CAP, make_config

DEVICE, BRIDGE = decode_config(make_config()), decode_config(make_config(is_bridge=True))


def test_fields_are_read() -> None:
    assert (DEVICE.is_bridge, BRIDGE.is_bridge) == (False, True)
    assert DEVICE.is_master and BRIDGE.is_master
    assert (len(DEVICE.bars), len(BRIDGE.bars), DEVICE.bars[0]) == (6, 2, 0xFE00_0000)
    assert DEVICE.find_capability(CAP_EXPRESS) == EXPRESS_CAP
    assert DEVICE.find_capability(CAP_POWER) == POWER_CAP
    assert DEVICE.find_capability(0x05) is None


@pytest.mark.parametrize("data", [b"", b"\xff" * 256, bytes(256), make_config()[:255]])
def test_nobody_there_is_an_error(data: bytes) -> None:
    with pytest.raises(ConfigSpaceError):
        decode_config(data)


def test_interrupts_and_status_may_move() -> None:
    # INTx off, a parity status bit, another interrupt line
    after = decode_config(make_config(at_04=0x8010_0507 | 0x400, at_3c=0x0000_010B))
    assert diff_config(DEVICE, after) == ()


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("at_00", "vendor and device id"),
        ("at_08", "class and revision"),
        ("at_10", "BAR 0"),
        ("at_24", "BAR 5"),
    ],
)
def test_what_must_stay_is_named(word: str, name: str) -> None:
    words = {word: 0x1234_5678}
    after = decode_config(make_config(is_bridge=False, **words))
    assert [change.name for change in diff_config(DEVICE, after)] == [name]
    assert name in str(diff_config(DEVICE, after)[0])


def test_device_that_turned_into_a_bridge_differs_in_many_ways() -> None:
    names = {change.name for change in diff_config(DEVICE, BRIDGE)}
    assert {"bus numbers", "memory window", "vendor and device id"} <= names


@given(st.binary(min_size=CONFIG_BYTES, max_size=CONFIG_BYTES))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        space = decode_config(data)
    except ConfigSpaceError:
        return
    assert diff_config(space, space) == ()
