# SPDX-License-Identifier: Apache-2.0
"""What the testbed needs of a host's kernel: each option with its reason, and what happens without.

It is the one list: the fragment that ``liveupdate kernel needs`` prints, the check of a kernel that
is built from a user's tree, and what ``liveupdate compat`` says of two images come from it. The
host has no initrd, so what it boots with has to be built in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Without(StrEnum):
    """What becomes of a host whose kernel lacks an option, the worst first."""

    PANIC = "the host does not boot"
    UNREACHABLE = "the agent cannot be reached"
    HANDOVER = "nothing is handed over"
    GUESTS = "no guest can run"
    UNPROVEN = "a check has no evidence"


@dataclass(frozen=True, slots=True)
class Need:
    """One option: ``symbol`` without ``CONFIG_``, always ``y``."""

    symbol: str
    without: Without
    reason: str


def _needs(without: Without, rows: Mapping[str, str]) -> tuple[Need, ...]:
    return tuple(
        Need(symbol, without, reason)
        for reason, symbols in rows.items()
        for symbol in symbols.split()
    )


NEEDS = (
    *_needs(
        Without.PANIC,
        {
            "x86-64 is the architecture of the testbed": "64BIT",
            "the root disk is a virtio disk on PCI": "PCI VIRTIO_PCI BLOCK BLK_DEV VIRTIO_BLK",
            "the root file system": "EXT4_FS",
            "init and the agent's Python are ELF programs": "BINFMT_ELF",
            "QEMU describes its machine by ACPI tables": "ACPI",
        },
    ),
    *_needs(
        Without.UNREACHABLE,
        {
            "the console is the first serial port": "TTY SERIAL_8250 SERIAL_8250_CONSOLE PRINTK",
            "the agent's link is a virtio-serial port": "VIRTIO_CONSOLE",
            "the agent and Python's standard library call these": (
                "EPOLL FUTEX SIGNALFD TIMERFD EVENTFD POSIX_TIMERS FILE_LOCKING MULTIUSER"
                " ADVISE_SYSCALLS"
            ),
            "init mounts these": "PROC_FS SYSFS DEVTMPFS TMPFS SHMEM",
            "the agent reads and sets /proc/sys": "SYSCTL",
            "sockets of VMMs, and SSH": "NET UNIX INET UNIX98_PTYS",
        },
    ),
    *_needs(
        Without.HANDOVER,
        {
            "kexec -s loads the incoming kernel": "KEXEC_FILE",
            "memory is handed over by KHO": "KEXEC_HANDOVER",
            "guests' memory is preserved as memfds in sessions of LUO": "LIVEUPDATE MEMFD_CREATE",
        },
    ),
    *_needs(
        Without.GUESTS,
        {
            "guests run under KVM; QEMU's TCG emulates AMD's SVM": "VIRTUALIZATION KVM KVM_AMD",
            "each guest's network card is a tap on a bridge with the host's": (
                "TUN BRIDGE NETDEVICES VIRTIO_NET"
            ),
            "VMMs read and write disks asynchronously": "AIO",
        },
    ),
    *_needs(
        Without.UNPROVEN,
        {
            "handover.kho reads what KHO kept": "DEBUG_FS KEXEC_HANDOVER_DEBUGFS",
            "memory.placement reads /proc/PID/pagemap": "PROC_PAGE_MONITOR",
        },
    ),
)
BY_SYMBOL: Mapping[str, Need] = MappingProxyType({need.symbol: need for need in NEEDS})

#: What selects or computes a needed option in some releases: named in the fragment, never demanded.
#: PROC_SYSCTL was the prompt of SYSCTL until 7.2; LIVEUPDATE_MEMFD has been its own option since.
HELPERS = (
    "PROC_SYSCTL", "LIVEUPDATE_MEMFD", "HYPERVISOR_GUEST", "VIRTIO_MENU", "KEXEC_HANDOVER_DEBUG",
)  # fmt: skip


def lacking(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the needed options that a configuration does not have, as "SYMBOL=found".

    :param options: symbols without ``CONFIG_`` and their values; one that is not there is "n".
    """
    found = ((need.symbol, options.get(need.symbol, "n")) for need in NEEDS)
    return tuple(f"{symbol}={value}" for symbol, value in found if value != "y")


def fragment() -> str:
    """Return the list as a fragment to merge over any configuration."""
    lines = ["# What a host under update of liveupdate's testbed needs of its kernel."]
    reason = ""
    for need in NEEDS:
        if need.reason != reason:
            reason = need.reason
            lines.append(f"# {reason} (without: {need.without})")
        lines.append(f"CONFIG_{need.symbol}=y")
    lines.append("# needed for the above in some releases, unknown to others")
    lines += [f"CONFIG_{symbol}=y" for symbol in HELPERS]
    return "\n".join(lines) + "\n"
