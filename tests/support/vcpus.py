# SPDX-License-Identifier: Apache-2.0
"""States of vCPUs as KVM gives them: zeros of the right length, but for what a test sets."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from liveupdate.model.vcpu_state import VcpuState

#: bytes of each class, include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h
SIZES = {
    "regs": 144, "sregs2": 320, "xcrs": 392, "events": 64, "debugregs": 128, "mp_state": 4,
    "lapic": 1024, "clock": 48, "tsc_khz": 8, "tsc_offset": 8, "xsave": 4096,
}  # fmt: skip
KHZ = 2_000_000
TSC = 5_000_000_000
TSC_AUX = "c0000103"


def make_classes(changes: Mapping[tuple[str, int], bytes] | None = None) -> dict[str, str]:
    """:param changes: (class, offset) to bytes."""
    classes = {name: bytearray(size) for name, size in SIZES.items()}
    classes["tsc_khz"][:] = struct.pack("<Q", KHZ)
    for (name, at), data in (changes or {}).items():
        classes[name][at : at + len(data)] = data
    return {name: bytes(data).hex() for name, data in classes.items()}


def make_vcpu(
    moment: str,
    at_ns: int,
    vcpu: int = 0,
    *,
    changes: Mapping[tuple[str, int], bytes] | None = None,
    msrs: Mapping[str, int] | None = None,
    refused: Mapping[str, str] | None = None,
) -> VcpuState:
    values = {"10": TSC, TSC_AUX: vcpu, **(msrs or {})}
    assert moment in ("before", "after")
    return VcpuState(
        at_ns=at_ns,
        moment="before" if moment == "before" else "after",
        vcpu=vcpu,
        classes=make_classes(changes),
        msrs={index: f"{value:x}" for index, value in values.items()},
        refused=dict(refused or {}),
    )
