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

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from liveupdate.formats import lz4legacy
from liveupdate.formats.kernelimage import (
    KernelImageError,
    extract_vmlinux,
    find_abi,
    find_build_id,
    find_config,
    parse_setup_header,
    read_kernel_image,
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


def make_block(data: bytes) -> bytes:
    """An LZ4 block of literals only, which any encoder may write."""
    length = len(data)
    head = bytes([min(length, 15) << 4])
    if length >= 15:
        head += b"\xff" * ((length - 15) // 255) + bytes([(length - 15) % 255])
    return head + data


def pack_lz4(data: bytes) -> bytes:
    out = lz4legacy.MAGIC
    for at in range(0, len(data), lz4legacy.BLOCK_BYTES):
        block = make_block(data[at : at + lz4legacy.BLOCK_BYTES])
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
        (b"\x7fELF" + bytes(4096), "no bzImage"),
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
        extract_vmlinux(IMAGE[:length])
    except KernelImageError:
        return
    assert length >= len(IMAGE) - 32


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_lz4_literals_round_trip(data: bytes) -> None:
    assert lz4legacy.decode(pack_lz4(data), limit_bytes=1 << 20) == data


@st.composite
def lz4_sequences(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """An LZ4 block with matches, and what it has to unpack to, made side by side."""
    block = b""
    plain = b""

    def length_bytes(value: int) -> bytes:
        return b"\xff" * ((value - 15) // 255) + bytes([(value - 15) % 255]) if value >= 15 else b""

    for _ in range(draw(st.integers(0, 6))):
        literals = draw(st.binary(max_size=40))
        if not plain and not literals:
            literals = b"x"
        plain += literals
        match = draw(st.integers(4, 600))
        offset = draw(st.integers(1, min(len(plain), 65535)))
        for _ in range(match):
            plain += plain[-offset : len(plain) - offset + 1]
        token = min(len(literals), 15) << 4 | min(match - 4, 15)
        block += bytes([token]) + length_bytes(len(literals)) + literals
        block += struct.pack("<H", offset) + length_bytes(match - 4)
    last = draw(st.binary(max_size=30))
    return block + make_block(last), plain + last


@settings(deadline=None)
@given(lz4_sequences())
def test_lz4_matches_even_overlapping_ones_unpack(sequences: tuple[bytes, bytes]) -> None:
    block, plain = sequences
    assert lz4legacy.decode_block(block) == plain


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_lz4_junk_is_refused_or_bounded(data: bytes) -> None:
    try:
        assert len(lz4legacy.decode_block(data, limit_bytes=4096)) <= 4096
    except lz4legacy.Lz4Error as error:
        assert str(error)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"\x04\x22\x4d\x18", "wrong magic"),
        (lz4legacy.MAGIC + b"\x01\x00", "block length"),
        (lz4legacy.MAGIC + b"\xff\xff\xff\xff", "leads out of the frame"),
        (lz4legacy.MAGIC + b"\x03\x00\x00\x00\x10a\x00", "in the middle"),
        (lz4legacy.MAGIC + b"\x04\x00\x00\x00\x10a\x05\x00", "offset 5"),
        (lz4legacy.MAGIC + b"\x04\x00\x00\x00\x10a\x00\x00", "offset 0"),
        (lz4legacy.MAGIC + b"\x02\x00\x00\x00\x50a", "literals"),
    ],
)
def test_lz4_damage_is_named(frame: bytes, message: str) -> None:
    with pytest.raises(lz4legacy.Lz4Error, match=message):
        lz4legacy.decode(frame, limit_bytes=1 << 20)


def test_lz4_bomb_is_stopped() -> None:
    bomb = b"\x1fa\x01\x00" + b"\xff" * 100_000 + b"\x00" + b"\x00"
    frame = lz4legacy.MAGIC + struct.pack("<I", len(bomb)) + bomb
    with pytest.raises(lz4legacy.Lz4Error, match="more than"):
        lz4legacy.decode(frame, limit_bytes=1 << 30)
