# SPDX-License-Identifier: Apache-2.0
"""The facts about this host that an operator needs before its kernel is replaced.

Read with the rights of the agent, which is root: other users' processes are visible.
"""

from __future__ import annotations

import os

from ..base import host
from ..base.fast_stdlib import TYPE_CHECKING, read_text, try_read_text
from ..device.driver_binding import Pin, PinError
from ..guest.vmm_qemu import RUN_DIR, VmmError
from ..mechanisms.luo_memfd import DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..guest.guests import Guest
    from .holder import Holder

#: the fields of a guest's description that matter for planning an update
SPEC_KEYS = ("disk", "image", "memory_bytes", "name", "pattern_bytes", "qga", "vcpus")
MEMORY_KEYS = ("MemTotal", "MemFree", "MemAvailable")
#: QEMU's word for a vCPU that KVM cannot go on with; why is on its stderr only
BROKEN = "internal-error"
_PCI = "/sys/bus/pci/devices"
_ABI_BYTES_MAX = 1 << 20


def survey(agent: Holder, args: dict[str, object]) -> dict[str, object]:
    """Return the facts.

    :param args: ``options``, kernel symbols that are looked for in the running kernel's config.
    """
    wanted = args.get("options")
    options = [str(each) for each in wanted] if isinstance(wanted, list) else []
    own = {guest.vmm.pid for guest in agent.guests.values()}
    room = os.statvfs(RUN_DIR)
    meminfo = read_text("/proc/meminfo")
    return {
        "facts": host.facts(agent.handover.preserved_bytes),
        "abi": sorted(_abi_strings()),
        "options": _options(options),
        "kexec": {
            "program": os.access(host.KEXEC, os.X_OK),
            "loaded": _flag("/sys/kernel/kexec_loaded"),
            "disabled": _flag("/proc/sys/kernel/kexec_load_disabled"),
        },
        "owners": _openers(DEVICE),
        "memory": {key: host.meminfo_bytes(meminfo, key) for key in MEMORY_KEYS},
        "run_free_bytes": room.f_bavail * room.f_frsize,
        "guests": {name: _guest(guest) for name, guest in agent.guests.items()},
        "strangers": [found for found in _kvm_users() if found["pid"] not in own],
        "devices": {name: device.status() for name, device in agent.handover.devices.items()},
        "vfio": _vfio_devices(),
        "agent": {
            "pid": os.getpid(),
            "handover": agent.handover.state,
            "update": agent.update.lock.to_json() if agent.update.lock is not None else None,
            "unit": bool(os.environ.get("INVOCATION_ID")),
        },
    }


def _guest(guest: Guest) -> dict[str, object]:
    status, adapter, error = None, None, guest.error
    try:
        if error is None:
            status = guest.vmm.query_status()
            adapter = guest.vmm.check_adapter()
            if status == BROKEN:
                error = f"its VMM says '{status}'; {guest.vmm.last_words()}"
    except VmmError as err:
        error = str(err)
    disk = None
    try:
        disk = host.find_disk(guest.spec.disk)
    except OSError as err:
        error = error or str(err)
    return {
        "spec": {key: getattr(guest.spec, key) for key in SPEC_KEYS},
        "pid": guest.vmm.pid,
        "status": status,
        "adapter": adapter,
        "disk": disk,
        "ram_bytes": guest.ram.size if guest.ram is not None else None,
        "error": error,
    }


def _flag(path: str) -> bool | None:
    """Return whether a file says 1; None: there is no such file."""
    text = try_read_text(path)
    return None if text is None else text == "1"


def _abi_strings() -> set[str]:
    """Return the compatible strings that this kernel writes into what it hands over."""
    import re

    # one string, or one and those of its parts behind semicolons
    pattern = rb"(?<![\w.,;-])([a-z-]{2,20}-v\d{1,3}(?:;[a-z-]{2,20}-v\d{1,3})*)\0"
    found: set[str] = set()
    base = f"{host.KHO_DEBUGFS}/out"
    paths = [f"{base}/fdt"]
    try:
        paths += [f"{base}/sub_fdts/{name}" for name in os.listdir(f"{base}/sub_fdts")]
    except OSError:
        return found
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read(_ABI_BYTES_MAX)
        except OSError:
            continue
        found |= {m.decode() for m in re.findall(pattern, data)}
    return found


def _options(wanted: Iterable[str]) -> dict[str, str] | None:
    """Return what /proc/config.gz says of some symbols, "n" for what is not set; None: no file."""
    import gzip

    try:
        with gzip.open("/proc/config.gz", "rt", encoding="ascii", errors="replace") as file:
            lines = [line.strip() for line in file]
    except OSError:
        return None
    values = dict(line[7:].split("=", 1) for line in lines if line.startswith("CONFIG_"))
    return {symbol: values.get(symbol, "n") for symbol in wanted}


def _processes() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _links(pid: int) -> list[str]:
    """Return where a process's descriptors lead."""
    found: list[str] = []
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass
    return found


def _name(pid: int) -> str:
    return try_read_text(f"/proc/{pid}/comm") or "?"


def _openers(device: str) -> list[dict[str, object]]:
    return [{"pid": pid, "name": _name(pid)} for pid in _processes() if device in _links(pid)]


def _kvm_users() -> list[dict[str, object]]:
    """Return processes that have a virtual machine of KVM."""
    found: list[dict[str, object]] = []
    for pid in _processes():
        if not any(link.startswith("anon_inode:kvm-vm") for link in _links(pid)):
            continue
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read(1 << 16).decode("utf-8", "replace").split("\0")
        except OSError:
            words = []
        guest = words[words.index("-name") + 1] if "-name" in words[:-1] else ""
        fields = dict(part.partition("=")[::2] for part in guest.split(","))
        found.append(
            {
                "pid": pid,
                "name": _name(pid),
                "guest": fields.get("guest") or guest.partition(",")[0],
                # how libvirt starts it (qemu_command.c, qemuBuildNameCommandLine)
                "libvirt": "debug-threads" in fields and "guest" in fields,
            }
        )
    return found


def _vfio_devices() -> list[dict[str, object]]:
    """Return the PCI devices that vfio-pci has."""
    found: list[dict[str, object]] = []
    try:
        names = sorted(os.listdir(_PCI))
    except OSError:
        return found
    for bdf in names:
        pin = Pin(bdf)
        if pin.driver == "vfio-pci":
            try:
                keep: str | None = pin.keep_state()
            except (OSError, PinError):
                keep = None
            found.append({"bdf": bdf, "keep": keep})
    return found
