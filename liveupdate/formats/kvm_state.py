# SPDX-License-Identifier: Apache-2.0
"""The structures in which KVM gives a vCPU's state, taken apart into named registers. Pure.

Source: arch/x86/include/uapi/asm/kvm.h and include/uapi/linux/kvm.h of Linux 7.3, little-endian;
XSAVE: Intel SDM volume 1, 13.4 (standard format); LAPIC: volume 3, table 12-1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

#: a register's name, and its bytes; "" is padding
_Layout = tuple[tuple[str, int], ...]


def _words(size: int, names: Iterable[str]) -> _Layout:
    return tuple((name, size) for name in names)


_GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
)  # fmt: skip
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_FLAGS = ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")
#: struct kvm_segment
_SEGMENT: _Layout = (("base", 8), ("limit", 4), ("selector", 2), *_words(1, _FLAGS), ("", 1))
#: struct kvm_dtable
_TABLE: _Layout = (("base", 8), ("limit", 2), ("", 6))


def _inside(names: Iterable[str], parts: _Layout) -> _Layout:
    return tuple((f"{name}.{part}" if part else "", size) for name in names for part, size in parts)


_LAYOUTS: Mapping[str, _Layout] = {
    "regs": _words(8, _GENERAL),
    "sregs2": (
        *_inside(_SEGMENTS, _SEGMENT),
        *_inside(("gdt", "idt"), _TABLE),
        *_words(8, ["cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "flags"]),
        *_words(8, (f"pdptr{number}" for number in range(4))),
    ),
    # up to 16 of them; x86 has one
    "xcrs": (
        *_words(4, ("count", "flags")),
        *_inside((f"xcr[{n}]" for n in range(16)), (("number", 4), ("", 4), ("value", 8))),
        ("", 128),
    ),
    "events": (
        *_words(1, (f"exception.{part}" for part in ("injected", "nr", "has_error", "pending"))),
        ("exception.error", 4),
        *_words(1, (f"interrupt.{part}" for part in ("injected", "nr", "soft", "shadow"))),
        *_words(1, (f"nmi.{part}" for part in ("injected", "pending", "masked"))),
        ("", 1),
        ("sipi_vector", 4),
        ("flags", 4),
        *_words(1, (f"smi.{part}" for part in ("smm", "pending", "inside_nmi", "latched_init"))),
        ("triple_fault", 1),
        ("", 26),
        ("exception.has_payload", 1),
        ("exception.payload", 8),
    ),
    "debugregs": (
        *_words(8, ["db0", "db1", "db2", "db3", "dr6", "dr7", "flags"]),
        ("", 72),
    ),
    "mp_state": (("state", 4),),
    "lapic": tuple(part for at in range(0, 1024, 16) for part in ((f"{at:03x}", 4), ("", 12))),
    "clock": (
        ("clock", 8),
        *_words(4, ("flags", "")),
        *_words(8, ("realtime", "host_tsc")),
        ("", 16),
    ),
    "tsc_khz": (("khz", 8),),
    "tsc_offset": (("cycles", 8),),
}
#: event: what describes it
_EVENTS = {"exception": ("nr", "has_error", "error"), "interrupt": ("nr", "soft")}

_FXSAVE: _Layout = (
    *_words(2, ("fcw", "fsw", "ftw", "fop")),
    *_words(8, ("fip", "fdp")),
    *_words(4, ("mxcsr", "mxcsr_mask")),
    *_words(16, (f"st{number}" for number in range(8))),
    *_words(16, (f"xmm{number}" for number in range(16))),
    ("", 96),
    *_words(8, ("xstate_bv", "xcomp_bv")),
    ("", 48),
    *_words(16, (f"ymm{number}.high" for number in range(16))),
)

_SIZES = {name: sum(size for _, size in layout) for name, layout in _LAYOUTS.items()}
#: class to its bytes, of XSAVE the fewest; KVM tells all of them of a vCPU whose LAPIC is KVM's
CLASSES: Mapping[str, int] = {**_SIZES, "xsave": sum(size for _, size in _FXSAVE)}


class LayoutError(ValueError):
    """A class of state that has another length than its structure."""


def decode(classes: Mapping[str, str], msrs: Mapping[str, str]) -> dict[str, int]:
    """Take the state of a vCPU apart.

    :param classes: hexadecimal bytes of each class, as KVM's ioctl gives it.
    :param msrs: index to value, in hexadecimal.
    :returns: register, such as ``regs.rip``, ``lapic.380`` or ``msr.c0000080``, to value; what says
        something of an event only is 0 when there is none, and so are flags of an unusable segment.
    :raises LayoutError: a class is too short, or unknown.
    """
    found: dict[str, int] = {}
    for name, text in classes.items():
        data = bytes.fromhex(text)
        fields = _decode_xsave(data) if name == "xsave" else _take(name, data, _layout(name))
        found.update((f"{name}.{field}", value) for field, value in fields)
    found.update((f"msr.{index}", int(value, 16)) for index, value in msrs.items())
    return found | {name: 0 for name in _meaningless(found)}


def _meaningless(found: Mapping[str, int]) -> Iterator[str]:
    """Name what describes an exception or interrupt that is not there, or an unusable segment.

    KVM on Intel restores the type of such a segment with another bit (``__vmx_set_segment()``).
    """
    for segment in _SEGMENTS:
        if found.get(f"sregs2.{segment}.unusable"):
            yield from (f"sregs2.{segment}.{flag}" for flag in _FLAGS if flag != "unusable")
    for event, parts in _EVENTS.items():
        if not any(found.get(f"events.{event}.{flag}") for flag in ("injected", "pending")):
            yield from (f"events.{event}.{part}" for part in parts if "events.flags" in found)


def _layout(name: str) -> _Layout:
    layout = _LAYOUTS.get(name)
    if layout is None:
        raise LayoutError(f"class '{name}' of a vCPU's state is not known")
    return layout


def _take(name: str, data: bytes, layout: _Layout) -> Iterator[tuple[str, int]]:
    if len(data) < CLASSES[name]:
        said = f"class '{name}' has {len(data)} bytes, its structure {CLASSES[name]}"
        raise LayoutError(said)
    at = 0
    for field, size in layout:
        if field:
            yield field, int.from_bytes(data[at : at + size], "little")
        at += size


def _decode_xsave(data: bytes) -> Iterator[tuple[str, int]]:
    """Take XSAVE apart; what lies behind AVX as words of 8 bytes that are not zero."""
    yield from _take("xsave", data, _FXSAVE)
    for at in range(CLASSES["xsave"], len(data) - 7, 8):
        (word,) = struct.unpack_from("<Q", data, at)
        if word:
            yield f"{at:#x}", word
