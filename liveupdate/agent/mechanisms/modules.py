# SPDX-License-Identifier: Apache-2.0
"""Kernel modules of this repository, on the kit for each of the two kernels."""

from __future__ import annotations

import errno
import os

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
                raise MechanismError(
                    f"the kernel refuses module '{name}': {os.strerror(code)}{_said(name)}"
                )
            return False
    finally:
        os.close(fd)
    return True


def _said(name: str) -> str:
    """Return what a module said last: errno alone does not tell what is wrong with a region."""
    from ..base.host import last_messages

    said = last_messages(f"{name}: ", most=1)
    return f" ({said})" if said else ""
