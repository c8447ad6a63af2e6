# SPDX-License-Identifier: Apache-2.0
"""A vCPU's state is taken apart as the kernel's headers lay it out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.formats.kvm_state import CLASSES, LayoutError, decode
from tests.support.vcpus import SIZES, make_classes


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


@pytest.mark.parametrize(
    ("register", "of", "at", "data", "value"),
    [
        ("regs.rax", "regs", 0, u64(7), 7),
        ("regs.rip", "regs", 16 * 8, u64(0xFFF0), 0xFFF0),
        ("regs.rflags", "regs", 17 * 8, u64(2), 2),
        ("sregs2.cs.base", "sregs2", 0, u64(0xFFFF0000), 0xFFFF0000),
        ("sregs2.cs.selector", "sregs2", 12, b"\x00\xf0", 0xF000),
        ("sregs2.ldt.unusable", "sregs2", 7 * 24 + 22, b"\x01", 1),
        ("sregs2.gdt.limit", "sregs2", 8 * 24 + 8, b"\xff\xff", 0xFFFF),
        ("sregs2.cr3", "sregs2", 8 * 24 + 32 + 16, u64(0x1000), 0x1000),
        ("sregs2.apic_base", "sregs2", 8 * 24 + 32 + 48, u64(0xFEE00900), 0xFEE00900),
        ("sregs2.pdptr3", "sregs2", 312, u64(9), 9),
        ("xcrs.count", "xcrs", 0, b"\x01", 1),
        ("xcrs.xcr[0].value", "xcrs", 16, u64(7), 7),
        ("events.nmi.masked", "events", 14, b"\x01", 1),
        ("events.flags", "events", 20, b"\x0d", 13),
        ("events.smi.smm", "events", 24, b"\x01", 1),
        ("events.exception.payload", "events", 56, u64(3), 3),
        ("debugregs.dr7", "debugregs", 40, u64(0x400), 0x400),
        ("mp_state.state", "mp_state", 0, b"\x03", 3),
        ("lapic.030", "lapic", 0x30, b"\x14\x00\x05\x00", 0x50014),
        ("lapic.390", "lapic", 0x390, b"\x01", 1),
        ("clock.clock", "clock", 0, u64(5), 5),
        ("tsc_offset.cycles", "tsc_offset", 0, u64(11), 11),
        ("xsave.mxcsr", "xsave", 24, b"\x80\x1f", 0x1F80),
        ("xsave.xmm1", "xsave", 160 + 16, b"\x01" + bytes(15), 1),
        ("xsave.xstate_bv", "xsave", 512, u64(7), 7),
        ("xsave.ymm15.high", "xsave", 576 + 15 * 16, bytes(15) + b"\x80", 1 << 127),
        ("xsave.0xa80", "xsave", 0xA80, u64(4), 4),
    ],
)
def test_register_is_found_where_the_headers_put_it(
    register: str, of: str, at: int, data: bytes, value: int
) -> None:
    assert decode(make_classes({(of, at): data}), {})[register] == value


def test_msrs_are_named_by_their_index() -> None:
    assert decode({}, {"c0000080": "d01"}) == {"msr.c0000080": 0xD01}


def test_every_class_is_known_and_every_byte_of_a_register_counts() -> None:
    assert set(CLASSES) == set(SIZES)
    for name in ("regs", "debugregs", "mp_state", "tsc_khz"):
        covered = 56 if name == "debugregs" else SIZES[name]
        for at in range(covered):
            assert decode({name: make_classes({(name, at): b"\x01"})[name]}, {}) != decode(
                {name: bytes(SIZES[name]).hex()}, {}
            ), (name, at)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_class_that_was_cut_is_refused(name: str) -> None:
    short = 640 if name == "xsave" else SIZES[name] - 1
    with pytest.raises(LayoutError, match=f"class '{name}' has {short} bytes"):
        decode({name: bytes(short).hex()}, {})


def test_unknown_class_is_refused() -> None:
    with pytest.raises(LayoutError, match="'sregs9'"):
        decode({"sregs9": "00"}, {})


@given(st.dictionaries(st.sampled_from(sorted(CLASSES)), st.binary(max_size=5000), max_size=3))
def test_any_bytes_are_decoded_or_refused(classes: dict[str, bytes]) -> None:
    try:
        found = decode({name: data.hex() for name, data in classes.items()}, {})
    except LayoutError:
        return
    assert all(value >= 0 for value in found.values())
