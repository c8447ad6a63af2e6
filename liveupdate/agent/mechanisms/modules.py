# SPDX-License-Identifier: Apache-2.0
"""Kernel modules of this repository, on the kit for each of the two kernels."""

from __future__ import annotations

import errno
import os

from ..base.host import kernel_said
from .base import MechanismError

DIRECTORY = "/kit/modules"
#: arch/x86/entry/syscalls/syscall_64.tbl
_FINIT_MODULE = 313


def load(name: str, parameters: str = "", directory: str = DIRECTORY) -> bool:
    """Load a module of the kernel that runs; return False when it is loaded already.

    No insmod(8): a process costs more time than the module.

    :raises MechanismError: there is none for this kernel, or the kernel refuses it.
    """
    import ctypes

    release = os.uname().release
    path = f"{directory}/{release}/{name}.ko"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MechanismError(f"the kit has no module '{name}' for kernel {release}") from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(_FINIT_MODULE, fd, parameters.encode(), 0):
            code = ctypes.get_errno()
            if code != errno.EEXIST:
                why = os.strerror(code) + kernel_said(f"{name}: ", most=1)
                raise MechanismError(f"the kernel refuses module '{name}': {why}")
            return False
    finally:
        os.close(fd)
    return True
