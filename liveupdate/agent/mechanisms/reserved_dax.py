# SPDX-License-Identifier: Apache-2.0
"""Reserved memory as it is done today: ``memmap=SIZE!START``, /dev/pmem0, ext4 with DAX.

Stock kernel, no KHO: the same words on the next command line give the same memory again. Files are
mapped without a page cache (Documentation/filesystems/dax.rst), so what a guest writes is where it
will be. Clusters of 2 MiB ("bigalloc") keep files in pieces that huge pages can map.
"""

from __future__ import annotations

import os

from ..base.fast_stdlib import mount, run_program
from .base import MechanismError, Ram
from .files import FileMechanism

DEVICE = "/dev/pmem0"
MOUNT_POINT = "/run/liveupdate/keep"
LABEL = b"lu-keep"
MKE2FS = "/usr/sbin/mke2fs"
# fmt: off
_MKE2FS_ARGV = [
    MKE2FS, "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "bigalloc,^resize_inode", "-C", "2M",
    "-N", "1024", "-J", "size=4", "-m", "0", "-E", "nodiscard,lazy_itable_init=0",
    "-L", LABEL.decode(),
]
# fmt: on
#: Documentation/filesystems/ext4/super.rst: s_magic, s_volume_name
_SUPERBLOCK = 1024
_MAGIC_AT, _MAGIC = 0x38, b"\x53\xef"
_LABEL_AT, _LABEL_BYTES = 0x78, 16
_HEAD_BYTES = 4096

REQUIREMENTS = {
    "kconfig": ("X86_PMEM_LEGACY", "BLK_DEV_PMEM", "FS_DAX", "EXT4_FS"),
    # KHO is off, to show that it takes no part
    "append": "kho=off liveupdate=off memmap={size}!{start} lu.mechanism=reserved-dax",
    "devices": (DEVICE,),
    "traits": {
        "grows": ("no", "the region is what the command line says"),
        "kernel_users": (
            "no",
            "a driver would have to open files of a file system that user space mounts",
        ),
        "userspace_users": ("yes", "files: mmap, read, write; names and permissions are ext4's"),
    },
    # ext4's own: superblock, inodes and journal in clusters of 2 MiB; manifest and VMM states
    "region_spare_bytes": 64 << 20,
    # ext4's superblock: s_mtime, s_rev_level
    "corrupt_at": 1024 + 0x2C,
    "version_at": 1024 + 0x4C,
}


class DaxMechanism(FileMechanism):
    """The file system on the one reserved region; made when the region was never used."""

    def __init__(self) -> None:
        super().__init__("reserved-dax", MOUNT_POINT)
        if os.path.exists("/dev/pmem1"):
            raise MechanismError("there are several regions (memmap=), one is wanted")
        if not os.path.exists(DEVICE):
            raise MechanismError(f"no {DEVICE}: the kernel was given no memmap=SIZE!START")
        self._is_blank = describe(_head(DEVICE)) is None
        if not self._is_blank:
            self._mount()

    def allocate_ram(self, guest: str, size: int) -> Ram:
        """Return a file for a guest's RAM; format and mount a blank region first."""
        if self._is_blank:
            status, said = run_program([*_MKE2FS_ARGV, DEVICE])
            if status:
                raise MechanismError(f"{MKE2FS} ended with {status}: {said}")
            self._is_blank = False
            self._mount()
        return super().allocate_ram(guest, size)

    def metadata_bytes(self) -> int | None:
        """Return what ext4 uses beside the content of files; None: the region is blank."""
        return None if self._is_blank else super().metadata_bytes()

    def region_bytes(self, told: int) -> int:
        """Return the size of the pmem device in bytes."""
        with open(DEVICE, "rb") as device:
            return device.seek(0, os.SEEK_END)

    def _mount(self) -> None:
        os.makedirs(MOUNT_POINT, mode=0o700, exist_ok=True)
        try:
            mount(DEVICE, MOUNT_POINT, "ext4", "dax=always,errors=remount-ro")
        except OSError as err:
            raise MechanismError(f"the kernel refuses to mount {DEVICE}: {err.strerror}") from err


def describe(head: bytes) -> str | None:
    """Return the label of the file system that a region begins with; None: it was never used.

    :raises MechanismError: there is something else, which must not be written over.
    """
    if not any(head):
        return None
    block = head[_SUPERBLOCK:]
    if block[_MAGIC_AT : _MAGIC_AT + 2] != _MAGIC:
        raise MechanismError(f"{DEVICE} holds no ext4 and is not blank; it is left alone")
    label = block[_LABEL_AT : _LABEL_AT + _LABEL_BYTES].rstrip(b"\0")
    if label != LABEL:
        raise MechanismError(
            f"{DEVICE} holds file system {label!r}, not that of liveupdate; it is left alone"
        )
    return label.decode("ascii")


def _head(path: str) -> bytes:
    with open(path, "rb") as device:
        return device.read(_HEAD_BYTES)


open_mechanism = DaxMechanism
