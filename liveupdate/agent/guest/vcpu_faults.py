# SPDX-License-Identifier: Apache-2.0
"""Changes one register of a vCPU behind its VMM's back, as a KVM that restores it wrongly would."""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.fault_tools import report
from ..base.names import CallError
from ..base.traced import Traced
from . import vcpu_state

if TYPE_CHECKING:
    from .guests import Guest

FAULT = "change-register"
_SCRATCH_BYTES = 1 << 14
#: class: (get, set, bytes); include/uapi/linux/kvm.h
_WHOLE = {
    "xsave": (0x9000AEA4, 0x5000AEA5, 4096),
    "lapic": (0x8400AE8E, 0x4400AE8F, 1024),
}
_GET_MSRS, _SET_MSRS = 0xC008AE88, 0x4008AE89
_GET_DEVICE_ATTR, _SET_DEVICE_ATTR = 0x4018AEE2, 0x4018AEE1
#: where the value of an MSR lies in ``struct kvm_msrs``, and that of an attribute behind its struct
_MSR_AT, _ATTR_AT = 16, 24
#: which components of XSAVE are not in their initial state
_XSTATE_BV_AT, _X87_SSE = 512, 3


def check(details: dict[str, object]) -> None:
    """Refuse what :func:`apply` could not do.

    :raises CallError: naming the argument.
    """
    kind = details.get("class")
    if kind not in (*_WHOLE, "msr", "tsc_offset"):
        raise CallError("args", f"'class' is {kind!r}")
    for name in ("at", "bit"):
        value = details.get(name)
        if not isinstance(value, int) or value < 0:
            raise CallError("args", f"'{name}' is {value!r}, must be a number")


def apply(guest: Guest) -> None:
    """Apply those of the guest's faults that change a register, and report each."""
    for fault in guest.faults:
        if fault.get("fault") == FAULT:
            kind, at, bit = str(fault["class"]), int(str(fault["at"])), int(str(fault["bit"]))
            before, after = _flip(guest.vmm.pid, kind, at, bit)
            what = f"bit {bit} of {kind} at {at:#x}"
            told = report(FAULT, what, "vCPU 0", f"{before:#x}", f"{after:#x}")
            guest.tell("struck", **told)


def _flip(pid: int, kind: str, at: int, bit: int) -> tuple[int, int]:
    """Flip one bit of the first vCPU's state; return the 8 bytes before and afterwards, as read.

    :param at: offset in the class, or the index of an MSR.
    """
    _vm, vcpus = vcpu_state.find_fds(pid)
    fd = vcpus[0]
    with Traced(pid) as vmm:
        area = vmm.scratch(_SCRATCH_BYTES)
        if kind in _WHOLE:
            get, put, size = _WHOLE[kind]
            place = area + min(at, size - 8)
        elif kind == "msr":
            get, put, place = _GET_MSRS, _SET_MSRS, area + _MSR_AT
            vmm.write(area, vcpu_state.pack_msrs([at]))
        else:
            get, put, place = _GET_DEVICE_ATTR, _SET_DEVICE_ATTR, area + _ATTR_AT
            vmm.write(area, vcpu_state.pack_tsc_offset(place))
        vmm.ioctl(fd, get, area)
        before = int.from_bytes(vmm.read(place, 8), "little")
        vmm.write(place, (before ^ 1 << bit).to_bytes(8, "little"))
        if kind == "xsave":
            # a component that is marked as unused would be set to its initial state
            (used,) = vmm.read(area + _XSTATE_BV_AT, 1)
            vmm.write(area + _XSTATE_BV_AT, bytes([used | _X87_SSE]))
        vmm.ioctl(fd, put, area)
        vmm.ioctl(fd, get, area)
        return before, int.from_bytes(vmm.read(place, 8), "little")
