# SPDX-License-Identifier: Apache-2.0
"""Facts about what carrying memory and translation costs.

A part of :mod:`liveupdate.model.evidence`.
"""

from __future__ import annotations

from liveupdate.model.base import Value


class RamFacts(Value, frozen=True, kw_only=True):
    """What a guest's RAM is made of (inside view); None: it could not be told.

    ``pages_*`` are what KVM has in the guest's page tables, so only what it has touched.
    """

    guest: str
    #: from the wish until all of it was there; None: it came from the previous kernel
    allocate_ns: int | None
    pages_4k: int | None
    pages_2m: int | None
    pages_1g: int | None
    #: its first page has a struct page of the page allocator's (/proc/kpageflags)
    online_page: bool | None
    #: the kernel can take references to its pages, as for O_DIRECT and passthrough (tried)
    pinnable: bool | None


class FragmentFacts(Value, frozen=True, kw_only=True):
    """How the host's free memory was fragmented before its guests were started (inside view).

    ``whole_*`` are free blocks of 2 MiB as /proc/buddyinfo counts them.
    """

    share: float
    free_bytes: int
    whole_before: int
    whole_after: int
    pinned: int


class HugetlbFacts(Value, frozen=True, kw_only=True):
    """What the guests' RAM would have taken from hugetlbfs, tried before they were started.

    ``allocate_ns`` None: there were not enough pages of 2 MiB.
    """

    wanted_pages: int
    got_pages: int
    allocate_ns: int | None


class CostFacts(Value, frozen=True, kw_only=True):
    """What carrying the guests' memory costs, as far as the agent can measure."""

    mechanism: str
    #: what the mechanism takes of its memory beside what is in it; None: it cannot tell
    metadata_bytes: int | None
    rams: tuple[RamFacts, ...]
    #: None: this kernel's memory was not fragmented on purpose
    fragment: FragmentFacts | None
    #: None: not tried on this kernel
    hugetlb: HugetlbFacts | None = None


class HandedOver(Value, frozen=True, kw_only=True):
    """KHO's map of preserved memory at the end of the brownout, walked in RAM from outside.

    ``folios`` are (order, how many); ``nodes`` pages of the map itself; ``ours_bytes``: what the
    agent had preserved by then (RAM, manifest).
    """

    nodes: int
    folios: tuple[tuple[int, int], ...]
    ours_bytes: int


class HopCosts(Value, frozen=True, kw_only=True):
    """All of it over one hop."""

    #: of the outgoing and of the incoming kernel; None: could not be asked
    before: CostFacts | None = None
    after: CostFacts | None = None
    #: None: there is no such map, or the kernel does not say where
    handed_over: HandedOver | None = None


class KeptTables(Value, frozen=True, kw_only=True):
    """What the outgoing kernel reported of the tables that it preserved, and how long that took.

    The time is part of the blackout: the guests stand still by then.
    """

    table_pages: int
    devices: int
    took_ns: int
