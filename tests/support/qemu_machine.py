# SPDX-License-Identifier: Apache-2.0
"""A machine and the paths of its files, and QEMU's command line for it."""

from __future__ import annotations

from pathlib import Path

from liveupdate.model.plan import MachineSpec
from liveupdate.target.qemu.argv import DiskFile, MachinePaths, build_argv

SPEC = MachineSpec(accel="tcg", memory_bytes=2 << 30, vcpus=2, disks=())


PATHS = MachinePaths(
    kernel=Path("/k/bzImage"),
    rootfs=Path("/k/root.ext4"),
    kit=Path("/k/kit.ext4"),
    disks=(
        DiskFile(serial="vm0", path=Path("/r/vm0.raw")),
        DiskFile(serial="vm1", path=Path("/r/vm1.qcow2"), format="qcow2"),
    ),
    runtime_dir=Path("/run/lu/x"),
    ram_fd=7,
)


def argv(spec: MachineSpec = SPEC, paths: MachinePaths = PATHS, **more: bool) -> tuple[str, ...]:
    return build_argv(spec, paths, run_id="ab12", append="console=ttyS0 root=/dev/vda", **more)
