# SPDX-License-Identifier: Apache-2.0
"""VFIO: open a device, map memory for it, reach its registers (uapi/linux/vfio.h, iommufd.h).

Two ways to the same: a container with the device's group (type 1 IOMMU), and the device's own
character device with iommufd.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from ..base.fast_stdlib import TYPE_CHECKING
from .driver_binding import Pin

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

_SET_IOMMU = 0x3B66
_GROUP_GET_STATUS = 0x3B67
_GROUP_SET_CONTAINER = 0x3B68
_GROUP_GET_DEVICE_FD = 0x3B6A
_GET_REGION_INFO = 0x3B6C
_MAP_DMA = 0x3B71
_BIND_IOMMUFD = 0x3B76
_ATTACH_IOMMUFD_PT = 0x3B77
_IOAS_ALLOC = 0x3B81
_IOAS_MAP = 0x3B85
_HWPT_ALLOC = 0x3B89

_TYPE1V2 = 3
_GROUP_VIABLE = 1
_READ_WRITE = 3
#: fixed IOVA, writeable, readable
_IOAS_FLAGS = 7
_BAR0 = 0
_CONFIG = 7

_COMMAND = 4
_MEMORY_AND_MASTER = 6

ACCESS = ("container", "cdev")
_POLL_S = 0.005


class VfioError(Exception):
    """VFIO does not give the device."""


class JobError(Exception):
    """The device does not do what it was told."""


def wait_for(what: str, is_done: Callable[[], bool], timeout_s: float) -> None:
    """Wait for something that a device does.

    :raises JobError: it takes longer than ``timeout_s``.
    """
    end = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > end:
            raise JobError(f"waited {timeout_s:g} s for {what}")
        time.sleep(_POLL_S)


class Bar:
    """The registers in a mapped BAR 0. Each access has 32 bits, which is what devices want."""

    def __init__(self, bar: mmap) -> None:
        self._view = memoryview(bar)
        self._registers = self._view.cast("I")

    def close(self) -> None:
        """Release the registers, so that they can be unmapped."""
        self._registers.release()
        self._view.release()

    def read(self, register: int) -> int:
        """Return the register at that offset."""
        return self._registers[register >> 2]

    def write(self, register: int, value: int) -> None:
        """Write the register at that offset."""
        self._registers[register >> 2] = value


class VfioDevice:
    """An open device. Closing it stops and resets it, unless the kernel ends first."""

    def __init__(self, fds: list[int], ioas: int = -1) -> None:
        """:param ioas: id of iommufd's address space; iommufd is the first of ``fds`` then."""
        #: container or iommufd first, the device last
        self._fds = fds
        self._ioas = ioas

    @property
    def fd(self) -> int:
        """File descriptor of the device."""
        return self._fds[-1]

    def close(self) -> None:
        """Close device and container or iommufd."""
        while self._fds:
            os.close(self._fds.pop())

    def map_memory(self, mapping: Mapping) -> None:
        """Let the device read and write memory of this process."""
        if self._ioas < 0:
            _map_container(self._fds[0], mapping)
        else:
            _map_ioas(self._fds[0], self._ioas, mapping)

    def _region(self, index: int) -> tuple[int, int]:
        """Return size and offset of a region in the device's file."""
        info = bytearray(struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0))
        fcntl.ioctl(self.fd, _GET_REGION_INFO, info)
        size, offset = struct.unpack_from("=QQ", info, 16)
        return size, offset

    def map_bar(self) -> mmap:
        """Map the registers in BAR 0; close the mapping before the device."""
        from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap

        size, offset = self._region(_BAR0)
        return mmap(self.fd, size, MAP_SHARED, PROT_READ | PROT_WRITE, offset=offset)

    def enable(self) -> None:
        """Let it answer to memory accesses and be bus master."""
        at = self._region(_CONFIG)[1] + _COMMAND
        value = int.from_bytes(os.pread(self.fd, 2, at), "little") | _MEMORY_AND_MASTER
        os.pwrite(self.fd, value.to_bytes(2, "little"), at)


class Mapping:
    """Memory of this process for a device: ``length`` bytes at ``address``, seen at ``iova``."""

    def __init__(self, address: int, iova: int, length: int) -> None:
        self.address = address
        self.iova = iova
        self.length = length


def open_device(access: str, pin: Pin, group: str, mapping: Mapping) -> VfioDevice:
    """Open a device that is bound to vfio-pci, with a mapping in place.

    A device whose DMA was kept is neither reset nor attached to other tables here: adopting does
    that, or iommufd, which attaches a complete domain.

    :raises VfioError, OSError: it cannot be opened; nothing is open then.
    """
    fds: list[int] = []
    ioas = -1
    try:
        if access == "cdev":
            ioas = _open_cdev(fds, pin, mapping)
        else:
            _open_group(fds, pin, group, mapping)
    except BaseException:
        for fd in reversed(fds):
            os.close(fd)
        raise
    return VfioDevice(fds, ioas)


def _open_group(fds: list[int], pin: Pin, group: str, mapping: Mapping) -> None:
    fds.append(os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC))
    fds.append(os.open(f"/dev/vfio/{group}", os.O_RDWR | os.O_CLOEXEC))
    container, group_fd = fds
    status = bytearray(struct.pack("=II", 8, 0))
    fcntl.ioctl(group_fd, _GROUP_GET_STATUS, status)
    if not struct.unpack_from("=I", status, 4)[0] & _GROUP_VIABLE:
        raise VfioError(f"IOMMU group {group} is not viable: a member has another driver")
    fcntl.ioctl(group_fd, _GROUP_SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, _SET_IOMMU, _TYPE1V2)
    device = fcntl.ioctl(group_fd, _GROUP_GET_DEVICE_FD, bytearray(pin.bdf.encode() + b"\0"))
    os.set_inheritable(device, False)
    fds.append(device)
    _map_container(container, mapping)


def _map_container(container: int, mapping: Mapping) -> None:
    request = struct.pack("=IIQQQ", 32, _READ_WRITE, mapping.address, mapping.iova, mapping.length)
    fcntl.ioctl(container, _MAP_DMA, request)


def _map_ioas(iommufd: int, ioas: int, mapping: Mapping) -> None:
    request = struct.pack(
        "=IIIIQQQ", 40, _IOAS_FLAGS, ioas, 0, mapping.address, mapping.length, mapping.iova
    )
    fcntl.ioctl(iommufd, _IOAS_MAP, bytearray(request))


def _open_cdev(fds: list[int], pin: Pin, mapping: Mapping) -> int:
    """Return the id of the address space."""
    fds.append(os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC))
    iommufd = fds[0]
    alloc = bytearray(struct.pack("=III", 12, 0, 0))
    fcntl.ioctl(iommufd, _IOAS_ALLOC, alloc)
    ioas = struct.unpack_from("=I", alloc, 8)[0]
    _map_ioas(iommufd, ioas, mapping)
    fds.append(os.open(pin.cdev, os.O_RDWR | os.O_CLOEXEC))
    bind = bytearray(struct.pack("=IIiIQ", 24, 0, iommufd, 0, 0))
    fcntl.ioctl(fds[1], _BIND_IOMMUFD, bind)
    device_id = struct.unpack_from("=I", bind, 12)[0]
    # a domain of its own, with the mapping in it before the device sees it
    table = bytearray(struct.pack("=8IQII", 48, 0, device_id, ioas, 0, 0, 0, 0, 0, 0, 0))
    fcntl.ioctl(iommufd, _HWPT_ALLOC, table)
    hwpt = struct.unpack_from("=I", table, 16)[0]
    fcntl.ioctl(fds[1], _ATTACH_IOMMUFD_PT, bytearray(struct.pack("=IIII", 16, 0, hwpt, 0)))
    return int(ioas)
