# SPDX-License-Identifier: Apache-2.0
"""Digests of guests' memory as the host under update reports them: the inside view.

Used where the memory cannot be read from outside. Bounded and checked: a host is not trusted.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Iterator

from liveupdate.probes.memory import DigestPass
from liveupdate.transport.agent_link import AgentEvent

#: liveupdate/agent/guest/digest.py, PAGES_PER_EVENT
_MAX_EVENT_BYTES = (1 << 14) * 8
#: what comes right before the digests of each moment
_BEFORE = {"freeze": "paused", "boot": "retrieved"}


def collect_digests(events: Iterable[AgentEvent]) -> Iterator[DigestPass]:
    """Join the pieces of "digests" events; a missing piece leaves the digests too short.

    Times are those at which the events arrived.
    """
    pieces: dict[tuple[str, str], list[AgentEvent]] = {}
    began: dict[tuple[str, str], int] = {}
    for event in events:
        for follows, name in _BEFORE.items():
            if event.name == name:
                began.setdefault((event.guest, follows), event.at_ns)
        moment = event.data.get("moment")
        if event.name == "digests" and isinstance(moment, str):
            pieces.setdefault((event.guest, moment), []).append(event)
    for (guest, moment), found in pieces.items():
        if (guest, moment) not in began:
            continue
        whole = b""
        for event in found:
            piece = _unpack(event.data.get("digests"))
            if event.data.get("first") != len(whole) // 8 or piece is None:
                break
            whole += piece
        yield DigestPass(
            guest=guest,
            moment=moment,
            digests=whole,
            began_ns=began[guest, moment],
            ended_ns=found[-1].at_ns,
        )


def _unpack(text: object) -> bytes | None:
    try:
        data = base64.b64decode(str(text), validate=True)
        raw = zlib.decompressobj().decompress(data, _MAX_EVENT_BYTES)
    except (binascii.Error, zlib.error):
        return None
    return raw if len(raw) % 8 == 0 else None
