# SPDX-License-Identifier: Apache-2.0
"""Guest memory from outside: digests of every page, and where a guest-physical page lies.

Facts only: which digests ought to be equal is the judge's business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from liveupdate.core.units import GIB, MIB, PAGE_BYTES, Gpa, PhysAddr
from liveupdate.transport.physmem import Page, digest_selected

#: q35 with this much RAM or more keeps only 2 GiB below the PCI hole
#: (QEMU hw/i386/pc_q35.c, pc_q35_init)
_Q35_SPLIT_BYTES = 0xB0000000
_Q35_LOW_BYTES = 2 * GIB
_ABOVE_4G = Gpa(4 * GIB)
#: takes about a millisecond
_PIECE_PAGES = 2048


def guest_ranges(ram_bytes: int) -> tuple[tuple[Gpa, int], ...]:
    """Return the guest-physical ranges of a q35 guest's RAM, in its order: start, size."""
    if ram_bytes < _Q35_SPLIT_BYTES:
        return ((Gpa(0), ram_bytes),)
    return (Gpa(0), _Q35_LOW_BYTES), (_ABOVE_4G, ram_bytes - _Q35_LOW_BYTES)


def guest_page_index(gpa: Gpa, ram_bytes: int) -> int:
    """Return the index of the RAM page behind a guest-physical address of a q35 guest.

    :raises ValueError: the address is not RAM.
    """
    first = 0
    for start, size in guest_ranges(ram_bytes):
        if start <= gpa < start + size:
            return (first + gpa - start) // PAGE_BYTES
        first += size
    raise ValueError(f"guest-physical {gpa:#x} is not in the guest's {ram_bytes // MIB} MiB of RAM")


def page_address(pfns: bytes, index: int) -> PhysAddr:
    """Return the host-physical address of RAM page ``index``; ``pfns`` is u64 LE per page.

    :raises ValueError: the page is out of range or not present (PFN 0).
    """
    entry = pfns[index * 8 : index * 8 + 8]
    pfn = int.from_bytes(entry, "little")
    if len(entry) != 8 or pfn == 0:
        raise ValueError(
            f"guest page {index} has no page frame ({len(pfns) // 8} pages are mapped)"
        )
    return PhysAddr(pfn * PAGE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestPass:
    """Digests of all pages of one guest at one moment, ``freeze`` or ``boot``.

    ``digests`` are u64 LE, one a page; times are CLOCK_MONOTONIC of the control host.
    """

    guest: str
    moment: str
    digests: bytes
    began_ns: int
    ended_ns: int


class DigestJob:
    """One pass over a guest's pages in a thread, so that the blackout does not wait for it."""

    def __init__(self, pages: Sequence[Page], guest: str, moment: str) -> None:
        """:param pages: looked up in the brownout, :meth:`PhysMem.select_pages`."""
        self.guest = guest
        self.moment = moment
        #: None: it has not ended, or has failed
        self.result: DigestPass | None = None
        self.error: Exception | None = None
        self._pages = pages
        self._thread = threading.Thread(target=self._run, name=f"digest-{guest}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic_ns()
        try:
            # In pieces: a call holds the interpreter lock, and other threads must keep their time.
            digests = b"".join(
                digest_selected(self._pages[at : at + _PIECE_PAGES])
                for at in range(0, len(self._pages), _PIECE_PAGES)
            )
        except Exception as error:
            # its frames hold pages, and the mapping they lie in can be closed with none held
            self.error = error.with_traceback(None)
            return
        finally:
            self._pages = ()
        self.result = DigestPass(
            guest=self.guest,
            moment=self.moment,
            digests=digests,
            began_ns=began,
            ended_ns=time.monotonic_ns(),
        )

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the pass, however it ended."""
        self._thread.join(timeout_s)
