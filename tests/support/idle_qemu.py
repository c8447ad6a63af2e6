# SPDX-License-Identifier: Apache-2.0
"""Hosts under update whose QEMU never runs an instruction."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.model.plan import MachineSpec
from liveupdate.target.base import HostFiles, Order
from liveupdate.target.machines import Registry
from liveupdate.target.qemu.host import QemuHost
from tests.support.evidence_builder import make_plan

SPEC = MachineSpec(accel="tcg", memory_bytes=64 << 20, vcpus=1, disks=(("vm0", 1 << 20),))


def soon(timeout_s: float = 20.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


def make_host(files: HostFiles, root: Path, tmp_path: Path, run_id: str = "t1") -> QemuHost:
    run_dir = tmp_path / run_id
    run_dir.mkdir(exist_ok=True)
    return QemuHost(make_order(files, root, run_id, run_dir))


def make_order(files: HostFiles, root: Path, run_id: str, run_dir: Path, place: str = "") -> Order:
    """What a host is made from whose QEMU has nothing to do."""
    plan = replace(make_plan(), machine=SPEC, boot_append="x", place=place)
    return Order(plan=plan, files=files, run_id=run_id, run_dir=run_dir, registry=Registry(root))


def is_gone(pid: int) -> bool:
    return proc.read_start_time(pid) is None
