# SPDX-License-Identifier: Apache-2.0
"""What this host and its kernel report of themselves (inside view,
``model.evidence.KernelFacts``).
"""

from __future__ import annotations

import _thread
import fcntl
import os
import struct

from .fast_stdlib import TYPE_CHECKING, read_text, try_read_text

if TYPE_CHECKING:
    from collections.abc import Iterable

#: the program that loads a kernel
KEXEC = "/usr/sbin/kexec"
KHO_DEBUGFS = "/sys/kernel/debug/kho"

# include/uapi/linux/kvm.h
_KVM_CREATE_VM = 0xAE01
_KVM_CREATE_VCPU = 0xAE41
_KVM_GET_TSC_KHZ = 0xAEA3

_NT_GNU_BUILD_ID = 3
#: include/linux/kho/abi/kexec_metadata.h: u32 version 1, char release[65], u32 count, packed
_METADATA = struct.Struct("<I65sI")


def boot_id() -> str:
    """Return the kernel's random boot id, lower-case hex with dashes."""
    return read_text("/proc/sys/kernel/random/boot_id")


# --- disks


def find_disk(serial: str) -> str:
    """Return the device node of the virtio-blk disk with that serial; a /dev path is returned as it
    is.

    :raises FileNotFoundError: listing the serials that exist.
    """
    if serial.startswith("/dev/"):
        return serial
    seen: list[str] = []
    for name in os.listdir("/sys/block"):
        if name.startswith("vd"):
            found = disk_serial(f"/dev/{name}")
            if found == serial:
                return f"/dev/{name}"
            seen.append(found)
    raise FileNotFoundError(f"no disk with serial '{serial}', there are {sorted(seen)}")


def disk_serial(path: str) -> str:
    """Return the serial of a virtio-blk disk, "" when it has none."""
    return try_read_text(f"/sys/block/{path.rpartition('/')[2]}/serial") or ""


# --- kernel


def build_id(notes: bytes) -> str:
    """Return the GNU build id in ELF notes (/sys/kernel/notes) as hex, "" when there is none."""
    at = 0
    while at + 12 <= len(notes):
        name_size, desc_size, kind = struct.unpack_from("<III", notes, at)
        name = at + 12
        desc = name + (name_size + 3 & ~3)
        at = desc + (desc_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
            return notes[desc : desc + desc_size].hex()
    return ""


def parse_handover_log(messages: Iterable[str]) -> tuple[bool, int, int | None]:
    """Return ``(kho_found, generation, luo_number)`` from kernel messages.

    ``generation`` is 0 on a cold boot, ``luo_number`` None when LUO found nothing.
    """
    found, generation, luo_number = False, 0, None
    for message in messages:
        if "KHO: found kexec handover data" in message:
            found = True
        elif "KHO: exec from:" in message:
            count = message.rpartition("(count ")[2].rstrip(")\n ")
            generation = int(count) if count.isdecimal() else generation
        elif "liveupdate number: " in message:
            number = message.rpartition("liveupdate number: ")[2].strip()
            luo_number = int(number) if number.isdecimal() else luo_number
    return found, generation, luo_number


def read_kmsg() -> list[str]:
    """Return the kernel's log so far."""
    messages: list[str] = []
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BlockingIOError:
                return messages
            except BrokenPipeError:
                continue  # overwritten while being read; the next read goes on after it
            messages.append(record.partition(b";")[2].decode("utf-8", "replace"))
    finally:
        os.close(fd)


def last_messages(about: str, most: int = 3) -> str:
    """Return the newest lines of the kernel's log that contain ``about``, joined; "": none."""
    try:
        found = [message for message in read_kmsg() if about in message]
    except OSError:
        return ""
    return "; ".join(message.partition("\n")[0].strip()[:200] for message in found[-most:])


def kernel_said(about: str, most: int = 3) -> str:
    """Return :func:`last_messages` in brackets for the end of an error, as errno says little."""
    said = last_messages(about, most)
    return f" ({said})" if said else ""


def quick_generation() -> int | None:
    """Return how many kexecs this handover chain has seen, from debugfs; None: unknown.

    One read; reading the kernel log, which ``facts`` does, takes some hundred.
    """
    try:
        fd = os.open(f"{KHO_DEBUGFS}/in/sub_fdts/kexec-metadata", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, 4096)
    finally:
        os.close(fd)
    if len(data) < _METADATA.size:
        return None
    version, _release, count = _METADATA.unpack_from(data)
    return int(count) if version == 1 else None


def generation() -> int | None:
    """Return the number of kexecs from the fastest source; None: neither debugfs nor the log can
    be read.
    """
    quick = quick_generation()
    if quick is not None:
        return quick
    try:
        return parse_handover_log(read_kmsg())[1]
    except OSError:
        return None


def tsc_khz() -> int | None:
    """Return the TSC frequency that KVM gives to guests, kHz; None: /dev/kvm cannot be used.

    Reads it from a temporary VM. Older kernels offer it on a vCPU; the frequency is the same.
    """
    fds: list[int] = []
    try:
        fds.append(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        fds.append(fcntl.ioctl(fds[0], _KVM_CREATE_VM, 0))
        try:
            return fcntl.ioctl(fds[1], _KVM_GET_TSC_KHZ, 0) or None
        except OSError:
            fds.append(fcntl.ioctl(fds[1], _KVM_CREATE_VCPU, 0))
            return fcntl.ioctl(fds[2], _KVM_GET_TSC_KHZ, 0) or None
    except OSError:
        return None
    finally:
        for fd in reversed(fds):
            os.close(fd)


def meminfo_bytes(meminfo: str, name: str) -> int:
    """Return one line of /proc/meminfo, in bytes."""
    for line in meminfo.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/meminfo without {name}")


def scratch_bytes() -> int | None:
    """Return the size of all KHO scratch areas, which 7.4 calls bootmem; None without debugfs or
    KHO.
    """
    for name in ("scratch_len", "bootmem_len"):
        try:
            return sum(int(line, 16) for line in read_text(f"{KHO_DEBUGFS}/out/{name}").split())
        except (OSError, ValueError):
            continue
    return None


def facts(preserved_bytes: int) -> dict[str, object]:
    """Return the fields of ``KernelFacts``.

    :param preserved_bytes: what the agent has in sessions; the kernel does not report it.
    """
    with open("/sys/kernel/notes", "rb") as notes:
        build = build_id(notes.read(1 << 16))
    found, generation, luo_number = parse_handover_log(read_kmsg())
    meminfo = read_text("/proc/meminfo")
    return {
        "boot_id": boot_id(),
        "release": os.uname().release,
        "build_id": build,
        "cmdline": read_text("/proc/cmdline"),
        "tsc_khz": tsc_khz(),
        "kho_found": found,
        "generation": generation,
        "luo_number": luo_number,
        "liveupdate": os.path.exists("/dev/liveupdate"),
        "mem_free_bytes": meminfo_bytes(meminfo, "MemFree"),
        "mem_available_bytes": meminfo_bytes(meminfo, "MemAvailable"),
        "preserved_bytes": preserved_bytes,
        "scratch_bytes": scratch_bytes(),
    }


PAGE_BYTES = 4096
_PAGEMAP_STEP = 32 << 20
FRAME_MASK = (1 << 55) - 1
#: two mappings of one device with one size cannot be told apart in /proc/self/maps
_mapping = _thread.allocate_lock()


def page_frames(fd: int, size: int, offset: int = 0) -> list[int]:
    """Return the page frame number of each page of a file, from this process's pagemap.

    It populates holes, so call it after ``prepare``, which fills them anyway.

    :param size: how many bytes from ``offset`` on.
    """
    from mmap import MAP_POPULATE, MAP_SHARED, PROT_READ, mmap

    with _mapping, mmap(fd, size, MAP_SHARED | MAP_POPULATE, PROT_READ, offset=offset) as area:
        start = mapping_start(fd, size)
        frames: list[int] = []
        for at in range(0, size, _PAGEMAP_STEP):
            piece = range(at, min(at + _PAGEMAP_STEP, size), 4096)
            found = _find_frames(start + at, len(piece))
            if 0 in found:
                # a mapping of memory without struct pages is populated by touching it only
                for page in piece:
                    area[page]
                found = _find_frames(start + at, len(piece))
            frames += found
        del area
    return frames


def find_extents(fd: int, size: int, offset: int = 0) -> list[tuple[int, int]]:
    """Return where a part of a file lies in memory: physical address and bytes of each piece.

    :raises OSError: the kernel does not say, or a page has no frame.
    """
    pieces: list[tuple[int, int]] = []
    whole = -(-size // PAGE_BYTES) * PAGE_BYTES
    for page, frame in enumerate(page_frames(fd, whole, offset)):
        if not frame:
            raise OSError(14, f"page {page} has no frame")  # EFAULT
        address, length = frame * PAGE_BYTES, min(PAGE_BYTES, size - page * PAGE_BYTES)
        if pieces and sum(pieces[-1]) == address:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + length)
        else:
            pieces.append((address, length))
    return pieces


def _find_frames(start: int, count: int) -> list[int]:
    """Return ``count`` frames from address ``start`` on, 0 where there is none."""
    return [e & FRAME_MASK if e >> 63 else 0 for e in read_pagemap(start, count * 4096)]


def read_pagemap(start: int, size: int) -> memoryview:
    """Return this process's pagemap of ``size`` bytes from address ``start`` on, a u64 per page:
    the frame (:data:`FRAME_MASK`), and in bit 63 whether there is one
    (Documentation/admin-guide/mm/pagemap.rst).
    """
    data = bytearray()
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(start // 4096 * 8)
        while len(data) < size // 4096 * 8:
            piece = pagemap.read(min(1 << 20, size // 4096 * 8 - len(data)))
            if not piece:
                raise OSError(5, "pagemap ended early")
            data += piece
    return memoryview(data).cast("Q")


def mapping_start(fd: int, size: int) -> int:
    """Return the address at which this process has mapped ``size`` bytes of a memfd.

    :raises OSError: it has not.
    """
    inode = os.fstat(fd).st_ino
    with open("/proc/self/maps", "rb") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        fields = line.split(None, 5)
        low, _, high = fields[0].partition(b"-")
        if int(fields[4]) == inode and int(high, 16) - int(low, 16) == size:
            return int(low, 16)
    raise OSError(2, "the mapping is not in /proc/self/maps")


def file_sha256(path: str) -> str:
    """Return the digest of a file, in hex."""
    from hashlib import sha256

    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()
