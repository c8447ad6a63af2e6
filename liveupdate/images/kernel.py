# SPDX-License-Identifier: Apache-2.0
"""Builds the kernels: source + series + config fragments -> bzImage, cached by its inputs.

Variants share one source tree and one object directory, so that all but the first are built
incrementally. Must not know scenarios or machines.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import BuildError
from liveupdate.core.steps import Steps
from liveupdate.formats import kconfig
from liveupdate.images import source
from liveupdate.images.cache import Cache, SourcesChanged
from liveupdate.images.kernel_facts import read_image, write_image_json
from liveupdate.images.tool import JOBS, run_tool
from liveupdate.images.tree import BuildTree
from liveupdate.model.kernel_needs import BY_SYMBOL

BUILD_S = 3600.0
CONFIG_S = 300.0
PROGRESS_S = 15.0
#: kbuild's name of the list of exported symbols that modules are linked against
SYMBOLS = "Module.symvers"
#: lock of a process that writes to the source tree or its objects
TREE_LOCK = "kernel-tree"
#: Fixed, so that the same input gives the same image on any machine and day.
BUILD_ENV: Mapping[str, str] = {
    "KBUILD_BUILD_TIMESTAMP": "2026-01-01 00:00:00 UTC",
    "KBUILD_BUILD_USER": "liveupdate",
    "KBUILD_BUILD_HOST": "liveupdate",
    "KBUILD_BUILD_VERSION": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kernel to build. ``fragments`` are merged in order, the later wins."""

    name: str
    localversion: str
    fragments: tuple[str, ...] = ("base", "host", "keep-dma", "tcg")
    #: applied after the series, and for this variant only
    patches: tuple[str, ...] = ()


VARIANTS = (
    Variant(name="a", localversion="-lu-a"),
    Variant(name="b", localversion="-lu-b"),
    # for tests: the LUO of the incoming kernel has another version
    Variant(
        name="skew",
        localversion="-lu-skew",
        patches=("debug/0001-liveupdate-announce-another-abi.patch",),
    ),
    # for tests: names as the next release has them
    Variant(
        name="renamed",
        localversion="-lu-renamed",
        patches=("debug/0002-kho-use-the-names-of-linux-7.4.patch",),
    ),
    # for tests: the options of our series are off, so that no DMA outlives a kexec. What is left of
    # the series are the fixes, which have no option: this kernel runs on the testbed, too
    Variant(name="stock", localversion="-lu-stock", fragments=("base", "host")),
    # for tests: boots like any other, and has lost everything. Last: it touches most objects
    Variant(name="nokho", localversion="-lu-nokho", fragments=("base", "host", "tcg", "nokho")),
)
"""In the order in which they are built, so that each leaves as much as it can to the next."""


def find_variant(name: str) -> Variant:
    """Return the variant of that name, which exists."""
    return next(variant for variant in VARIANTS if variant.name == name)


def load_fragments(directory: Path, names: tuple[str, ...]) -> kconfig.Fragment:
    """Merge ``config/NAME.config`` of the kernel directory.

    :raises BuildError: a fragment is missing or has a line that is no option.
    """
    merged = kconfig.parse_config("")
    for name in names:
        path = directory / "config" / f"{name}.config"
        try:
            merged = merged.merge(kconfig.parse_config(path.read_text(), str(path)))
        except (OSError, kconfig.KconfigError) as error:
            raise BuildError(f"cannot use config fragment '{name}': {error}") from error
    return merged


def compiler_version() -> str:
    """Return the version lines of compiler and linker; "none" when they are missing."""
    deadline = Deadline.after(30.0, "gcc --version")
    said = []
    for program in ("gcc", "ld"):
        if proc.find_program(program) is None:
            return "none"
        said.append(proc.run([program, "--version"], deadline=deadline).stdout.splitlines()[0])
    return "; ".join(said)


def inputs_of(kernel_dir: Path, variant: Variant, compiler: str) -> dict[str, str]:
    """Return everything that decides the image of a variant."""
    pin = source.read_base(kernel_dir / "BASE")
    patches = (*source.read_series(kernel_dir / "series"), *variant.patches)
    config = load_fragments(kernel_dir, variant.fragments)
    return {
        "name": f"kernel-{variant.name}",
        "source": f"{pin.package} {pin.version} {pin.sha256}",
        "patches": source.series_digest(kernel_dir, patches),
        "config": hashlib.sha256(config.render().encode()).hexdigest(),
        "localversion": variant.localversion,
        "compiler": compiler,
        "environment": json.dumps(dict(BUILD_ENV), sort_keys=True),
    }


def config_argv(src: Path, objects: Path, allconfig: Path) -> tuple[str, ...]:
    """Return the command that writes ``.config``: the fragments over allnoconfig."""
    return ("make", "-C", str(src), f"O={objects}", f"KCONFIG_ALLCONFIG={allconfig}", "allnoconfig")


def make_argv(src: Path, objects: Path, localversion: str, goal: str) -> tuple[str, ...]:
    """Return the command that builds a goal of the kernel's makefile."""
    return (
        "make", "-C", str(src), f"O={objects}", JOBS, f"LOCALVERSION={localversion}", goal,
    )  # fmt: skip


class KernelBuilder:
    """Builds variants into a cache."""

    def __init__(self, cache: Cache, kernel_dir: Path, steps: Steps) -> None:
        self._cache = cache
        self._dir = kernel_dir
        self._steps = steps

    def build(self, variant: Variant) -> Path:
        """Return the cache entry of a variant: ``bzImage``, ``config``, ``image.json``, and
        ``Module.symvers`` for modules.

        :raises BuildError: naming the source, patch, option or file that failed.
        """
        compiler = compiler_version()
        while True:
            inputs = inputs_of(self._dir, variant, compiler)

            def builder(scratch: Path, inputs: Mapping[str, str] = inputs) -> None:
                with self._cache.locked(TREE_LOCK, waiting=self._say_waiting):
                    tree = self.prepare(variant)
                    # The tree is built as it is now; waiting for the lock may have taken long.
                    if inputs_of(self._dir, variant, compiler) != inputs:
                        raise SourcesChanged(inputs["name"])
                    self._make(variant, tree, scratch)

            try:
                return self._cache.build("kernel", inputs, builder, waiting=self._say_waiting)
            except SourcesChanged as change:
                self._steps.note(f"{change}, starting again")

    def open_tree(self, pin: source.Base) -> BuildTree:
        """Return the tree that all variants are built in, unpacked; the caller holds its lock."""
        tree = BuildTree(self._cache.root / "build" / f"{pin.package}_{pin.version}")
        tree.root.mkdir(parents=True, exist_ok=True)
        if tree.is_ready():
            return tree
        with self._steps.step("kernel source", package=pin.package, version=pin.version):
            tree.prepare(pin, say=lambda text: self._steps.note(text))
        return tree

    def prepare(self, variant: Variant) -> BuildTree:
        """Return the patched tree of a variant; the caller holds the tree's lock.

        :raises BuildError: naming the patch that cannot be used.
        """
        tree = self.open_tree(source.read_base(self._dir / "BASE"))
        tree.apply(self._dir, (*source.read_series(self._dir / "series"), *variant.patches))
        return tree

    def _make(self, variant: Variant, tree: BuildTree, target: Path) -> None:
        src, objects = tree.src, tree.objects
        with self._steps.step(f"kernel {variant.name}: configure"):
            self.configure(variant, src, objects, own=False)
        argv = make_argv(src, objects, variant.localversion, "bzImage")
        log = objects.parent / f"build-{variant.name}.log"
        compile_kernel(argv, f"kernel {variant.name}", log, self._steps)
        shutil.copyfile(objects / "arch/x86/boot/bzImage", target / "bzImage")
        shutil.copyfile(objects / ".config", target / "config")
        # Modules would add theirs; a kernel that loads none has no such list.
        symbols = objects / "vmlinux.symvers"
        if symbols.exists():
            shutil.copyfile(symbols, target / SYMBOLS)
        image = read_image(target / "bzImage")
        if not image.release.endswith(variant.localversion):
            raise BuildError(f"built '{image.release}', wanted a release in {variant.localversion}")
        write_image_json(target / "image.json", image, tree.origin())

    def configure(self, variant: Variant, src: Path, objects: Path, *, own: bool) -> None:
        """Make the directory of objects, write ``.config`` and check that every option survived.

        :param own: ``src`` is the user's: symbols it does not know are noted, unless essential.
        :raises BuildError: naming the options that were lost.
        """
        config = load_fragments(self._dir, variant.fragments)
        objects.mkdir(exist_ok=True)
        allconfig = objects / "liveupdate.config"
        allconfig.write_text(config.render())
        deadline = Deadline.after(CONFIG_S, "make allnoconfig")
        run_tool(config_argv(src, objects, allconfig), deadline, "cannot configure the kernel")
        found = kconfig.parse_config((objects / ".config").read_text())
        lost = config.missing_from(found)
        if own and lost:
            known = _defined_symbols(src)
            for difference in lost:
                if difference.symbol not in known and difference.symbol not in BY_SYMBOL:
                    self._steps.note(f"{src} does not know CONFIG_{difference.symbol}")
            lost = tuple(d for d in lost if d.symbol in known or d.symbol in BY_SYMBOL)
        if lost:
            raise BuildError(
                f"kernel {variant.name}: these options did not survive configuration: "
                + ", ".join(map(str, lost)),
                hint="a dependency is missing in guest-images/kernel/config",
            )

    def _say_waiting(self) -> None:
        self._steps.note("waiting for another build of the same")


def compile_kernel(argv: Sequence[str], what: str, log: Path, steps: Steps) -> None:
    """Run make, note its progress and keep what it prints in ``log``.

    :raises BuildError: with the build's own errors.
    """
    deadline = Deadline.after(BUILD_S, what)
    with (
        steps.step(f"{what}: compile"),
        log.open("wb") as stream,
        proc.spawn(argv, stdout=stream, stderr=stream, env=BUILD_ENV, tree=True) as child,
    ):
        due = Deadline.after(PROGRESS_S, "progress")

        def probe() -> int | None:
            nonlocal due
            if child.returncode is None and due.expired:
                compiled = log.read_bytes().count(b"\n  CC ")
                steps.note(f"{what}: {compiled} files compiled")
                due = Deadline.after(PROGRESS_S, "progress")
            return child.returncode

        status = wait_until(probe, deadline, interval_s=0.5)
    if status != 0:
        raise BuildError(
            f"{what} does not build (make exit {status}, log {log}):\n"
            + first_errors(log.read_text(errors="replace"))
        )


def first_errors(log: str, limit: int = 15) -> str:
    """Return the error lines of a build log; the last lines when there are none."""
    lines = log.splitlines()
    wrong = [line for line in lines if re.search(r"error:|\*\*\*|undefined reference|FAILED", line)]
    return "\n".join(wrong[:limit] or lines[-limit:])


def _defined_symbols(src: Path) -> frozenset[str]:
    pattern = re.compile(r"^\s*(?:menu)?config\s+(\w+)", re.MULTILINE)
    found: set[str] = set()
    for path in src.rglob("Kconfig*"):
        if path.is_file():
            found.update(pattern.findall(path.read_text(errors="replace")))
    return frozenset(found)
