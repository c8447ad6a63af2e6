# SPDX-License-Identifier: Apache-2.0
"""A network card's link, as its register says through the monitor."""

from __future__ import annotations

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.probes.link import read_link
from liveupdate.transport.monitor import Commands
from tests.support.query_pci import PCI


class Monitor(Commands):
    """A monitor that shows one word of memory."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.asked: list[str] = []

    def execute(
        self, command: str, arguments: object = None, deadline: Deadline | None = None
    ) -> object:
        if command == "query-pci":
            return PCI
        assert isinstance(arguments, dict)
        self.asked.append(arguments["command-line"])
        return self.shown


@pytest.mark.parametrize(
    ("word", "link"),
    [("0x00000002", "up"), ("0x00000001", "down"), ("0xffffffff", None)],
)
def test_link_is_a_bit_of_the_status_register(word: str, link: str | None) -> None:
    monitor = Monitor(f"00000000fea00008: {word}\r\n")
    assert read_link(monitor, "dev-nic0", "igb") == link
    assert monitor.asked == ["xp /1wx 0xfea00008"]


def test_register_that_is_not_there_now_says_nothing() -> None:
    assert read_link(Monitor("Cannot access memory\r\n"), "dev-nic0", "e1000e") is None
    # its BAR 4 has no address
    assert read_link(Monitor(""), "dev-nic0", "virtio") is None
