# SPDX-License-Identifier: Apache-2.0
"""System calls executed inside another process, by ptrace(2). For x86-64.

KVM answers only the address space that made a VM (``kvm->mm != current->mm`` is EIO in
virt/kvm/kvm_main.c), so a descriptor taken by pidfd_getfd(2) is of no use: what KVM knows of a
guest can be asked by its VMM alone. One thread of it is stopped, made to execute one ``syscall``
instruction that it has anyway, and set back to where it was. A system call that it was waiting in
is restarted by the kernel, as after a signal without a handler.

Attach, calls and detach belong to one thread of the agent, which is what ptrace(2) demands.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

_SEIZE, _INTERRUPT, _GETREGS, _SETREGS = 0x4206, 0x4207, 12, 13
_SINGLESTEP, _DETACH, _SYSCALL_STOPS = 9, 17, 24
#: a stop at a system call is told from a SIGTRAP by this bit
_TRACESYSGOOD, _GOOD = 1, 0x80
#: what RAX is when a system call is entered
_NOT_YET = (1 << 64) - errno.ENOSYS
_WALL = 0x40000000
_SYS_MMAP, _SYS_MUNMAP, _SYS_IOCTL = 9, 11, 16
_PROT_RW, _PRIVATE_ANONYMOUS = 3, 0x22
_SYSCALL = b"\x0f\x05"
#: Linux returns errors as the last page of addresses
_MAX_ERRNO = 4095
#: all calls together; a thread in the kernel stops when it leaves it
STOP_S = 10.0
#: to let it go, which must not fail: a thread that stays stopped is a VMM that hangs
LEAVE_S = 30.0
_ENDED = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)
_POLL_S = 0.0005
#: a system call takes less time than a sleep, and is part of a blackout
_LOOKS = 200
_SIGTRAP = 5
#: signals that may arrive before one instruction
_STEPS = 16
_WORD = (1 << 64) - 1

_NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs",
    "gs",
)  # fmt: skip


class _Regs(ctypes.Structure):
    """``struct user_regs_struct``, arch/x86/include/asm/user_64.h."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _NAMES)


class Traced:
    """A thread of another process, stopped from enter to exit.

    :raises OSError: ptrace(2) is refused, the process has ended, or it does not stop in time.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = (
            ctypes.c_long,
            ctypes.c_long,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self._libc.ptrace.restype = ctypes.c_long
        self._saved = _Regs()
        self._at = 0
        self._memory = -1
        self._scratch = (0, 0)
        self._signals: list[int] = []
        #: it is attached, and not stopped
        self._runs = False
        self._until = 0.0

    def __enter__(self) -> Traced:
        self._memory = os.open(f"/proc/{self._pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._resume(_SEIZE, _TRACESYSGOOD)
        except BaseException:
            self._close()
            raise
        self._until = time.monotonic() + STOP_S
        try:
            self._stop()
            self._ptrace(_GETREGS, ctypes.byref(self._saved))
            self._at = self._find_syscall()
        except BaseException:
            self.detach()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Let it go on where it was; what was mapped is unmapped. Idempotent.

        :raises TimeoutError: it hangs in the kernel; it is let go when this thread ends.
        """
        if self._memory < 0:
            return
        self._until = time.monotonic() + LEAVE_S
        try:
            if self._runs:  # only a stopped thread can be let go
                self._stop()
            address, size = self._scratch
            if address and self._at:
                self.syscall(_SYS_MUNMAP, address, size)
            if self._at:
                self._ptrace(_SETREGS, ctypes.byref(self._saved))
            self._ptrace(_DETACH)
            for number in self._signals:
                os.kill(self._pid, number)
        except ProcessLookupError:
            if os.path.exists(f"/proc/{self._pid}/mem") and not self._has_ended():
                raise
        finally:
            self._close()

    def _close(self) -> None:
        memory, self._memory = self._memory, -1
        if memory >= 0:
            os.close(memory)

    # --- what it is made to do

    def syscall(self, number: int, *args: int) -> int:
        """Execute one system call with up to six arguments; return what it returns.

        :raises OSError: it failed there.
        """
        regs = _Regs()
        ctypes.pointer(regs)[0] = self._saved
        # -1: not in a system call, so nothing is restarted before the instruction
        regs.rip, regs.rax, regs.orig_rax = self._at, number, _WORD
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), args, strict=False):
            setattr(regs, name, value & _WORD)
        self._ptrace(_SETREGS, ctypes.byref(regs))
        for _ in range(_STEPS):
            self._resume(_SINGLESTEP)
            self._keep_signal(self._wait())
            self._ptrace(_GETREGS, ctypes.byref(regs))
            if regs.rip == self._at + len(_SYSCALL):
                break
        else:
            raise OSError(errno.EIO, f"process {self._pid} did not execute its system call")
        if regs.rax > _WORD - _MAX_ERRNO:
            code = _WORD - regs.rax + 1
            raise OSError(code, os.strerror(code))
        return int(regs.rax)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """Execute ioctl(2) on a descriptor of that process."""
        return self.syscall(_SYS_IOCTL, fd, request, argument)

    def until_ioctl(self, request: int) -> int:
        """Let it run until it is about to execute this ioctl(2); return the ioctl's argument.

        It does so when it is let go; no other system call can be executed in it any more.

        :raises TimeoutError: it did not come to it.
        """
        self._at = 0  # it is not set back
        regs, signal = _Regs(), 0
        while time.monotonic() < self._until:
            self._resume(_SYSCALL_STOPS, signal)
            status = self._wait()
            stop = os.WSTOPSIG(status)
            signal = 0 if status >> 16 or stop == _SIGTRAP | _GOOD else stop
            if stop != _SIGTRAP | _GOOD:
                continue
            self._ptrace(_GETREGS, ctypes.byref(regs))
            wanted = (_SYS_IOCTL, request, _NOT_YET)
            if (regs.orig_rax, regs.rsi & 0xFFFFFFFF, regs.rax) == wanted:
                return int(regs.rdx)
        said = f"process {self._pid} did not come to ioctl {request:#x} in time"
        raise TimeoutError(errno.ETIMEDOUT, said)

    def scratch(self, size: int) -> int:
        """Map fresh memory in that process until exit, once; return its address."""
        if not self._scratch[0]:
            no_fd = -1
            address = self.syscall(_SYS_MMAP, 0, size, _PROT_RW, _PRIVATE_ANONYMOUS, no_fd, 0)
            self._scratch = (address, size)
        return self._scratch[0]

    def read(self, address: int, size: int) -> bytes:
        """Read its memory."""
        data = os.pread(self._memory, size, address)
        if len(data) != size:
            raise OSError(errno.EIO, f"{len(data)} of {size} bytes read at {address:#x}")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write its memory."""
        if os.pwrite(self._memory, data, address) != len(data):
            raise OSError(errno.EIO, f"{len(data)} bytes not written at {address:#x}")

    # --- ptrace

    def _find_syscall(self) -> int:
        """Return the address of a ``syscall`` instruction: the one that it is in, or any."""
        before = int(self._saved.rip) - len(_SYSCALL)
        if os.pread(self._memory, len(_SYSCALL), before) == _SYSCALL:
            return before
        with open(f"/proc/{self._pid}/maps") as maps:
            for line in maps:
                if "[vdso]" in line or "/libc" in line:
                    area, flags = line.split(maxsplit=2)[:2]
                    first, last = (int(text, 16) for text in area.split("-"))
                    if "x" in flags:
                        at = os.pread(self._memory, last - first, first).find(_SYSCALL)
                        if at >= 0:
                            return first + at
        raise OSError(errno.ENOENT, f"process {self._pid} has no syscall instruction")

    def _ptrace(self, request: int, data: object = None) -> None:
        if self._libc.ptrace(request, self._pid, None, data) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"ptrace({request:#x}, {self._pid}): {os.strerror(code)}")

    def _keep_signal(self, status: int) -> None:
        """Keep a signal that arrived in between, for the end."""
        number = os.WSTOPSIG(status)
        if status >> 16 == 0 and number not in (_SIGTRAP, _SIGTRAP | _GOOD):
            self._signals.append(number)

    def _resume(self, request: int, data: object = None) -> None:
        self._ptrace(request, data)
        self._runs = True

    def _stop(self) -> None:
        self._ptrace(_INTERRUPT)
        self._keep_signal(self._wait())

    def _has_ended(self) -> bool:
        """Say whether it has ended; its exit status stays for its parent to reap."""
        how = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            found = os.waitid(os.P_PID, self._pid, how)
        except ChildProcessError:
            return True
        return found is not None and found.si_code in _ENDED

    def _wait(self) -> int:
        """Wait until it has stopped; return its status as of waitpid(2)."""
        looks = 0
        while True:
            if self._has_ended():
                raise ProcessLookupError(errno.ESRCH, f"process {self._pid} has ended")
            pid, status = os.waitpid(self._pid, _WALL | os.WNOHANG | os.WUNTRACED)
            if pid:
                self._runs = False
                return status
            if time.monotonic() > self._until:
                said = f"process {self._pid} did not stop in time"
                raise TimeoutError(errno.ETIMEDOUT, said)
            looks += 1
            if looks > _LOOKS:
                time.sleep(_POLL_S)
