# SPDX-License-Identifier: Apache-2.0
"""What a kernel image says of itself: release, GNU build id, KHO/LUO ABI strings, its config.

Reads bzImage (Documentation/arch/x86/boot.rst) with every payload compression that
arch/x86/boot/compressed knows, vmlinux (elf(5)) and arm64's Image
(Documentation/arch/arm64/booting.rst), plain, compressed or as EFI zboot
(drivers/firmware/efi/libstub/zboot-header.S). Works on bytes, so any kernel can be asked with no
machine. Every length in the image is checked before it is used.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import lz4.block

from liveupdate.formats import kconfig

#: No vmlinux comes near this; it bounds what a hostile image can make us allocate.
MAX_VMLINUX_BYTES = 512 << 20
_LIMIT = MAX_VMLINUX_BYTES + 1
_SECTOR = 512
_MAGIC = b"HdrS"
_BUILD_ID_NOTE = struct.pack("<III4s", 4, 20, 3, b"GNU\0")
#: of a block of LZ4's legacy frame, doc/lz4_Frame_format.md of the LZ4 project
_LZ4_MAGIC = b"\x02\x21\x4c\x18"
LZ4_BLOCK_BYTES = 8 << 20
LZO_MAGIC = b"\x89LZO\0\r\n\x1a\n"
#: who has a compatible string: KHO, its users, file handlers of LUO, and our own record
_OWNERS = (
    "kho", "luo", "memfd", "memblock", "reserve-mem", "guest-memfd", "vfio-pci", "iommufd",
    "keep-dma",
)  # fmt: skip
#: One pattern for each owner, since a pattern that begins with a literal is found much faster. What
#: follows ";" are strings of its parts (KHO_SUB_COMPAT(), "kho: introduce compatibility helpers").
_ABI = tuple(
    re.compile(rb"%s-v\d{1,3}(?:;[a-z][a-z-]*-v\d{1,3})*\0" % owner.encode()) for owner in _OWNERS
)
_IN_NAME = frozenset(b"0123456789_,.;-" + bytes(range(65, 91)) + bytes(range(97, 123)))
_RELEASE = re.compile(rb"[ -~]{1,255}")
_BANNER = re.compile(rb"Linux version ([!-~]{1,255}) ")
FEATURES = {
    "kho_scratch=": b"\0kho_scratch\0",
    "kho_bootmem=": b"\0kho_bootmem\0",
    "debugfs scratch_phys": b"scratch_phys\0",
    "debugfs bootmem_phys": b"bootmem_phys\0",
    "keep-dma": b"liveupdate_keep_dma\0",
    "exit_on_inject": b"exit_on_inject\0",
}
"""What only some kernels have (parameters, files, our options), and a string that is in those."""


class KernelImageError(ValueError):
    """The bytes are not a kernel image that can be read; says what was wanted and found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupHeader:
    """Fields of the real-mode header; offsets and lengths in bytes from the start of the file."""

    protocol: int
    release: str
    payload_offset: int
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """What the image says of itself. ``config`` is None when it was built without IKCONFIG.

    ``kind`` names format and compression, such as "bzImage, lz4"; ``features`` are keys of
    :data:`FEATURES`.
    """

    kind: str
    release: str
    build_id: str
    abi: tuple[str, ...]
    features: tuple[str, ...]
    config: kconfig.Fragment | None


def parse_setup_header(image: bytes) -> SetupHeader:
    """Parse the setup header of boot protocol 2.08 or later.

    :raises KernelImageError: no bzImage, too old, or a pointer leads out of the file.
    """
    if len(image) < 0x250 or image[0x202:0x206] != _MAGIC or image[0x1FE:0x200] != b"\x55\xaa":
        raise KernelImageError("no bzImage: the 'HdrS' of the setup header is not there")
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if protocol < 0x208:
        raise KernelImageError(f"boot protocol {protocol:#x} is older than 2.08")
    setup_sectors = image[0x1F1] or 4
    (version_at,) = struct.unpack_from("<H", image, 0x20E)
    payload_at, payload_bytes = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * _SECTOR + payload_at
    if not payload_bytes or start + payload_bytes > len(image):
        raise KernelImageError(
            f"the image is cut short: payload ends at {start + payload_bytes}, file at {len(image)}"
        )
    match = _RELEASE.match(image, version_at + _SECTOR) if version_at else None
    if match is None:
        raise KernelImageError("the setup header names no release")
    return SetupHeader(
        protocol=protocol,
        release=match[0].decode("ascii").split(" ")[0],
        payload_offset=start,
        payload_bytes=payload_bytes,
    )


Unpack = Callable[[bytes], bytes]
"""Unpacks a whole LZO file, which no library here can."""


def _no_lzo(_: bytes) -> bytes:
    raise KernelImageError("the payload is packed with LZO")


def unpack(image: bytes, lzo: Unpack = _no_lzo) -> tuple[str, str, bytes]:
    """Return kind, release and the kernel as it runs (ELF, or arm64's Image) of an image.

    :raises KernelImageError: no kernel, unknown compression or damaged data.
    """
    if image[0x202:0x206] == _MAGIC:
        header = parse_setup_header(image)
        payload = image[header.payload_offset : header.payload_offset + header.payload_bytes]
        name, body = _decompress(payload, lzo, trailer=True)
        if body[:4] != b"\x7fELF":
            raise KernelImageError("the payload is not an ELF file")
        return f"bzImage, {name}", header.release, body
    packed, body = "", image
    if image[:2] == b"MZ" and image[4:8] == b"zimg":
        start, size = struct.unpack_from("<II", image.ljust(16, b"\0"), 8)
        packed, body = _decompress(image[start : start + size], lzo, trailer=False)
        packed = f", zboot, {packed}"
    elif not _is_plain(image):
        try:
            packed, body = _decompress(image, lzo, trailer=False)
        except UnknownCompression as error:
            raise KernelImageError("no bzImage, vmlinux or arm64 Image") from error
        packed = f", {packed}"
    if not _is_plain(body):
        raise KernelImageError("no bzImage, vmlinux or arm64 Image")
    banner = _BANNER.search(body)
    if banner is None:
        raise KernelImageError("the image names no release ('Linux version')")
    kind = "vmlinux" if body[:4] == b"\x7fELF" else "arm64 Image"
    return kind + packed, banner[1].decode("ascii"), body


def _is_plain(data: bytes) -> bool:
    return data[:4] == b"\x7fELF" or data[0x38:0x3C] == b"ARM\x64"


class UnknownCompression(KernelImageError):
    """The data begin like nothing that kernels are packed with."""


def _decompress(payload: bytes, lzo: Unpack, *, trailer: bool) -> tuple[str, bytes]:
    """Decompress by magic.

    :param trailer: all but ELF and gzip carry the unpacked length in the last four bytes.
    :raises KernelImageError: unknown compression or damaged data.
    """
    body = payload[:-4] if trailer else payload
    try:
        if payload[:4] == b"\x7fELF":
            return "uncompressed", payload
        if payload[:2] == b"\x1f\x8b":
            name, data = "gzip", zlib.decompressobj(wbits=31).decompress(payload, _LIMIT)
        elif body[:4] == _LZ4_MAGIC:
            name, data = "lz4", _unpack_lz4(body)
        elif body[:4] == b"\x28\xb5\x2f\xfd":
            # Only distributions' kernels are packed so; ours need not wait for the import.
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(body) as reader:
                name, data = "zstd", reader.read(_LIMIT)
        elif body[:6] == b"\xfd7zXZ\0" or body[:3] == b"\x5d\0\0":
            name = "xz" if body[0] == 0xFD else "lzma"
            data = lzma.LZMADecompressor().decompress(body, _LIMIT)
        elif body[:3] == b"BZh":
            name, data = "bzip2", bz2.BZ2Decompressor().decompress(body, _LIMIT)
        elif body[:9] == LZO_MAGIC:
            name, data = "lzo", lzo(body)
        else:
            raise UnknownCompression(f"unknown compression, it begins {payload[:6].hex()}")
    except KernelImageError:
        raise
    except Exception as error:  # each library has errors of its own
        raise KernelImageError(f"the payload cannot be unpacked: {error}") from error
    if len(data) > MAX_VMLINUX_BYTES:
        raise KernelImageError(f"the payload unpacks to more than {MAX_VMLINUX_BYTES} bytes")
    return name, data


def _unpack_lz4(frame: bytes) -> bytes:
    """Unpack a legacy frame: the magic, then blocks, each behind its length; one of 0 ends it."""
    parts: list[bytes] = []
    at = 4
    while at < len(frame) and len(parts) * LZ4_BLOCK_BYTES <= MAX_VMLINUX_BYTES:
        (size,) = struct.unpack_from("<I", frame, at)
        if size == 0:
            break
        block = frame[at + 4 : at + 4 + size]
        parts.append(lz4.block.decompress(block, uncompressed_size=LZ4_BLOCK_BYTES))
        at += 4 + size
    return b"".join(parts)


def find_build_id(vmlinux: bytes) -> str:
    """Return the GNU build id, hex, or "" when there is none: from the ELF's PT_NOTE segments, or
    for arm64's Image, which has no table of them, from where the note is.

    :raises KernelImageError: the program headers lead out of the file.
    """
    if vmlinux[:4] != b"\x7fELF":
        at = vmlinux.find(_BUILD_ID_NOTE)
        return vmlinux[at + 16 : at + 36].hex() if at >= 0 else ""
    if len(vmlinux) < 64 or vmlinux[4:6] != b"\x02\x01":
        raise KernelImageError("the vmlinux is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", vmlinux, 0x20)
    entry_bytes, count = struct.unpack_from("<HH", vmlinux, 0x36)
    if entry_bytes < 56 or table + entry_bytes * count > len(vmlinux):
        raise KernelImageError("the ELF program headers are cut short")
    for index in range(count):
        kind, _, offset, _, _, size = struct.unpack_from(
            "<IIQQQQ", vmlinux, table + index * entry_bytes
        )
        if kind == 4:
            notes = vmlinux[offset : offset + size]
            at = notes.find(_BUILD_ID_NOTE)
            if at >= 0 and len(notes) >= at + 36:
                return notes[at + 16 : at + 36].hex()
    return ""


def find_abi(vmlinux: bytes) -> tuple[str, ...]:
    """Return the compatible strings of KHO, LUO and their users, sorted."""
    found = {
        match[0][:-1].decode()
        for abi in _ABI
        for match in abi.finditer(vmlinux)
        if match.start() == 0 or vmlinux[match.start() - 1] not in _IN_NAME
    }
    return tuple(sorted(found))


def find_config(vmlinux: bytes) -> kconfig.Fragment | None:
    """Return the config which IKCONFIG put in, or None.

    :raises KernelImageError: it is there and cannot be read.
    """
    start = vmlinux.find(b"IKCFG_ST\x1f\x8b")
    if start < 0:
        return None
    end = vmlinux.find(b"IKCFG_ED", start)
    try:
        text = gzip.decompress(vmlinux[start + 8 : end]).decode()
        return kconfig.parse_config(text, "IKCONFIG")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise KernelImageError(f"the embedded config cannot be read: {error}") from error


def read_kernel_image(image: bytes, lzo: Unpack = _no_lzo) -> KernelFacts:
    """Read all that a kernel image says of itself.

    :param lzo: unpacks LZO.
    :raises KernelImageError: it is none, or damaged.
    """
    kind, release, vmlinux = unpack(image, lzo)
    return KernelFacts(
        kind=kind,
        release=release,
        build_id=find_build_id(vmlinux),
        abi=find_abi(vmlinux),
        features=tuple(name for name, text in FEATURES.items() if text in vmlinux),
        config=find_config(vmlinux),
    )
