# SPDX-License-Identifier: Apache-2.0
"""Hosts under update whose QEMU never runs an instruction."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from msgspec.structs import replace

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.model.plan import MachineSpec
from liveupdate.target.base import Order
from liveupdate.target.machines import Registry
from liveupdate.target.qemu.host import QemuHost
from tests.support.evidence_builder import make_plan

SPEC = MachineSpec(accel="tcg", memory_bytes=64 << 20, vcpus=1, disks=(("vm0", 1 << 20),))


def soon(timeout_s: float = 20.0) -> Deadline:
    return Deadline.after(timeout_s, "the test")


def make_host(
    files: Path,
    root: Path,
    tmp_path: Path,
    run_id: str = "t1",
    *,
    kernel: str = "kernel",
    image: Path | None = None,
) -> QemuHost:
    """Make a host of which ``files`` is the directory of its images.

    :param image: of the first guest.
    """
    run_dir = tmp_path / run_id
    run_dir.mkdir(exist_ok=True)
    order = make_order(files, root, run_id, run_dir, kernel=kernel)
    if image is not None:
        guests = (replace(order.plan.guests[0], image=str(image)),)
        order = dataclasses.replace(order, plan=replace(order.plan, guests=guests))
    return QemuHost(order)


def make_order(
    files: Path,
    root: Path,
    run_id: str,
    run_dir: Path,
    *,
    kernel: str = "kernel",
    place: str = "",
) -> Order:
    """What a host is made from whose QEMU has nothing to do."""
    plan = make_plan()
    images = replace(
        plan.images,
        outgoing=replace(plan.images.outgoing, path=str(files / kernel)),
        rootfs=str(files / "root"),
        ssh_client_key=str(files / "none"),
        ssh_host_key_pub=str(files / "none"),
    )
    plan = replace(plan, machine=SPEC, images=images, boot_append="x", place=place)
    kit = files / "kit"
    return Order(plan=plan, kit=kit, run_id=run_id, run_dir=run_dir, registry=Registry(root))


def is_gone(pid: int) -> bool:
    return proc.read_start_time(pid) is None
