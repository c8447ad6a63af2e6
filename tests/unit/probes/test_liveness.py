# SPDX-License-Identifier: Apache-2.0
"""Which frames count as an answer of a guest, and which only look like one."""

from __future__ import annotations

import time
from typing import cast

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.formats import arp, echo
from liveupdate.formats.echo import EchoFrame
from liveupdate.probes.liveness import EchoWatcher
from liveupdate.transport.guest_network import Frame, Wire

OURS, GUEST, OTHER = "52:54:00:30:00:01", "52:54:00:20:00:00", "52:54:00:66:00:00"
ADDRESS = "10.0.0.7"


class Link:
    """A wire at whose far end the test answers."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.arrived: list[bytes] = []

    def send(self, frame: bytes) -> int:
        self.sent.append(frame)
        return time.monotonic_ns()

    def recv(self, deadline: Deadline) -> Frame | None:
        return Frame(data=self.arrived.pop(0), at_ns=time.monotonic_ns()) if self.arrived else None


def ask(**guests: dict[str, str]) -> tuple[EchoWatcher, Link]:
    link = Link()
    macs, addresses = guests.get("macs", {}), guests.get("addresses", {})
    watcher = EchoWatcher(cast(Wire, link), macs, addresses, OURS, 1.0)
    watcher._send()
    return watcher, link


def is_answered(watcher: EchoWatcher, link: Link, reply: bytes) -> bool:
    link.arrived.append(reply)
    watcher._receive()
    (row,) = watcher.take("vm0")
    return row.received_ns is not None


def reply(request: bytes, **changes: object) -> bytes:
    asked = echo.decode_echo(request)
    parts: dict[str, object] = {
        "destination": asked.source, "source": asked.destination, "kind": echo.REPLY,
        "seq": asked.seq, "sender_ns": asked.sender_ns, "boot": 5, **changes,
    }  # fmt: skip
    return echo.encode_echo(EchoFrame(**parts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"sender_ns": 7}, False),
        ({"destination": OTHER}, False),
        ({"source": OTHER}, False),
        ({"kind": echo.REQUEST}, False),
        ({"seq": 99}, False),
    ],
)
def test_echo_counts_when_it_gives_our_question_back(
    changes: dict[str, object], counts: bool
) -> None:
    watcher, link = ask(macs={"vm0": GUEST})
    assert is_answered(watcher, link, reply(link.sent[0], **changes)) is counts


def arp_reply(probe: bytes, *, to: str = OURS, source: str = GUEST, inner: str = GUEST) -> bytes:
    octets = [bytes.fromhex(mac.replace(":", "")) for mac in (to, source, inner)]
    # hardware and protocol as asked, operation 2, sender, and who asked
    sender = octets[2] + probe[38:42]
    return octets[0] + octets[1] + probe[12:20] + b"\0\2" + sender + probe[6:12] + bytes(4)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"to": "ff:ff:ff:ff:ff:ff"}, False),  # gratuitous: it answers nothing
        ({"to": OTHER}, False),
        ({"source": OTHER}, False),
    ],
)
def test_arp_counts_when_it_is_addressed_to_us(changes: dict[str, str], counts: bool) -> None:
    watcher, link = ask(addresses={"vm0": ADDRESS})
    assert link.sent[0] == arp.build_probe(ADDRESS, OURS)
    assert is_answered(watcher, link, arp_reply(link.sent[0], **changes)) is counts
