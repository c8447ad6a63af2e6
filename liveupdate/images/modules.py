# SPDX-License-Identifier: Apache-2.0
"""Our kernel modules, built out of tree for one kernel variant, and the programs that test them.

A module fits one kernel only: its vermagic holds the release, which differs between the variants.
So there is a set of modules for each, keyed by the kernel's digest and by the modules' sources: a
change of a module builds no kernel anew. Objects of their own (``m``), beside those of the kernels:
what is configured here must not have a kernel's objects rebuilt. Must not know mechanisms.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError, CommandFailed
from liveupdate.core.steps import Steps
from liveupdate.images import kernel
from liveupdate.images.cache import Cache, SourcesChanged, digest_of, tree_sha256
from liveupdate.images.kernel_facts import read_image_json
from liveupdate.images.tool import JOBS, run_tool

KIND = "modules"
#: the variants that modules are built for
VARIANTS = ("a", "b")
PREPARE_S = 900.0
BUILD_S = 600.0
SELFTESTS_S = 120.0


def modules_inputs(
    modules_dir: Path, variant: kernel.Variant, kernel_digest: str
) -> dict[str, str]:
    """Return everything that decides a variant's set of modules."""
    return {
        "name": f"modules-{variant.name}",
        "kernel": kernel_digest,
        "sources": tree_sha256(modules_dir),
    }


class ModulesBuilder:
    """Builds sets of modules into a cache, in the tree that the kernels are built in."""

    def __init__(self, cache: Cache, kernel_dir: Path, modules_dir: Path, steps: Steps) -> None:
        self._cache = cache
        self._kernel_dir = kernel_dir
        self._dir = modules_dir
        self._steps = steps
        self._kernels = kernel.KernelBuilder(cache, kernel_dir, steps)

    def build(self, variant: kernel.Variant) -> Path:
        """Return the cache entry of a variant's modules: ``NAME.ko`` and ``release``.

        :raises BuildError: a module does not build, or the kernel for it does not.
        """
        kernel_entry = self._kernels.build(variant)

        def read_inputs() -> dict[str, str]:
            return modules_inputs(self._dir, variant, kernel_entry.name)

        while True:
            inputs = read_inputs()

            def builder(scratch: Path, inputs: Mapping[str, str] = inputs) -> None:
                with self._cache.locked(kernel.TREE_LOCK, waiting=self._say_waiting):
                    self._check_kernel(variant, kernel_entry)
                    kdir = self.prepare(variant, kernel_entry)
                    with self._steps.step(f"modules for kernel {variant.name}"):
                        self.make(variant, kdir, scratch / "o")
                    if read_inputs() != inputs:
                        raise SourcesChanged(inputs["name"])
                for module in sorted((scratch / "o").rglob("*.ko")):
                    shutil.copyfile(module, scratch / module.name)
                shutil.rmtree(scratch / "o")
                (scratch / "release").write_text(read_image_json(kernel_entry).release)

            try:
                return self._cache.build(KIND, inputs, builder, waiting=self._say_waiting)
            except SourcesChanged as change:
                self._steps.note(f"{change}, starting again")

    def prepare(self, variant: kernel.Variant, kernel_entry: Path) -> Path:
        """Return a configured tree in which modules for a variant can be built; its lock is held.

        :raises BuildError: it is not the tree of the kernel in ``kernel_entry``.
        """
        tree = self._kernels.prepare(variant)
        objects = tree.root / "m"
        with self._steps.step(f"kernel {variant.name}: prepare for modules"):
            self._kernels.configure(variant, tree.src, objects, own=False)
            argv = kernel.make_argv(tree.src, objects, variant.localversion, "modules_prepare")
            self._run(argv, PREPARE_S, "the kernel tree to be ready for modules")
        # The symbols that this kernel offers; modpost refuses a module that wants another.
        (objects / kernel.SYMBOLS).unlink(missing_ok=True)
        if (kernel_entry / kernel.SYMBOLS).exists():
            shutil.copyfile(kernel_entry / kernel.SYMBOLS, objects / kernel.SYMBOLS)
        else:
            self._steps.note(
                f"kernel {variant.name} was built without a list of its symbols: a module that"
                " wants one it lacks is only found out when it is loaded"
            )
        release = read_image_json(kernel_entry).release
        found = (objects / "include/config/kernel.release").read_text().strip()
        if found != release:
            raise BuildError(f"the tree is of kernel '{found}', the image is '{release}'")
        return objects

    def make(self, variant: kernel.Variant, kdir: Path, out: Path, *words: str) -> str:
        """Build all modules below ``out``; return make's output.

        :param words: more of make's variables.
        :raises BuildError: with the first errors.
        """
        out.mkdir(parents=True, exist_ok=True)
        if not (kdir / kernel.SYMBOLS).exists():
            words = (*words, "KBUILD_MODPOST_WARN=1")
        argv = (
            "make", "-C", str(self._dir), JOBS, f"KDIR={kdir}", f"OUT={out}",
            f"LOCALVERSION={variant.localversion}", *words,
        )  # fmt: skip
        return self._run(argv, BUILD_S, "the modules")

    def _check_kernel(self, variant: kernel.Variant, entry: Path) -> None:
        """Check that the kernel's directory is still what the image was built from."""
        compiler = kernel.compiler_version()
        now = digest_of(kernel.inputs_of(self._kernel_dir, variant, compiler))
        if now != entry.name:
            raise BuildError(
                f"the sources of kernel {variant.name} changed while it was being built",
                hint="run it again",
            )

    def _run(self, argv: tuple[str, ...], seconds: float, what: str) -> str:
        deadline = Deadline.after(seconds, what)
        try:
            done = proc.run(argv, deadline=deadline, env=kernel.BUILD_ENV, tree=True)
        except CommandFailed as error:
            raise BuildError(f"{what}: make fails:\n{kernel.first_errors(error.tail)}") from error
        return done.stdout + done.stderr

    def _say_waiting(self) -> None:
        self._steps.note("waiting for another build")


def selftests_inputs(selftests_dir: Path, modules_dir: Path, compiler: str) -> dict[str, str]:
    """Return everything that decides the test programs; they include the modules' headers."""
    return {
        "name": "selftests",
        "sources": tree_sha256(selftests_dir),
        "headers": tree_sha256(modules_dir / "include"),
        "compiler": compiler,
    }


def build_selftests(
    cache: Cache, selftests_dir: Path, modules_dir: Path, compiler: str, steps: Steps
) -> Path:
    """Return the cache entry of the test programs, which are static.

    :raises BuildError: one does not compile.
    """

    def read_inputs() -> dict[str, str]:
        return selftests_inputs(selftests_dir, modules_dir, compiler)

    def builder(scratch: Path) -> None:
        argv = ("make", "-C", str(selftests_dir), f"O={scratch}", f"MODULES={modules_dir}")
        deadline = Deadline.after(SELFTESTS_S, "the selftests")
        with steps.step("selftests"):
            run_tool(argv, deadline, "the selftests do not build")

    return cache.build("selftests", read_inputs(), builder, again=read_inputs)
