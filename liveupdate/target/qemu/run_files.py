# SPDX-License-Identifier: Apache-2.0
"""Files of a machine in its run directory: disks that it writes to, and QEMU's log."""

from __future__ import annotations

import json
import os
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.target.qemu.argv import DiskFile

_QEMU_IMG_S = 10.0
_TAIL_BYTES = 8192
_TAIL_LINES = 10


def make_disk(directory: Path, serial: str, size_bytes: int, image: Path | None = None) -> DiskFile:
    """Make a disk that the machine may write to.

    :param image: the user's, which is not changed: the guest writes into an overlay.
    :raises CommandFailed, DeadlineExceeded: qemu-img cannot use the image.
    """
    if image is None:
        path = directory / f"{serial}.raw"
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return DiskFile(serial=serial, path=path)
    path = directory / f"{serial}.qcow2"
    deadline = Deadline.after(_QEMU_IMG_S, "qemu-img")
    info = json.loads(
        proc.run(("qemu-img", "info", "--output=json", image), deadline=deadline).stdout
    )
    # fmt: off
    proc.run(
        ("qemu-img", "create", "-q", "-f", "qcow2",
         "-b", image.absolute(), "-F", str(info["format"]), path),
        deadline=deadline,
    )
    # fmt: on
    return DiskFile(serial=serial, path=path, format="qcow2")


def last_words(log: Path) -> str:
    """Return QEMU's last output, without the lines that it always prints; "" without a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if ": warning: TCG doesn't support" not in line]
    return "\n".join(lines[-_TAIL_LINES:]).strip()
