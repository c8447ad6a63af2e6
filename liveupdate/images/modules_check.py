# SPDX-License-Identifier: Apache-2.0
"""``make modules-check``: do the kernel modules and their tests meet Linux's own rules?

checkpatch.pl --strict must find nothing in any file. Every module must compile with W=1 and sparse
(C=1) with no message about the modules' files. Messages about the kernel's own headers are counted
and ignored: Debian's sparse 0.6.4 is older than what they use, and needs one word explained
(:data:`CHECKER`).
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError
from liveupdate.core.steps import Steps
from liveupdate.images import catalogue, kernel, modules, source
from liveupdate.images.check import run_check

STYLE_S = 120.0
#: scripts/checker-valid.sh of Linux 7.3 takes no sparse that does not know __typeof_unqual__
CHECKER = "CHECK=sparse -D__typeof_unqual__=__typeof__"
#: of static assertions within these macros, which sparse 0.6.4 cannot evaluate
_UNKNOWN = "error: bad constant expression"
_ASSERTING = re.compile(r"\s*(MODULE_[A-Z_]+|module_param(_\w+)?)\(")
_SAID = re.compile(
    r"^(?P<file>[^\s:]+):(?P<line>\d+)(?::\d+)?: (?:\w+:? )?(?:warning|error): .*$", re.MULTILINE
)
_MOST = 20


def style_files(root: Path) -> tuple[Path, ...]:
    """Return the C files and headers for checkpatch.pl."""
    return tuple(sorted(path for path in root.rglob("*.[ch]") if not path.match("*.mod.c")))


def complaints(said: str, modules_dir: Path) -> tuple[list[str], int]:
    """Sort the output of compiler and sparse: lines about the modules' files, and the number of
    others.

    :param said: output of make; paths are absolute, or relative to the modules' directory.
    """
    ours, others = [], 0
    for match in _SAID.finditer(said):
        path = modules_dir / match["file"]  # an absolute one stays as it is
        is_ours = path.resolve().is_relative_to(modules_dir.resolve())
        if is_ours and not _is_of_header(path, int(match["line"]), match[0]):
            ours.append(match[0])
        else:
            others += 1
    return ours, others


def _is_of_header(path: Path, number: int, said: str) -> bool:
    """Whether a line is about a macro of the kernel that stands there."""
    if not said.endswith(_UNKNOWN) or not path.is_file():
        return False
    lines = path.read_text().splitlines()
    return 0 < number <= len(lines) and _ASSERTING.match(lines[number - 1]) is not None


def check_style(src: Path, root: Path) -> None:
    """Check all files with the kernel's own checkpatch.pl, with the options in the directory.

    :raises BuildError: it finds something.
    """
    files = style_files(root)
    conf = (root / ".checkpatch.conf").read_text()
    lines = (line.partition("#")[0].split() for line in conf.splitlines())
    options = [word for words in lines for word in words]
    argv = ["perl", str(src / "scripts/checkpatch.pl"), *options, "--file", *map(str, files)]
    done = proc.run(
        argv, deadline=Deadline.after(STYLE_S, f"checkpatch.pl of {root.name}"), check=False
    )
    said = (done.stdout + done.stderr).strip()
    if done.returncode or said:
        raise BuildError(f"style faults in {root.name}:\n" + "\n".join(said.splitlines()[:_MOST]))


def check_modules(sources: Path, steps: Steps) -> None:
    """Check modules and selftests of a checkout's ``guest-images``.

    :raises BuildError: naming what is wrong.
    """
    cache = catalogue.open_cache()
    modules_dir, kernel_dir = sources / "modules", sources / "kernel"
    builder = modules.ModulesBuilder(cache, kernel_dir, modules_dir, steps)
    variant = kernel.find_variant(modules.VARIANTS[0])
    kernels = kernel.KernelBuilder(cache, kernel_dir, steps)
    entry = kernels.build(variant)
    with cache.locked(kernel.TREE_LOCK, waiting=lambda: steps.note("waiting for another build")):
        kdir = builder.prepare(variant, entry)
        src = kernels.open_tree(source.read_base(kernel_dir / "BASE")).src
        with steps.step("checkpatch --strict"):
            check_style(src, modules_dir)
            check_style(src, sources / "selftests")
        if proc.find_program("sparse") is None:
            raise BuildError("sparse is not installed", hint="run 'liveupdate/setup.sh --tests'")
        with steps.step("W=1 and sparse"), tempfile.TemporaryDirectory() as out:
            said = builder.make(variant, kdir, Path(out), "C=1", CHECKER)
    ours, others = complaints(said, modules_dir)
    if ours:
        raise BuildError("warnings:\n" + "\n".join(ours[:_MOST]))
    if others:
        steps.note(f"{others} warnings about the kernel's own headers, ignored")


if __name__ == "__main__":
    sys.exit(run_check("modules-check", check_modules))
