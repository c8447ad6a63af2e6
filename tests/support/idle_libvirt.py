# SPDX-License-Identifier: Apache-2.0
"""The libvirt target's host, whose QEMU never runs an instruction."""

from __future__ import annotations

from pathlib import Path

from liveupdate.target.libvirt.host import LibvirtHost
from tests.support import libvirtd
from tests.support.idle_qemu import make_order


def make_host(
    daemon: libvirtd.Daemon,
    files: Path,
    root: Path,
    tmp_path: Path,
    run_id: str = "t1",
    *,
    kernel: str = "kernel",
) -> LibvirtHost:
    run_dir = tmp_path / run_id
    run_dir.mkdir(exist_ok=True)
    return LibvirtHost(make_order(files, root, run_id, run_dir, kernel=kernel, place=daemon.uri))
