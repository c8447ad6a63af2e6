# SPDX-License-Identifier: Apache-2.0
"""Where facts come from: tool, machine, accelerator really in use, images, command lines."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import liveupdate
from liveupdate.core import paths, proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import LiveUpdateError
from liveupdate.model.evidence import Provenance
from liveupdate.run.testbed import Testbed


def describe(bed: Testbed, *, argv: tuple[str, ...], accel_reason: str) -> Provenance:
    """Describe a testbed that is up."""
    images, machine = bed.plan.images, bed.machine
    return Provenance(
        tool_version=liveupdate.__version__,
        run_id=bed.record.run_id,
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=argv,
        accel=bed.plan.machine.accel,
        accel_reason=accel_reason,
        kvm_enabled=None if machine is None else machine.kvm_enabled,
        start=bed.start,
        qemu_version="" if machine is None else machine.qemu_version,
        qemu_argv=() if machine is None else machine.argv,
        guest_qemu_version=bed.guest_qemu_version,
        control_host=control_host(),
        images={
            "outgoing": images.outgoing.sha256,
            "incoming": images.incoming.sha256,
            "rootfs": images.rootfs_sha256,
        },
        source=source(),
    )


def control_host() -> Mapping[str, str]:
    """Describe the machine the tool runs on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": models[0] if models else "unknown",
        "cpus": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
    }


def source() -> Mapping[str, str]:
    """Describe the checkout; empty outside of one, or where there is no git."""
    try:
        root = paths.checkout_root()
        done = proc.run(
            ("git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"),
            deadline=Deadline.after(5.0, "git describe"),
        )
    except (LiveUpdateError, OSError):
        return {}
    return {"git": done.stdout.strip()}
