# SPDX-License-Identifier: Apache-2.0
"""Faults of a vCPU's registers: as if KVM restored one wrongly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liveupdate.faults.base import Fault, Later, Moment, Part, ask_agent, fails, fault

if TYPE_CHECKING:
    from liveupdate.run.testbed import Testbed

#: include/uapi/linux/kvm.h and arch/x86/include/asm/msr-index.h: bytes from the beginning of the
#: class, or the index of an MSR. None of them stops the guest.
_XMM0_AT = 160
_MSR_TSC_AUX = 0xC0000103
_LAPIC_LVTTHMR = 0x330
#: of the TSC offset: half a minute at 2 GHz
_TSC_BIT = 36


def _change(name: str, what: str, kind: str, at: int, bit: int) -> Fault:
    """Make a fault that flips one bit of the first vCPU's state on the incoming kernel."""

    @fault(
        name,
        what,
        at=Moment.BROWNOUT,
        needs={Part.REGISTERS},
        expect=fails("guest.vcpu-state"),
    )
    def strike(bed: Testbed) -> Later:
        guest = bed.first_guest.spec.name
        details: dict[str, object] = {"class": kind, "at": at, "bit": bit}
        return ask_agent(bed, "change-register", guest=guest, **details)

    return strike


flip_xmm = _change(
    "flip-xmm", "one bit of a vCPU's XMM0 changes over the kexec", "xsave", _XMM0_AT, 5
)
flip_msr = _change(
    "flip-msr", "one bit of a vCPU's MSR TSC_AUX changes over the kexec", "msr", _MSR_TSC_AUX, 3
)
flip_lapic = _change(
    "flip-lapic",
    "one bit of a vCPU's local APIC (thermal LVT) changes over the kexec",
    "lapic",
    _LAPIC_LVTTHMR,
    5,
)
shift_tsc = _change(
    "shift-tsc", "a vCPU's TSC is half a minute off after the kexec", "tsc_offset", 0, _TSC_BIT
)
