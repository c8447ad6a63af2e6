# SPDX-License-Identifier: Apache-2.0
"""A kernel from what its developer has: a source tree, a build of one, a package or an image.

A build that has what the testbed needs is used as it is; when a source is newer than the image,
make(1) brings it up to date, as its developer would. One that lacks something is copied into the
cache, configured and made there, so that only what the options touch is compiled. Sources without a
build get the testbed's small configuration and a build in the cache. Must not know scenarios or
machines.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError
from liveupdate.core.steps import Steps
from liveupdate.formats import kconfig
from liveupdate.images import kernel
from liveupdate.images.cache import Cache
from liveupdate.images.tool import JOBS, run_tool
from liveupdate.model.kernel_needs import fragment, lacking

IMAGE = "arch/x86/boot/bzImage"
COPY_S = 600.0
SCAN_S = 60.0
_SOURCE_OF = re.compile(r"^include (/.+)/Makefile$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where sources are, and where a build of them is; the same directory when built in place."""

    src: Path
    objects: Path | None

    @property
    def config(self) -> kconfig.Fragment:
        """The configuration of the build."""
        path = (self.objects or self.src) / ".config"
        return kconfig.parse_config(path.read_text(), str(path))


def find_layout(path: Path) -> Layout:
    """Tell a source tree, a tree built in place and an objects directory (``O=``) from each other.

    :raises BuildError: it is none of them.
    """
    if (path / "Kbuild").is_file() and (path / "arch/x86/Kconfig").is_file():
        is_built = (path / ".config").exists() or (path / "include/config").exists()
        return Layout(path, path if is_built else None)
    makefile = path / "Makefile"
    named = _SOURCE_OF.search(makefile.read_text()) if makefile.is_file() else None
    if named is None or not (path / ".config").is_file():
        raise BuildError(
            f"'{path}' is neither the top of a kernel source tree nor a build of one",
            hint="give the tree, its O= directory, a linux-image package or a bzImage",
        )
    return Layout(Path(named[1]), path)


class TreeBuilder:
    """Finds or makes the bzImage of what a developer names."""

    def __init__(self, cache: Cache, kernel_dir: Path, steps: Steps) -> None:
        self._cache = cache
        self._dir = kernel_dir
        self._steps = steps

    def find(self, path: Path, extra: kconfig.Fragment, *, may_build: bool = True) -> Path:
        """Return the bzImage of a tree, a build, a linux-image package or an image.

        :param extra: options of the user; they win over all others.
        :param may_build: False: what would have to be built is an error.
        :raises BuildError: with the build's own first errors, or what cannot be used.
        """
        if path.is_file():
            if extra.values:
                raise BuildError(
                    f"'{path}' is built already, so its configuration cannot be changed",
                    hint="give its tree, or leave the fragment out",
                )
            return self._unpack(path) if path.suffix == ".deb" else _bzimage_of(path)
        layout = find_layout(path)
        if layout.objects is not None:
            config = layout.config
            if not lacking(config.values) and not extra.missing_from(config):
                # only make(1) knows all that an image depends on: a bisect must not run an old one
                if may_build:
                    self._make(layout.objects, layout.objects)
                    return layout.objects / IMAGE
                if _is_current(layout.src, layout.objects):
                    return layout.objects / IMAGE
        if not may_build:
            raise BuildError(f"'{path}' has no kernel yet that can be used", hint="run it")
        name = "tree-" + hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
        work = self._cache.root / "build" / name
        with self._cache.locked(name, waiting=lambda: self._steps.note("waiting for its build")):
            work.mkdir(parents=True, exist_ok=True)
            if layout.objects is not None:
                return self._make_copy(layout, work, extra)
            objects = work / "o"
            objects.mkdir(exist_ok=True)
            config = kconfig.parse_config(fragment())
            config = config.merge(kernel.load_fragments(self._dir, ("base", "host"))).merge(extra)
            self._configure(layout.src, objects, config, "allnoconfig")
            self._make(objects, work)
            return objects / IMAGE

    def _make_copy(self, layout: Layout, work: Path, extra: kconfig.Fragment) -> Path:
        """Copy a build, merge what it lacks into its configuration, and make what follows."""
        assert layout.objects is not None
        copy = work / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        argv = ["cp", "--archive", "--reflink=auto", str(layout.objects), str(copy)]
        with self._steps.step(f"copy the build of {layout.objects}"):
            proc.run(argv, deadline=Deadline.after(COPY_S, f"the copy of {layout.objects}"))
        shutil.rmtree(copy / ".git", ignore_errors=True)
        config = layout.config.merge(kconfig.parse_config(fragment())).merge(extra)
        src = copy if layout.src == layout.objects else layout.src
        self._configure(src, copy, config, "alldefconfig")
        self._make(copy, work)
        return copy / IMAGE

    def _configure(self, src: Path, objects: Path, config: kconfig.Fragment, target: str) -> None:
        """Write ``.config`` and check that what the testbed needs has survived."""
        allconfig = objects / "liveupdate.config"
        allconfig.write_text(config.render())
        where = () if src == objects else (f"O={objects}",)
        argv = ["make", "-C", str(src), *where, f"KCONFIG_ALLCONFIG={allconfig}", target]
        with self._steps.step(f"configure {src}"):
            run_tool(argv, Deadline.after(kernel.CONFIG_S, target), f"cannot configure '{src}'")
        found = kconfig.parse_config((objects / ".config").read_text())
        lost = lacking(found.values)
        if lost:
            raise BuildError(
                f"'{src}' cannot have what the testbed needs: {', '.join(lost)}",
                hint="'liveupdate kernel needs' lists it with reasons",
            )
        others = config.missing_from(found)
        if others:
            names = ", ".join(each.symbol for each in others)
            self._steps.note(f"{src} does not know, or computes: {names}")

    def _make(self, objects: Path, logs: Path) -> None:
        ccache = proc.find_program("ccache")
        # another compiler would have a build that is there already made anew
        words = ("CC=ccache gcc",) if ccache and not (objects / "vmlinux").exists() else ()
        argv = ("make", "-C", str(objects), JOBS, *words, "bzImage")
        log = self._cache.root / "build" / f"{logs.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        kernel.compile_kernel(argv, f"kernel {objects}", log, self._steps)

    def _unpack(self, package: Path) -> Path:
        """Unpack the image and configuration of a package that ``make bindeb-pkg`` made."""
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        inputs = {"name": "package", "package": digest}

        def builder(scratch: Path) -> None:
            argv = ["dpkg-deb", "--extract", str(package), str(scratch / "all")]
            what = f"cannot unpack '{package}'"
            run_tool(argv, Deadline.after(COPY_S, f"unpacking of {package}"), what)
            images = list((scratch / "all").glob("boot/vmlinuz-*"))
            if len(images) != 1:
                raise BuildError(f"'{package}' has no boot/vmlinuz-RELEASE: no linux-image")
            for found in (scratch / "all/boot").glob("[vc]*-*"):
                if found.name.startswith(("vmlinuz-", "config-")):
                    shutil.copyfile(found, scratch / found.name)
            shutil.rmtree(scratch / "all")

        (image,) = self._cache.build("package", inputs, builder).glob("vmlinuz-*")
        return image


def _bzimage_of(path: Path) -> Path:
    """Return the bzImage that belongs to a vmlinux; other images are what they are."""
    with path.open("rb") as stream:
        if stream.read(4) != b"\x7fELF":
            return path
    if (path.parent / IMAGE).is_file():
        return path.parent / IMAGE
    raise BuildError(
        f"'{path}' is a vmlinux, and kexec -s loads bzImages only",
        hint="give its build, or run 'make bzImage' there",
    )


def _is_current(src: Path, objects: Path) -> bool:
    """Whether no source file of a build is newer than its image: a guess, for a plan only."""
    image = objects / IMAGE
    if not image.is_file() or (objects / ".config").stat().st_mtime > image.stat().st_mtime:
        return False
    argv = [
        "find", str(src), "-newer", str(image), "-type", "f",
        "(", "-name", "*.[chS]", "-o", "-name", "Kconfig*", "-o", "-name", "Makefile", ")",
        "-not", "-path", f"{src}/include/generated/*", "-not", "-name", "*.mod.c",
        "-print", "-quit",
    ]  # fmt: skip
    return not proc.run(argv, deadline=Deadline.after(SCAN_S, f"a look at {src}")).stdout
