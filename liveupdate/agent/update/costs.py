# SPDX-License-Identifier: Apache-2.0
"""What a mechanism costs, as far as this host can measure (``model.evidence.CostFacts``).

Measured while guests run; loaded when it is needed, off the path of a restore.
"""

from __future__ import annotations

import errno
import os

from ..base.fast_stdlib import TYPE_CHECKING, now_ns, read_text, write_text

if TYPE_CHECKING:
    from ..guest.guests import Guest
    from ..mechanisms.base import Mechanism, Ram

HUGEPAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB"
HUGE_BYTES = 2 << 20
KVM_DEBUGFS = "/sys/kernel/debug/kvm"
SIZES = ("pages_4k", "pages_2m", "pages_1g")
#: include/uapi/linux/kernel-page-flags.h
_KPF_NOPAGE = 20
PAGE_BYTES = 4096


def of_guest(guest: Guest) -> dict[str, object]:
    """Return the fields of ``RamFacts``; None: they cannot be measured here."""
    return {
        "guest": guest.spec.name,
        "allocate_ns": guest.allocate_ns,
        **dict.fromkeys(SIZES),
        **mapped_pages(guest.vmm.pid),
        "online_page": None if guest.ram is None else has_online_page(guest.ram),
        "pinnable": None if guest.ram is None else can_pin(guest.ram),
    }


def of_host(
    mechanism: Mechanism,
    guests: list[Guest],
    fragment: dict[str, object] | None,
    hugetlb: dict[str, object] | None,
) -> dict[str, object]:
    """Return the fields of ``CostFacts``."""
    return {
        "mechanism": mechanism.name,
        "metadata_bytes": mechanism.metadata_bytes(),
        "rams": [of_guest(guest) for guest in guests],
        "fragment": fragment,
        "hugetlb": hugetlb,
    }


def mapped_pages(pid: int, root: str = KVM_DEBUGFS) -> dict[str, int]:
    """Return how many pages of each size KVM has in the page tables of a VMM's guest.

    These are the tables that the hardware walks, so the result holds for every kind of memory;
    smaps knows only some. Empty: KVM does not show it.
    """
    try:
        names = [name for name in os.listdir(root) if name.partition("-")[0] == str(pid)]
    except OSError:
        return {}
    found: dict[str, int] = {}
    for name in names:
        for size in SIZES:
            try:
                found[size] = found.get(size, 0) + int(read_text(f"{root}/{name}/{size}"))
            except (OSError, ValueError):
                return {}
    return found


def has_online_page(ram: Ram) -> bool | None:
    """Whether the first page of a guest has a struct page that the page allocator knows.

    Memory of a device (DAX) has struct pages of its own, which /proc/kpageflags does not show.
    """
    from ..base.host import page_frames

    try:
        pfn = page_frames(ram.fd, PAGE_BYTES, ram.offset)[0]
        fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.pread(fd, 8, pfn * 8)
    finally:
        os.close(fd)
    if pfn == 0 or len(data) < 8:
        return None
    return not int.from_bytes(data, "little") >> _KPF_NOPAGE & 1


def can_pin(ram: Ram) -> bool | None:
    """Whether the kernel can take a reference to the memory's pages, as O_DIRECT and VFIO do.

    Tried by handing one page to a pipe (vmsplice(2)), which is closed at once.
    """
    from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap

    from ..base.page_pins import Pins, address_of

    try:
        area = mmap(ram.fd, PAGE_BYTES, MAP_SHARED, PROT_READ | PROT_WRITE, offset=ram.offset)
    except (OSError, ValueError):
        return None
    with area:
        area[0]  # there is a page now
        pins = Pins()
        try:
            pins.add([address_of(area)])
        except OSError as err:
            return False if err.errno == errno.EFAULT else None
        finally:
            pins.close()
    return True


def try_hugetlb(size: int, root: str = HUGEPAGES) -> dict[str, object]:
    """Allocate as much memory from hugetlbfs, and free it: the reference for an allocation.

    :param size: in bytes, a multiple of 2 MiB.
    :return: the fields of ``HugetlbFacts``.
    :raises OSError: this kernel has no such pages.
    """
    from ..mechanisms.base import Ram, populate

    pages = size // HUGE_BYTES
    before = int(read_text(f"{root}/nr_hugepages"))
    began = now_ns()
    try:
        write_text(f"{root}/nr_hugepages", f"{before + pages}\n")
        got = int(read_text(f"{root}/nr_hugepages")) - before
        elapsed = None
        if got == pages:
            fd = os.memfd_create("lu-hugetlb", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
            try:
                os.ftruncate(fd, size)
                populate(Ram(fd, size))
            finally:
                os.close(fd)
            elapsed = now_ns() - began
    finally:
        write_text(f"{root}/nr_hugepages", f"{before}\n")
    return {"wanted_pages": pages, "got_pages": got, "allocate_ns": elapsed}
