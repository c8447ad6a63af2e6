# SPDX-License-Identifier: Apache-2.0
"""The guests' initramfs with the payload as PID 1, made by ``guest-images/guest/Makefile``."""

from __future__ import annotations

from pathlib import Path

from liveupdate.core.deadline import Deadline
from liveupdate.core.steps import Steps
from liveupdate.images.cache import Cache, file_sha256, tree_sha256
from liveupdate.images.tool import run_tool

BUILD_S = 300.0
IMAGE = "initramfs.cpio.gz"
#: the program that packs the archive for the Makefile
_PACKER = Path(__file__).with_name("cpio.py")


def guest_inputs(guest_dir: Path, compiler: str) -> dict[str, str]:
    """Return everything that decides the initramfs."""
    return {
        "name": "guest",
        "sources": "; ".join(tree_sha256(guest_dir, p) for p in ("*.c", "*.h", "Makefile")),
        "packer": file_sha256(_PACKER),
        "compiler": compiler,
    }


def build_guest(cache: Cache, guest_dir: Path, compiler: str, python: str, steps: Steps) -> Path:
    """Return the cache entry that holds :data:`IMAGE`.

    :param python: interpreter that has this package's dependencies.
    :raises BuildError: the payload does not compile.
    """

    def builder(scratch: Path) -> None:
        with steps.step("guest payload"):
            deadline = Deadline.after(BUILD_S, "the guest payload")
            argv = ("make", "-C", str(guest_dir), f"O={scratch}", f"PYTHON={python}")
            run_tool(argv, deadline, "the guest payload does not build")
            for path in scratch.iterdir():
                if path.name != IMAGE:
                    path.unlink()

    inputs = guest_inputs(guest_dir, compiler)
    return cache.build("guest", inputs, builder, again=lambda: guest_inputs(guest_dir, compiler))
