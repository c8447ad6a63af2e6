# SPDX-License-Identifier: Apache-2.0
"""What carries memory from one kernel to the next, as the rest of the agent sees it.

A mechanism hands out guest RAM that it can carry, and preserved sets: named sets of files, each
under a token. Preserved sets go out of this kernel or come in from the previous one. The host's
command line names the mechanism (``lu.mechanism=NAME``; LUO without it).
"""

from __future__ import annotations

from ..base.fast_stdlib import close_fd, read_text
from . import NAMES

#: what the guests' preserved sets hold
TOKEN_RAM = 1
TOKEN_STATE = 2

#: include/uapi/asm-generic/mman-common.h, since Linux 5.14
_MADV_POPULATE_WRITE = 23
_WORD = "lu.mechanism="
DEFAULT = NAMES[0]


class MechanismError(Exception):
    """The mechanism cannot be used, or what the previous kernel left is not valid."""


class Ram:
    """A guest's RAM, for a VMM to map. ``align`` 0: the VMM chooses."""

    def __init__(
        self, fd: int, size: int, *, offset: int = 0, align: int = 0, pinnable: bool = True
    ) -> None:
        self.fd = fd
        self.size = size
        #: of the first byte in what ``fd`` is
        self.offset = offset
        #: of the mapping in the VMM, so that large pages can be used
        self.align = align
        #: whether its pages have a struct page that I/O can take a reference to: O_DIRECT, VFIO
        self.pinnable = pinnable

    def close(self) -> None:
        """Close the descriptor; the memory itself stays as long as another reference exists."""
        self.fd = close_fd(self.fd)


class PreservedSet:
    """A named set of files that leaves this kernel together, or came from the previous one."""

    name: str
    incoming: bool
    #: how many files went in or came out so far
    tokens: int
    #: how often the kernel said "not now" before it took a guest's RAM
    refusals: int = 0
    #: whether it has not been closed
    is_open: bool

    def preserve_ram(self, ram: Ram) -> None:
        """Let a guest's RAM be carried over, while the guest runs and writes to it."""
        raise NotImplementedError

    def preserve(self, fd: int, token: int) -> None:
        """Let the content of ``fd`` be carried over under ``token``.

        :raises OSError: EEXIST or the like when the token is taken.
        """
        raise NotImplementedError

    def seal(self) -> None:
        """Declare all contents final; the kernel is left next."""
        raise NotImplementedError

    def places(self, token: int, source: int) -> list[tuple[int, int]]:
        """Return where a sealed set has the content of a token for the next kernel: physical
        address and bytes of each piece, in order.

        :param source: what was preserved.
        :raises OSError: the kernel does not say.
        """
        raise NotImplementedError

    def retrieve_ram(self, size: int) -> Ram:
        """Return the RAM that was carried over.

        :raises MechanismError: its size differs.
        """
        raise NotImplementedError

    def retrieve(self, token: int) -> int:
        """Return a descriptor of what was carried over under ``token`` (close-on-exec)."""
        raise NotImplementedError

    def finish(self) -> None:
        """Finish an incoming preserved set: what was not retrieved is freed."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the set. An outgoing one is dropped: nothing of it is carried over."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Drop an outgoing set, finish an incoming one; idempotent."""
        try:
            if self.incoming and self.is_open:
                self.finish()
        finally:
            self.close()


class Mechanism:
    """A mechanism, ready for use on this boot."""

    #: as scenarios name it
    name: str

    def allocate_ram(self, guest: str, size: int) -> Ram:
        """Return zeroed memory for a new guest that this mechanism can carry, all of it allocated.

        :raises OSError: ENOSPC when there is no room.
        """
        raise NotImplementedError

    def free_ram(self, guest: str, ram: Ram) -> None:
        """Close a guest's RAM and free the memory."""
        raise NotImplementedError

    def metadata_bytes(self) -> int | None:
        """Return how much memory the mechanism itself uses now, beside the content.

        None: unknown. What KHO uses is counted from outside.
        """
        return None

    def next_words(self) -> str:
        """Return words for the next kernel's command line, in addition to the planned ones."""
        return ""

    def exhaust(self) -> tuple[int, int]:
        """Use up the room beside guests' RAM, or refuse to give any; for faults.

        :return: bytes of that room before and afterwards, as read; 0: there is none of its own.
        """
        return 0, 0

    def mislead(self) -> None:
        """Let :meth:`next_words` point elsewhere from now on; for faults."""

    def create(self, name: str) -> PreservedSet:
        """Begin an outgoing preserved set."""
        raise NotImplementedError

    def retrieve(self, name: str) -> PreservedSet:
        """Return a preserved set of the previous kernel.

        :raises FileNotFoundError: it left none of that name.
        """
        raise NotImplementedError


def populate(ram: Ram) -> None:
    """Allocate all of the memory by writing to every page; existing content stays.

    MAP_POPULATE would only read a shared mapping, and leave holes.
    """
    if not ram.pinnable:
        return  # without struct pages there are no holes, and nothing for madvise() to do
    from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap

    protection = PROT_READ | PROT_WRITE
    with mmap(ram.fd, ram.size, MAP_SHARED, protection, offset=ram.offset) as area:
        area.madvise(_MADV_POPULATE_WRITE)


def wanted(cmdline: str) -> str:
    """Return the mechanism that a kernel command line asks for; the last word wins."""
    found = [word[len(_WORD) :] for word in cmdline.split() if word.startswith(_WORD)]
    return found[-1] if found else DEFAULT


def open_mechanism(name: str | None = None) -> Mechanism:
    """Return the mechanism of this boot, ready.

    :raises FileNotFoundError: the kernel does not offer it.
    :raises MechanismError, OSError: it cannot be used; what it holds is left alone.
    """
    name = wanted(read_text("/proc/cmdline")) if name is None else name
    if name not in NAMES:
        raise MechanismError(f"this agent knows no mechanism '{name}'")
    # One import of those there are: each costs time in the blackout. importlib would be another.
    module = __import__(name.replace("-", "_"), globals(), None, ("open_mechanism",), 1)
    # a class, or a function that makes one
    opened: Mechanism = module.open_mechanism()
    return opened
