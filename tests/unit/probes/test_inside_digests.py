# SPDX-License-Identifier: Apache-2.0
"""Digests as a host takes and tells them: what is told back is what was there, or too short."""

from __future__ import annotations

import base64
import os
import zlib
from hashlib import blake2b

from liveupdate.agent.guest import digest
from liveupdate.agent.mechanisms.base import Ram
from liveupdate.probes.inside_digests import collect_digests
from liveupdate.probes.memory import DigestPass
from liveupdate.transport.agent_link import AgentEvent

PAGES = digest.PAGES_PER_EVENT + 3


def memfd(pages: int) -> int:
    fd = os.memfd_create("test")
    os.ftruncate(fd, pages * 4096)
    for page in (0, 7, pages - 1):
        os.pwrite(fd, b"page %d" % page, page * 4096)
    return fd


def event(name: str, at_ns: int, guest: str = "vm0", **data: object) -> AgentEvent:
    return AgentEvent(
        name=name, n=at_ns, boot=1, at_ns=at_ns, t_ns=0, data={"guest": guest, **data}
    )


def told(fd: int, moment: str = "freeze", before: str = "paused") -> list[AgentEvent]:
    events = [event(before, 10)]
    for number, (first, text) in enumerate(digest.pages(Ram(fd, os.fstat(fd).st_size))):
        events.append(event("digests", 11 + number, moment=moment, first=first, digests=text))
    return events


def piece(text: object) -> list[AgentEvent]:
    return [event("paused", 1), event("digests", 2, moment="freeze", first=0, digests=text)]


def one(events: list[AgentEvent]) -> DigestPass:
    (found,) = collect_digests(events)
    return found


def test_every_page_is_digested_and_told() -> None:
    fd = memfd(PAGES)
    try:
        found = one(told(fd))
        expected = b"".join(
            blake2b(os.pread(fd, 4096, page * 4096), digest_size=8).digest()
            for page in range(PAGES)
        )
    finally:
        os.close(fd)
    assert found == DigestPass(
        guest="vm0", moment="freeze", digests=expected, began_ns=10, ended_ns=12
    )


def test_one_changed_bit_changes_one_digest() -> None:
    fd = memfd(64)
    try:
        before = one(told(fd)).digests
        os.pwrite(fd, b"\x01", 5 * 4096 + 4095)
        after = one(told(fd, "boot", "retrieved")).digests
    finally:
        os.close(fd)
    changed = [at for at in range(64) if before[at * 8 : at * 8 + 8] != after[at * 8 : at * 8 + 8]]
    assert changed == [5]


def test_a_missing_piece_leaves_the_digests_too_short() -> None:
    fd = memfd(PAGES)
    try:
        events = told(fd)
    finally:
        os.close(fd)
    assert len(one([events[0], events[2]]).digests) == 0
    assert len(one(events[:2]).digests) == digest.PAGES_PER_EVENT * 8


def test_nonsense_and_bombs_are_not_believed() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(64 << 20))).decode()
    for text in (None, "", "?", "AAAA", base64.b64encode(zlib.compress(b"odd")).decode()):
        found = one(
            [event("paused", 1), event("digests", 2, moment="freeze", first=0, digests=text)]
        )
        assert found.digests == b""
    found = one([event("paused", 1), event("digests", 2, moment="freeze", first=0, digests=bomb)])
    assert len(found.digests) <= digest.PAGES_PER_EVENT * 8


def test_digests_without_their_moment_are_none() -> None:
    assert list(collect_digests([event("digests", 2, moment="boot", first=0, digests="")])) == []
    events = [event("paused", 1), event("digests", 2, moment="never", first=0, digests="")]
    assert list(collect_digests(events)) == []
