# SPDX-License-Identifier: Apache-2.0
"""``make kernel-check``: is the series bisectable, and does every variant keep its options?

Each patch is applied in turn to the pinned source. checkpatch.pl --strict must find nothing. The
directories it touches are compiled, its own objects with W=1 and no warning allowed, once with the
option of the series and once without. A fix (``fixes/``) has no option and is in both builds. Then
each variant is configured. The check fails with the name of the patch or option.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from liveupdate.core import paths
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError, LiveUpdateError
from liveupdate.core.steps import StepEvent, Steps
from liveupdate.images import catalogue, kernel, source
from liveupdate.images.tool import JOBS, run_tool

#: patches below it correct a defect of Linux: all variants have them, no option turns them off
FIXES = "fixes/"
#: Every patch names its origin and whether it is meant for the kernel.
REQUIRED_HEADERS = ("From", "Subject", "Patch-mainline", "Forwarded")
OBJECTS_S = 1200.0
STYLE_S = 60.0
#: a variant with the option of the series, and one without
STATES = ("a", "stock")


def check_headers(name: str, text: str) -> None:
    """Check a patch's mail.

    :raises BuildError: a header of :data:`REQUIRED_HEADERS` is missing.
    """
    head = text.partition("\n---\n")[0]
    missing = [key for key in REQUIRED_HEADERS if not re.search(rf"^{key}: \S", head, re.MULTILINE)]
    if missing:
        raise BuildError(f"patch '{name}' has no '{missing[0]}:' line")


def check_fix(name: str, text: str) -> None:
    """Check what a patch below :data:`FIXES` must fulfil; other patches pass.

    :raises BuildError: it does not name the commit it corrects, or it adds an option, which would
        be off in some variant.
    """
    if not name.startswith(FIXES):
        return
    if not re.search(r'^Fixes: [0-9a-f]{12,40} \("\S.*"\)$', text, re.MULTILINE):
        raise BuildError(f"fix '{name}' has no 'Fixes:' line")
    if re.search(r"^\+\+\+ b/(\S+/)?Kconfig\b", text, re.MULTILINE):
        raise BuildError(f"fix '{name}' touches a Kconfig file: it would not be in all variants")


def touched_files(text: str, src: Path) -> tuple[Path, ...]:
    """Return the C files that a patch touches and that exist."""
    names = re.findall(r"^\+\+\+ b/(\S+\.c)\b", text, re.MULTILINE)
    return tuple(Path(name) for name in names if (src / name).exists())


def build_directory(file: Path, src: Path) -> Path:
    """Return the directory whose makefile builds a file of the kernel.

    Some directories have none, such as arch/x86/kvm/svm, which its parent builds. To make(1) they
    are nothing to be done.
    """
    for parent in file.parents[:-1]:
        if any((src / parent / name).exists() for name in ("Kbuild", "Makefile")):
            return parent
    return file.parent


def check_kernels(sources: Path, steps: Steps) -> None:
    """Check series and variants of a checkout's ``guest-images``.

    :raises BuildError: naming the first patch, object or option that is wrong.
    """
    directory = sources / "kernel"
    cache = catalogue.open_cache()
    builder = kernel.KernelBuilder(cache, directory, steps)
    series = source.read_series(directory / "series")
    with cache.locked(kernel.TREE_LOCK, waiting=lambda: steps.note("waiting for another build")):
        tree = builder.open_tree(source.read_base(directory / "BASE"))
        for count, name in enumerate(series, start=1):
            text = (directory / name).read_text()
            check_headers(name, text)
            check_fix(name, text)
            with steps.step(f"patch {name}"):
                tree.apply(directory, series[:count])
                check_style(name, directory / name, tree.src)
                for variant in map(kernel.find_variant, STATES):
                    objects = tree.root / f"check-{variant.name}"
                    # Options of later patches are not there yet: unknown ones are only noted.
                    builder.configure(variant, tree.src, objects, own=count < len(series))
                    compile_touched(name, touched_files(text, tree.src), tree.src, objects)
        for variant in kernel.VARIANTS:
            for name in variant.patches:
                check_headers(name, (directory / name).read_text())
            with steps.step(f"configure {variant.name}"):
                tree = builder.prepare(variant)
                objects = tree.root / f"check-{variant.name}"
                builder.configure(variant, tree.src, objects, own=False)


def check_style(name: str, patch: Path, src: Path) -> None:
    """Check a patch with the kernel's own checkpatch.pl.

    :raises BuildError: it finds something.
    """
    argv = ["perl", str(src / "scripts/checkpatch.pl"), "--strict", "--terse", "--no-tree"]
    # The source is a tarball without history, so no commit of a "Fixes:" line can be found.
    argv += ["--ignore", "UNKNOWN_COMMIT_ID"]
    deadline = Deadline.after(STYLE_S, f"checkpatch of {name}")
    run_tool([*argv, str(patch)], deadline, f"patch '{name}' has style faults", tree=False)


def compile_touched(name: str, files: tuple[Path, ...], src: Path, out: Path) -> None:
    """Compile the directories of ``files``, and the files with every warning an error.

    :raises BuildError: something does not compile.
    """
    make = ["make", JOBS, "-C", str(src), f"O={out}"]
    failed = f"patch '{name}' does not build in {out.name}"
    for file in files:
        (out / file).with_suffix(".o").unlink(missing_ok=True)
    directories = sorted({f"{build_directory(file, src)}/" for file in files})
    if directories:
        deadline = Deadline.after(OBJECTS_S, f"directories of {name}")
        run_tool([*make, *directories], deadline, failed)
    # Files that the configuration leaves out have no object.
    mine = [str(file.with_suffix(".o")) for file in files]
    mine = [each for each in mine if (out / each).exists()]
    if mine:
        deadline = Deadline.after(OBJECTS_S, f"objects of {name}")
        run_tool([*make, "W=1", "KCFLAGS=-Werror", *mine], deadline, failed)


def run_check(name: str, check: Callable[[Path, Steps], None]) -> int:
    """Run a check of ``guest-images``, one line per step on stderr; return an exit status."""

    def show(event: StepEvent) -> None:
        if event.kind in ("stop", "note"):
            took = "" if event.elapsed_s is None else f" ({event.elapsed_s:.1f} s)"
            sys.stderr.write(f"{name}: {event.name}{took}\n")

    steps = Steps()
    steps.subscribe(show)
    try:
        check(paths.guest_images_dir(), steps)
    except LiveUpdateError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_check("kernel-check", check_kernels))
