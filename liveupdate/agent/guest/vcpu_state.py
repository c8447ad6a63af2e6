# SPDX-License-Identifier: Apache-2.0
"""What KVM knows of a stopped guest's vCPUs, asked through its VMM.

Every class of state that KVM has a vCPU ioctl for (Documentation/virt/kvm/api.rst), as the bytes
that KVM gives. PIC, IO-APIC and PIT are the VMM's (``kernel-irqchip=split``), so KVM has none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.traced import Traced

if TYPE_CHECKING:
    from collections.abc import Callable

#: class: (request, bytes); x86-64's, include/uapi/linux/kvm.h
_CLASSES = {
    "regs": (0x8090AE81, 144),
    "sregs2": (0x8140AECC, 320),
    "xcrs": (0x8188AEA6, 392),
    "events": (0x8040AE9F, 64),
    "debugregs": (0x8080AEA1, 128),
    "mp_state": (0x8004AE98, 4),
    "lapic": (0x8400AE8E, 1024),
}
_GET_XSAVE2, _GET_XSAVE, _XSAVE_BYTES = 0x9000AECF, 0x9000AEA4, 4096
_GET_MSRS, _GET_MSR_INDEX_LIST = 0xC008AE88, 0xC004AE02
_GET_TSC_KHZ, _GET_CLOCK, _CLOCK_BYTES = 0xAEA3, 0x8030AE7C, 48
_GET_DEVICE_ATTR, _TSC_CTRL, _TSC_OFFSET = 0x4018AEE2, 0, 0
_CHECK_EXTENSION, _CAP_XSAVE2 = 0xAE03, 208
_HEAD, _MSR, _ATTR = struct.Struct("<II"), struct.Struct("<IIQ"), struct.Struct("<IIQQ")
#: holds a list of all MSRs, and XSAVE with AMX
_SCRATCH_BYTES = 1 << 16
#: KVM knows fewer
_MSRS_MAX = 2048


def read_vcpus(pid: int) -> list[dict[str, object]]:
    """Ask for the state of each vCPU of a VMM.

    :returns: for each vCPU its number, ``classes`` (name: bytes in hexadecimal), ``msrs`` (index:
        value, both in hexadecimal) and ``refused`` (name: error of the kernel).
    :raises OSError: the VMM cannot be stopped, or has no vCPU.
    """
    vm, vcpus = find_fds(pid)
    indices = list_msrs()
    with Traced(pid) as vmm:
        area = vmm.scratch(_SCRATCH_BYTES)
        try:
            xsave_bytes = max(vmm.ioctl(vm, _CHECK_EXTENSION, _CAP_XSAVE2), _XSAVE_BYTES)
            xsave = (_GET_XSAVE2, min(xsave_bytes, _SCRATCH_BYTES))
        except OSError:
            xsave = (_GET_XSAVE, _XSAVE_BYTES)
        return [
            {"vcpu": number, **_Vcpu(vmm, vm, fd, area).read(xsave, indices)}
            for number, fd in sorted(vcpus.items())
        ]


class _Vcpu:
    """One vCPU of a VMM that is stopped."""

    def __init__(self, vmm: Traced, vm: int, fd: int, area: int) -> None:
        self._vmm, self._vm, self._fd, self._area = vmm, vm, fd, area
        self._classes: dict[str, str] = {}
        self._msrs: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def read(self, xsave: tuple[int, int], indices: list[int]) -> dict[str, object]:
        self._ask("clock", self._vm, _GET_CLOCK, _CLOCK_BYTES)
        self._try("tsc_khz", self._read_tsc_khz)
        self._try("tsc_offset", self._read_tsc_offset)
        for name, (request, size) in {**_CLASSES, "xsave": xsave}.items():
            self._ask(name, self._fd, request, size)
        self._try("msrs", lambda: self._read_msrs(indices))
        return {"classes": self._classes, "msrs": self._msrs, "refused": self._refused}

    def _try(self, name: str, read: Callable[[], None]) -> None:
        try:
            read()
        except OSError as err:
            self._refused[name] = errno.errorcode.get(err.errno or 0, str(err))

    def _ask(self, name: str, fd: int, request: int, size: int) -> None:
        def read() -> None:
            self._vmm.ioctl(fd, request, self._area)
            self._classes[name] = self._vmm.read(self._area, size).hex()

        self._try(name, read)

    def _read_tsc_khz(self) -> None:
        khz = self._vmm.ioctl(self._fd, _GET_TSC_KHZ)
        self._classes["tsc_khz"] = khz.to_bytes(8, "little").hex()

    def _read_tsc_offset(self) -> None:
        value = self._area + _ATTR.size
        self._vmm.write(self._area, pack_tsc_offset(value))
        self._vmm.ioctl(self._fd, _GET_DEVICE_ATTR, self._area)
        self._classes["tsc_offset"] = self._vmm.read(value, 8).hex()

    def _read_msrs(self, indices: list[int]) -> None:
        """Read all MSRs. KVM stops at the first that it refuses; the next call begins behind it."""
        left = list(indices)
        while left:
            self._vmm.write(self._area, pack_msrs(left))
            done = self._vmm.ioctl(self._fd, _GET_MSRS, self._area)
            told = self._vmm.read(self._area + _HEAD.size, done * _MSR.size)
            for index, _, value in _MSR.iter_unpack(told):
                self._msrs[f"{index:x}"] = f"{value:x}"
            if done < len(left):
                self._refused[f"msr {left[done]:x}"] = "not read"
            left = left[done + 1 :]


def pack_msrs(indices: list[int]) -> bytes:
    """Return a ``struct kvm_msrs`` that asks for these."""
    return _HEAD.pack(len(indices), 0) + b"".join(_MSR.pack(index, 0, 0) for index in indices)


def pack_tsc_offset(value: int) -> bytes:
    """Return a ``struct kvm_device_attr`` for a vCPU's TSC offset, kept at address ``value``."""
    return _ATTR.pack(0, _TSC_CTRL, _TSC_OFFSET, value)


def list_msrs() -> list[int]:
    """Return the MSRs that KVM saves and restores (KVM_GET_MSR_INDEX_LIST)."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        answer = bytearray(struct.pack("<I", _MSRS_MAX) + bytes(4 * _MSRS_MAX))
        fcntl.ioctl(kvm, _GET_MSR_INDEX_LIST, answer)
    finally:
        os.close(kvm)
    (count,) = struct.unpack_from("<I", answer)
    return list(struct.unpack_from(f"<{count}I", answer, 4))


def find_fds(pid: int) -> tuple[int, dict[int, int]]:
    """Find a VMM's descriptors: of its VM, and of each vCPU by number."""
    vm, vcpus = -1, {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed meanwhile
        if target == "anon_inode:kvm-vm":
            vm = int(name)
        elif target.startswith("anon_inode:kvm-vcpu:"):
            vcpus[int(target.rpartition(":")[2])] = int(name)
    if vm < 0 or not vcpus:
        raise OSError(errno.ENOENT, f"process {pid} has no VM of KVM, or no vCPU")
    return vm, vcpus
