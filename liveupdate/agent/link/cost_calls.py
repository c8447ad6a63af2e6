# SPDX-License-Identifier: Apache-2.0
"""Calls that are about what an update costs. Loaded with the first of them."""

from __future__ import annotations

from ..update import costs, fragment
from .args import CallError, integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..guest.guests import Guest
    from ..update.handover import Handover
    from .args import Args


class CostCalls:
    """Fragments memory, and measures what that and the mechanism cost this kernel."""

    def __init__(self, handover: Handover, guests: dict[str, Guest]) -> None:
        self._handover = handover
        self._guests = guests
        self._pins: object = None
        self._fragmented: Args | None = None
        self._hugetlb: Args | None = None

    def fragment(self, args: Args) -> Args:
        """Fragment the host's free memory, once.

        :raises CallError: it was done before, or failed.
        """
        share = args.get("share")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise CallError("args", f"'share' is {share!r}, must be a number above 0, at most 1")
        if self._fragmented is not None:
            raise CallError("state", "memory is fragmented once only")
        try:
            # the pins have to live as long as this kernel
            self._pins, self._fragmented = fragment.fragment(share)
        except (fragment.FragmentError, OSError) as err:
            raise CallError("fragment", str(err)) from err
        return self._fragmented

    def of_host(self) -> Args:
        """Return the fields of ``CostFacts``."""
        guests = [guest for guest in self._guests.values() if guest.error is None]
        mechanism = self._handover.open()
        return costs.of_host(mechanism, guests, self._fragmented, self._hugetlb)

    def try_hugetlb(self, args: Args) -> Args:
        """Allocate as much memory from hugetlbfs and free it; return the fields of
        ``HugetlbFacts``.
        """
        size = integer(args, "bytes")
        if size <= 0 or size % costs.HUGE_BYTES:
            raise CallError("args", f"'bytes' is {size}, must be a multiple of 2 MiB")
        self._hugetlb = costs.try_hugetlb(size)
        return self._hugetlb
