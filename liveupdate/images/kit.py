# SPDX-License-Identifier: Apache-2.0
"""The kit: a small read-only disk with the agent and all kernels, mounted at ``/kit``.

Layout: ``agent/`` (run as ``python3 -I -S /kit/agent/__main__.py``), ``kernel-a`` (outgoing),
``kernel-b`` (incoming), ``guest-kernel``, ``guest-initrd``, ``modules/RELEASE/NAME.ko`` for each of
the two kernels that has any, ``config.json``. A disk of its own, so that another
kernel or agent does not mean another root file system. Must not know machines.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from liveupdate.core.deadline import Deadline
from liveupdate.core.units import MIB
from liveupdate.images import ext4
from liveupdate.images.cache import Cache, file_sha256, tree_sha256
from liveupdate.images.tool import run_tool
from liveupdate.model.plan import ImageSet

FORMAT = 1
IMAGE = "kit.ext4"
AGENT_DIR = Path(__file__).parent.parent / "agent"


def kit_inputs(images: ImageSet) -> dict[str, str]:
    """Return everything that decides the kit."""
    return {
        "name": "kit",
        "format": str(FORMAT),
        "agent": tree_sha256(AGENT_DIR, "*.py"),
        "kernel-a": images.outgoing.sha256,
        "kernel-b": images.incoming.sha256,
        "guest-kernel": file_sha256(Path(images.guest_kernel)),
        "guest-initrd": file_sha256(Path(images.guest_initrd)),
        "rootfs": images.rootfs_sha256,
        "modules": " ".join(tree_sha256(path, "*.ko") for path in module_dirs(images).values()),
    }


def module_dirs(images: ImageSet) -> dict[str, Path]:
    """Return the directories of the kernel modules, by the release of their kernel."""
    kernels = (images.outgoing, images.incoming)
    return {kernel.release: Path(kernel.modules) for kernel in kernels if kernel.modules}


def build_kit(cache: Cache, images: ImageSet, python: Path | None) -> Path:
    """Return the kit's image for a set of images; takes well under a second.

    :param python: the rootfs's interpreter as kept by :mod:`liveupdate.images.rootfs`; None: the
        agent has no bytecode and starts more slowly.
    """
    inputs = kit_inputs(images)

    def builder(scratch: Path) -> None:
        tree = scratch / "tree"
        shutil.copytree(
            AGENT_DIR, tree / "agent", ignore=shutil.ignore_patterns("__pycache__", "*.typed")
        )
        if python is not None:
            argv, env = compile_argv(tree / "agent", python), {"PYTHONHOME": str(python)}
            deadline = Deadline.after(60.0, "compilation of the agent")
            run_tool(argv, deadline, "the agent does not compile", env=env, tree=False)
        for name, origin in (
            ("kernel-a", images.outgoing.path),
            ("kernel-b", images.incoming.path),
            ("guest-kernel", images.guest_kernel),
            ("guest-initrd", images.guest_initrd),
        ):
            shutil.copyfile(origin, tree / name)
        for release, modules in module_dirs(images).items():
            (tree / "modules" / release).mkdir(parents=True)
            for module in sorted(modules.glob("*.ko")):
                shutil.copyfile(module, tree / "modules" / release / module.name)
        (tree / "config.json").write_text(json.dumps({"format": FORMAT, "inputs": inputs}))
        for path in (*tree.rglob("*"), tree):
            # mke2fs copies times: the same input must give the same disk
            os.utime(path, (ext4.FIXED_TIME_S, ext4.FIXED_TIME_S))
        ext4.make_image(tree, scratch / IMAGE, "liveupdate-kit", spare_bytes=1 * MIB)
        shutil.rmtree(tree)

    entry = cache.build("kit", inputs, builder, again=lambda: kit_inputs(images))
    return entry / IMAGE


def compile_argv(agent: Path, python: Path) -> tuple[str, ...]:
    """Return the command that compiles the agent with the rootfs's own interpreter and C library.

    The bytecode is never checked against the source: a stat(2) per module would be time of the
    blackout.
    """
    return (
        str(python / "bin/ld-linux-x86-64.so.2"), "--library-path", str(python / "bin"),
        # Not -I, which would ignore PYTHONHOME.
        str(python / "bin/python3"), "-S", "-s", "-m", "compileall", "-q",
        "--invalidation-mode", "unchecked-hash", "-s", str(agent.parent), "-p", "/kit", str(agent),
    )  # fmt: skip
