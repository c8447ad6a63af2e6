# SPDX-License-Identifier: Apache-2.0
"""Carries a guest's clock over the time in which it did not run.

A VMM stores kvmclock when it stops the vCPUs, and sets the new VM's to it when they run again, so a
guest's clocks stand still meanwhile. Here the VMM's own KVM_SET_CLOCK is caught on its way into the
kernel, before a vCPU runs, and gets the time that has passed added. The TSC tells that time: it
goes on through a kexec, while the host's clocks begin anew.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
import time

from ..base.fast_stdlib import TYPE_CHECKING, Task
from ..base.names import SpecError
from ..base.page_pins import address_of
from ..base.traced import Traced
from .vcpu_state import find_fds

if TYPE_CHECKING:
    from .vmm_qemu import QemuVmm

_GET_CLOCK, SET_CLOCK = 0x8030AE7C, 0x4030AE7B
#: struct kvm_clock_data (include/uapi/linux/kvm.h): clock, flags, padding, realtime, host_tsc
_CLOCK = struct.Struct("<QIIQQ16x")
_REALTIME, _HOST_TSC = 4, 8
#: rdtsc; shl $32,%rdx; or %rdx,%rax; ret
_RDTSC = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"
_U64_MAX = (1 << 64) - 1
#: no update takes longer
_FAR_NS = 3600 * 10**9


class SavedClock:
    """A guest's kvmclock (ns) at a value of its host's TSC, and that TSC's frequency (kHz)."""

    def __init__(self, raw: object) -> None:
        """:raises SpecError: this is no clock that :meth:`to_json` wrote."""
        fields = raw if isinstance(raw, dict) else {}
        values = [fields.get(name) for name in ("clock_ns", "tsc", "khz")]
        if not all(type(value) is int and 0 <= value <= _U64_MAX for value in values):
            raise SpecError(f"'clock' is {raw!r}")
        self.clock_ns, self.tsc, self.khz = (int(str(value)) for value in values)
        if not self.khz:
            raise SpecError("'clock' has a TSC that stands still")

    def to_json(self) -> dict[str, object]:
        """Return the fields, for the manifest."""
        return vars(self)

    def at(self, tsc: int) -> int:
        """Return what the clock would have shown at another value of the TSC, ns."""
        return self.clock_ns + (tsc - self.tsc) * 1_000_000 // self.khz


def read_tsc() -> int:
    """Read this CPU's TSC."""
    with mmap.mmap(
        -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ) as code:
        code.write(_RDTSC)
        return int(ctypes.CFUNCTYPE(ctypes.c_uint64)(address_of(code))())


def read_clock(pid: int, khz: int | None) -> SavedClock:
    """Read a stopped guest's kvmclock.

    :param khz: of the host's TSC.
    :raises OSError: it cannot be read; :raises SpecError: the frequency is not known.
    """
    vm, _vcpus = find_fds(pid)
    with Traced(pid) as vmm:
        area = vmm.scratch(mmap.PAGESIZE)
        tsc = read_tsc()
        vmm.ioctl(vm, _GET_CLOCK, area)
        clock_ns, flags, _, _, host_tsc = _CLOCK.unpack(vmm.read(area, _CLOCK.size))
    if flags & _HOST_TSC:
        tsc = host_tsc
    return SavedClock({"clock_ns": clock_ns, "tsc": tsc, "khz": khz or 0})


def continue_with(vmm: QemuVmm, saved: SavedClock) -> int:
    """Let the vCPUs run, with a clock that has gone on; return by how much it was ahead, ns.

    :raises OSError: the VMM cannot be traced, or did not set its clock; the vCPUs may not run yet.
    """
    with Traced(vmm.pid) as traced:
        going = Task(vmm.cont)
        try:
            address = traced.until_ioctl(SET_CLOCK)
            clock_ns, flags, padding, _, _ = _CLOCK.unpack(traced.read(address, _CLOCK.size))
            tsc, realtime = read_tsc(), time.clock_gettime_ns(time.CLOCK_REALTIME)
            carried = saved.at(tsc)
            if not clock_ns <= carried <= clock_ns + _FAR_NS:
                raise OSError(errno.ERANGE, f"the TSC says {carried} ns, the VMM {clock_ns} ns")
            # KVM adds what passes between the two lines above and its own look at the clock
            told = _CLOCK.pack(carried, flags | _REALTIME, padding, realtime, 0)
            traced.write(address, told)
        finally:
            try:
                traced.detach()
            finally:
                going.join()
    return carried - int(clock_ns)
