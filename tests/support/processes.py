# SPDX-License-Identifier: Apache-2.0
"""Processes that a test has not started itself."""

from __future__ import annotations

from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie nobody has reaped yet does not.

    Whose parent has ended is left to PID 1, which may take its time, in containers above all.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
