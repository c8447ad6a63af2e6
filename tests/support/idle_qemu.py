# SPDX-License-Identifier: Apache-2.0
"""Hosts under update whose QEMU never runs an instruction."""

from __future__ import annotations

from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.model.plan import MachineSpec
from liveupdate.target.base import HostFiles
from liveupdate.target.machines import Registry
from liveupdate.target.qemu.host import QemuHost

SPEC = MachineSpec(accel="tcg", memory_bytes=64 << 20, vcpus=1, disks=(("vm0", 1 << 20),))


def soon(timeout_s: float = 20.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


def make_host(files: HostFiles, root: Path, tmp_path: Path, run_id: str = "t1") -> QemuHost:
    run_dir = tmp_path / run_id
    run_dir.mkdir(exist_ok=True)
    return QemuHost(
        SPEC, files, run_id=run_id, run_dir=run_dir, append="x", registry=Registry(root)
    )


def is_gone(pid: int) -> bool:
    return proc.read_start_time(pid) is None
