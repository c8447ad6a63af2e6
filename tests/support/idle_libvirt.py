# SPDX-License-Identifier: Apache-2.0
"""The libvirt target's host, whose QEMU never runs an instruction."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from liveupdate.core import proc
from liveupdate.target.base import HostFiles
from liveupdate.target.libvirt.host import LibvirtHost
from liveupdate.target.machines import Registry
from tests.support import libvirtd
from tests.support.idle_qemu import SPEC


def make_host(
    daemon: libvirtd.Daemon, files: HostFiles, root: Path, tmp_path: Path, run_id: str = "t1"
) -> LibvirtHost:
    run_dir = tmp_path / run_id
    run_dir.mkdir(exist_ok=True)
    return LibvirtHost(
        structs.replace(SPEC, qemu=proc.find_program("qemu-system-x86_64") or ""),
        files,
        uri=daemon.uri,
        run_id=run_id,
        run_dir=run_dir,
        append="x",
        registry=Registry(root),
    )
