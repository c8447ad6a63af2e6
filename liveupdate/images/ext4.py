# SPDX-License-Identifier: Apache-2.0
"""Make ext4 images from directories, and add files to them, with no mount and no root.

Images are read only once made, so they have no journal and no reserved blocks. UUID, hash seed and
times are derived from a name, not drawn: the same tree gives the same bytes.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError
from liveupdate.core.units import MIB

MAKE_S = 300.0
#: 2026-01-01, seconds since the epoch: the time stamp of all files
FIXED_TIME_S = 1767225600
_ENV = {"E2FSPROGS_FAKE_TIME": str(FIXED_TIME_S)}
_NAMESPACE = uuid.UUID("6f0a9d5e-3b0e-4c5e-9a0e-8d1f6b1c2a77")
_BLOCK = 4096


def image_bytes(tree: Path, spare_bytes: int) -> int:
    """Return the size of an image that holds ``tree``: whole blocks per file, tables, and
    ``spare_bytes``.
    """
    blocks = 0
    inodes = 0
    for directory, folders, files in os.walk(tree):
        inodes += len(folders) + len(files)
        blocks += len(folders)
        for name in files:
            blocks += -(-os.lstat(os.path.join(directory, name)).st_size // _BLOCK)
    used = blocks * _BLOCK + inodes * 256
    return -(-(used + used // 16 + spare_bytes) // MIB) * MIB


def mke2fs_argv(tree: Path, image: Path, label: str, size_bytes: int) -> tuple[str, ...]:
    """Return the command that makes the image of a tree."""
    identity = uuid.uuid5(_NAMESPACE, label)
    return (
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-I", "256", "-m", "0",
        "-O", "^has_journal,^metadata_csum,^resize_inode,^orphan_file,^huge_file",
        "-E", f"hash_seed={identity},lazy_itable_init=0,root_owner=0:0,nodiscard",
        "-U", str(identity), "-L", label[:16], "-d", str(tree),
        str(image), f"{size_bytes // 1024}k",
    )  # fmt: skip


def make_image(
    tree: Path, image: Path, label: str, *, spare_bytes: int, prefix: Sequence[str] = ()
) -> None:
    """Make ``image`` from ``tree``.

    :param prefix: command that runs mke2fs, such as fakeroot with its options.
    """
    argv = mke2fs_argv(tree, image, label, image_bytes(tree, spare_bytes))
    deadline = Deadline.after(MAKE_S, f"the file system of {label}")
    proc.run([*prefix, *argv], deadline=deadline, env=_ENV, tree=bool(prefix))


def debugfs_script(files: Sequence[tuple[Path, str]]) -> str:
    """Return the debugfs commands that put files in (owner root, the mode they have here)."""
    lines: list[str] = []
    made: set[str] = set()
    for origin, name in files:
        parents = [str(parent) for parent in reversed(Path(name).parents)][1:]
        for parent in parents:
            if parent not in made:
                lines.append(f"mkdir {parent}")
                made.add(parent)
        lines += [f"rm {name}", f"write {origin} {name}"]
    return "\n".join(lines) + "\n"


def add_files(origin: Path, image: Path, files: Sequence[tuple[Path, str]]) -> None:
    """Copy ``origin`` to ``image`` and put files into it.

    :param files: pairs of a file here and its absolute name in the image.
    :raises BuildError: a file is not in the image afterwards as it should be.
    """
    shutil.copyfile(origin, image)
    script = image.with_suffix(".debugfs")
    script.write_text(debugfs_script(files))
    deadline = Deadline.after(MAKE_S, f"the files of {image.name}")
    proc.run(["debugfs", "-w", "-f", script, image], deadline=deadline, env=_ENV)
    script.unlink()
    # The exit status of debugfs means nothing: read back what was written.
    check = image.with_suffix(".check")
    for here, name in files:
        proc.run(["debugfs", "-R", f"dump {name} {check}", image], deadline=deadline)
        if not check.exists() or check.read_bytes() != here.read_bytes():
            raise BuildError(f"debugfs did not write '{name}' into '{image}'")
        check.unlink()
