# SPDX-License-Identifier: Apache-2.0
"""bzImages are asked for release, build id, ABI and config; damaged ones are refused, in time.

The images are synthesized here: a setup header, and a payload that is a small ELF file.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from liveupdate.formats.kernelimage import (
    LZ4_BLOCK_BYTES,
    LZO_MAGIC,
    KernelImageError,
    find_abi,
    find_build_id,
    find_config,
    parse_setup_header,
    read_kernel_image,
    unpack,
)

BUILD_ID = bytes(range(20))
CONFIG = b"CONFIG_LIVEUPDATE=y\n# CONFIG_FTRACE is not set\n"


def make_vmlinux(extra: bytes = b"") -> bytes:
    """An ELF header, one PT_LOAD, one PT_NOTE with a foreign note before the build id."""
    foreign = struct.pack("<III4s4s", 4, 4, 1, b"Xen\0", b"abcd")
    notes = foreign + struct.pack("<III4s20s", 4, 20, 3, b"GNU\0", BUILD_ID)
    offset = 64 + 2 * 56
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 64, 64, 4096)
    note = struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(notes), len(notes), 4)
    rodata = b"\0luo-v5\0kho-v4\0xluo-v9\0memfd-v2\0luo-vX\0gic-v3\0kho-v4\0IKCFG_ST"
    rodata += gzip.compress(CONFIG) + b"IKCFG_ED"
    return header + load + note + notes + rodata + extra


def pack_lz4(data: bytes) -> bytes:
    """The legacy frame, which `lz4 -l` and the kernel's build write."""
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), LZ4_BLOCK_BYTES):
        block = lz4.block.compress(data[at : at + LZ4_BLOCK_BYTES], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def with_size(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The kernel appends the unpacked length to all but gzip, which has it itself."""
    return lambda data: pack(data) + struct.pack("<I", len(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "lz4": with_size(pack_lz4),
    "zstd": with_size(zstandard.ZstdCompressor().compress),
    "zstd-without-size": with_size(
        zstandard.ZstdCompressor(write_content_size=False).compress,
    ),
    "xz": with_size(lzma.compress),
    "lzma": with_size(lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "bzip2": with_size(bz2.compress),
}


def make_image(payload: bytes, release: str = "7.3.4-lu-a (x@y) #1 SMP") -> bytes:
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<H", setup, 0x20E, 0x400)
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    text = release.encode() + b"\0"
    setup[0x600 : 0x600 + len(text)] = text
    return bytes(setup) + b"\xcc" * 64 + payload + b"\xcc" * 32


IMAGE = make_image(PACKERS["lz4"](make_vmlinux()))


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_every_compression_of_the_kernel_is_read(pack: Callable[[bytes], bytes]) -> None:
    facts = read_kernel_image(make_image(pack(make_vmlinux())))
    assert facts.release == "7.3.4-lu-a"
    assert facts.build_id == BUILD_ID.hex()
    assert facts.abi == ("kho-v4", "luo-v5", "memfd-v2")
    assert facts.config is not None
    assert facts.config.get("LIVEUPDATE") == "y"
    assert facts.kind.startswith("bzImage, ")


BANNER = b"\0Linux version 7.4.0-rc1 (x@y) #1 SMP\0"
ARM64 = bytes(0x38) + b"ARM\x64" + BANNER + b"\0luo-v6;block-v1\0" + struct.pack(
    "<III4s20s", 4, 20, 3, b"GNU\0", BUILD_ID
)  # fmt: skip


def make_zboot(payload: bytes) -> bytes:
    return b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload)) + bytes(48) + payload


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (make_vmlinux(BANNER), "vmlinux"),
        (gzip.compress(make_vmlinux(BANNER)), "vmlinux, gzip"),
        (ARM64, "arm64 Image"),
        (gzip.compress(ARM64), "arm64 Image, gzip"),
        (make_zboot(gzip.compress(ARM64)), "arm64 Image, zboot, gzip"),
    ],
)
def test_images_without_a_setup_header_name_their_release_in_the_banner(
    image: bytes, kind: str
) -> None:
    facts = read_kernel_image(image)
    assert (facts.kind, facts.release, facts.build_id) == (kind, "7.4.0-rc1", BUILD_ID.hex())


def test_lzo_is_the_callers_to_unpack() -> None:
    image = make_image(LZO_MAGIC + b"packed" + bytes(4))
    with pytest.raises(KernelImageError, match="LZO"):
        read_kernel_image(image)
    facts = read_kernel_image(image, lambda data: make_vmlinux() if b"packed" in data else b"")
    assert facts.kind == "bzImage, lzo"


def test_composite_strings_are_read_whole_and_names_that_moved_are_features() -> None:
    facts = read_kernel_image(ARM64 + b"\0kho_bootmem\0bootmem_phys\0")
    assert facts.abi == ("luo-v6;block-v1",)
    assert facts.features == ("kho_bootmem=", "debugfs bootmem_phys")


def test_lz4_bomb_is_stopped() -> None:
    block = lz4.block.compress(bytes(LZ4_BLOCK_BYTES), store_size=False)
    frame = b"\x02\x21\x4c\x18" + (struct.pack("<I", len(block)) + block) * 66
    with pytest.raises(KernelImageError, match="unpacks to more than"):
        unpack(make_image(frame + bytes(4)))


def test_kernel_without_kho_config_or_notes_says_so() -> None:
    vmlinux = make_vmlinux()[:64]
    bare = bytearray(vmlinux)
    struct.pack_into("<H", bare, 0x38, 0)
    facts = read_kernel_image(make_image(gzip.compress(bytes(bare))))
    assert (facts.build_id, facts.abi, facts.config) == ("", (), None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no bzImage"),
        (b"\x7fELF" + bytes(4096), "names no release"),
        (bytes(4096), "no bzImage, vmlinux or arm64 Image"),
        (bz2.compress(b"no kernel"), "no bzImage, vmlinux or arm64 Image"),
        (b"MZ\0\0zimg", "unknown compression"),
        (IMAGE[:0x240], "no bzImage"),
        (IMAGE[:-64], "cut short"),
        (IMAGE[:0x206] + b"\x05\x02" + IMAGE[0x208:], "older than 2.08"),
        (IMAGE[:0x600] + bytes(64) + IMAGE[0x640:], "names no release"),
        (make_image(b"????" + bytes(100)), "unknown compression"),
        (make_image(gzip.compress(b"no elf file")), "not an ELF"),
        (make_image(PACKERS["zstd"](make_vmlinux())[:-40]), "not an ELF|unpacked"),
        (make_image(PACKERS["xz"](make_vmlinux())[:12] + bytes(80)), "unpacked"),
    ],
)
def test_what_is_no_kernel_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(KernelImageError, match=message):
        read_kernel_image(data)


def test_damaged_embedded_config_is_an_error_not_an_absent_one() -> None:
    vmlinux = make_vmlinux()
    at = vmlinux.index(b"IKCFG_ST") + 20
    with pytest.raises(KernelImageError, match="embedded config"):
        find_config(vmlinux[:at] + b"\xff\xff\xff" + vmlinux[at + 3 :])


def test_program_headers_out_of_the_file_are_refused() -> None:
    vmlinux = bytearray(make_vmlinux())
    struct.pack_into("<Q", vmlinux, 0x20, 1 << 60)
    with pytest.raises(KernelImageError, match="program headers"):
        find_build_id(bytes(vmlinux))


def test_abi_string_must_stand_alone() -> None:
    assert find_abi(b"prefix-luo-v5\0 kho-v4x\0\0memfd-v2\0") == ("memfd-v2",)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, len(IMAGE) - 1))
def test_damage_anywhere_is_survived(junk: bytes, at: int) -> None:
    data = IMAGE[:at] + junk + IMAGE[at + len(junk) :]
    try:
        read_kernel_image(data)
    except KernelImageError as error:
        assert str(error)


@settings(deadline=None)
@given(st.integers(0, len(IMAGE)))
def test_truncation_anywhere_is_refused_or_harmless(length: int) -> None:
    try:
        parse_setup_header(IMAGE[:length])
        unpack(IMAGE[:length])
    except KernelImageError:
        return
    assert length >= len(IMAGE) - 32
