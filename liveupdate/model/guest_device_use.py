# SPDX-License-Identifier: Apache-2.0
"""What guests do with disks and devices, as it was seen: a part of the evidence."""

from __future__ import annotations

from liveupdate.model.base import Value


class JournalFacts(Value, frozen=True, kw_only=True):
    """A whole scan of the journal disk from outside."""

    boot: int
    first_seq: int
    last_seq: int
    records: int
    missing: tuple[int, ...]
    corrupt: int
    foreign: int


class GuestUse(Value, frozen=True, kw_only=True):
    """What a guest did with a device of its own over one hop, seen from outside.

    A use is an echo that was answered through a network card, or a new record in the journal on a
    disk. The journals are None for a card, or when the disk could not be scanned.
    """

    guest: str
    #: uses seen before the guest slept
    before: int
    #: when its VMM said that it sleeps, and when it said itself that it is awake
    asleep_ns: int | None
    awake_ns: int | None
    #: the first use of all that were seen since the incoming VMM had loaded its state
    first_ns: int | None
    after: int
    journal_before: JournalFacts | None = None
    journal_after: JournalFacts | None = None
