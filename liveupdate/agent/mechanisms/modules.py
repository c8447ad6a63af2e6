# SPDX-License-Identifier: Apache-2.0
"""Kernel modules of this repository, on the kit for each of the two kernels."""

from __future__ import annotations

import os

from ..base.fast_stdlib import call_libc
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
    release = os.uname().release
    path = f"{directory}/{release}/{name}.ko"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MechanismError(f"the kit has no module '{name}' for kernel {release}") from None
    try:
        call_libc("syscall", path, _FINIT_MODULE, fd, parameters, 0)
    except FileExistsError:
        return False
    except OSError as err:
        why = f"{err.strerror}{kernel_said(f'{name}: ', most=1)}"
        raise MechanismError(f"the kernel refuses module '{name}': {why}") from None
    finally:
        os.close(fd)
    return True
