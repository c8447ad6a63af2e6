# SPDX-License-Identifier: Apache-2.0
"""What a bzImage says of itself: release, GNU build id, KHO/LUO ABI strings, its config.

Implements Documentation/arch/x86/boot.rst (setup header), the payload compressions that
arch/x86/boot/compressed knows, and ELF notes (elf(5)). Works on bytes, so any kernel can be asked
with no machine. Every length in the image is checked before it is used.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import zlib
from dataclasses import dataclass

from liveupdate.formats import kconfig, lz4legacy

#: No vmlinux comes near this; it bounds what a hostile image can make us allocate.
MAX_VMLINUX_BYTES = 512 << 20
_SECTOR = 512
_MAGIC = b"HdrS"
_BUILD_ID_NOTE = struct.pack("<III4s", 4, 20, 3, b"GNU\0")
_ABI = re.compile(rb"(?<![A-Za-z0-9_,.-])((?:kho|luo|memfd|memblock|reserve-mem)-v\d{1,3})\0")
_RELEASE = re.compile(rb"[ -~]{1,255}")


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
    """What the image says of itself. ``config`` is None when it was built without IKCONFIG."""

    release: str
    build_id: str
    abi: tuple[str, ...]
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


def extract_vmlinux(image: bytes) -> bytes:
    """Decompress the payload of a bzImage.

    :raises KernelImageError: unknown compression or damaged data.
    """
    header = parse_setup_header(image)
    payload = image[header.payload_offset : header.payload_offset + header.payload_bytes]
    try:
        vmlinux = _decompress(payload)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise KernelImageError(f"the payload cannot be unpacked: {error}") from error
    if vmlinux[:4] != b"\x7fELF":
        raise KernelImageError("the payload is not an ELF file")
    return vmlinux


def _decompress(payload: bytes) -> bytes:
    """Decompress by magic; all but ELF carry the unpacked length in the last four bytes."""
    if payload[:4] == b"\x7fELF":
        return payload
    if payload[:2] == b"\x1f\x8b":
        return _bounded(zlib.decompressobj(wbits=31).decompress(payload, MAX_VMLINUX_BYTES + 1))
    body = payload[:-4]
    if body[:4] == lz4legacy.MAGIC:
        return lz4legacy.decode(body, limit_bytes=MAX_VMLINUX_BYTES)
    if body[:4] == b"\x28\xb5\x2f\xfd":
        # Only distributions' kernels are packed so; ours need not wait for the import.
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(body) as reader:
                return _bounded(reader.read(MAX_VMLINUX_BYTES + 1))
        except zstandard.ZstdError as error:
            raise KernelImageError(f"the payload cannot be unpacked: {error}") from error
    if body[:6] == b"\xfd7zXZ\0" or body[:3] == b"\x5d\0\0":
        return _bounded(lzma.LZMADecompressor().decompress(body, MAX_VMLINUX_BYTES + 1))
    if body[:3] == b"BZh":
        return _bounded(bz2.BZ2Decompressor().decompress(body, MAX_VMLINUX_BYTES + 1))
    raise KernelImageError(f"unknown compression of the payload, it begins {payload[:6].hex()}")


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_VMLINUX_BYTES:
        raise KernelImageError(f"the payload unpacks to more than {MAX_VMLINUX_BYTES} bytes")
    return data


def find_build_id(vmlinux: bytes) -> str:
    """Return the GNU build id from the ELF's PT_NOTE segments, hex, or "" when there is none.

    :raises KernelImageError: the program headers lead out of the file.
    """
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
    return tuple(sorted({match.decode() for match in _ABI.findall(vmlinux)}))


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


def read_kernel_image(image: bytes) -> KernelFacts:
    """Read all that a bzImage says of itself.

    :raises KernelImageError: it is none, or damaged.
    """
    header = parse_setup_header(image)
    vmlinux = extract_vmlinux(image)
    return KernelFacts(
        release=header.release,
        build_id=find_build_id(vmlinux),
        abi=find_abi(vmlinux),
        config=find_config(vmlinux),
    )
