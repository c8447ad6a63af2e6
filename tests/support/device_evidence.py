# SPDX-License-Identifier: Apache-2.0
"""Synthetic evidence of a device that receives frames over a good hop, to be spoilt by tests."""

from __future__ import annotations

from msgspec.structs import replace

from liveupdate.model.evidence import (
    DeviceFacts,
    FrameAccount,
    FrameSent,
    Landed,
)
from tests.support.evidence_builder import MS, SECOND

#: 100 frames a second for 8 s in each hop; no sample is taken from 1 s to 5 s
FRAMES = 800


FROZEN = 100


LANDED = 400


def account(received: int, **changes: object) -> FrameAccount:
    good = FrameAccount(
        received=received,
        missing=0,
        duplicate=0,
        reordered=0,
        damaged=0,
        foreign=0,
        first=0,
        expected=received,
    )
    return replace(good, **changes)


def make_facts(hop: int = 1) -> DeviceFacts:
    base, first = hop * 100 * SECOND, (hop - 1) * FRAMES
    return DeviceFacts(
        device="nic0",
        bdf="0000:01:00.0",
        before=account(first),
        frozen=account(first + FROZEN),
        frozen_ns=base + SECOND,
        landed=Landed(
            host_ns=base + 5 * SECOND,
            found=LANDED,
            first=first + FROZEN,
            last=first + FROZEN + LANDED - 1,
            is_full=False,
            keep="incoming",
            command=0x507,
        ),
        adopted_ns=base + 5 * SECOND + 50 * MS,
        keep="adopted",
        after=account(first + FRAMES),
    )


def make_frames(hop: int = 1) -> tuple[FrameSent, ...]:
    base, first = hop * 100 * SECOND, (hop - 1) * FRAMES
    return tuple(
        FrameSent(first + index, base + index * 10 * MS, base + index * 10 * MS + MS)
        for index in range(FRAMES)
    )
