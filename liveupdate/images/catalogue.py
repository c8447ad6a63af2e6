# SPDX-License-Identifier: Apache-2.0
"""All images by name: build, list, resolve for a run, collect garbage. Used by the ``images``
verbs.

Nothing is stored about what is current: an image's digest follows from its sources in the checkout
and the compiler, so an image exists or has to be built.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from liveupdate.core import paths
from liveupdate.core.errors import BuildError, PlanError
from liveupdate.core.steps import Steps
from liveupdate.images import debianhost, guest, kernel, kernel_facts, kit, modules, rootfs
from liveupdate.images.cache import Cache, Entry, digest_of, file_sha256, tree_bytes
from liveupdate.model.plan import ImageSet, KernelImage

DEFAULT = ("kernel-a", "kernel-b", "modules-a", "modules-b", "rootfs", "guest")
"""What a run needs; built by ``images build``."""
TESTS = (
    "kernel-skew", "kernel-renamed", "kernel-stock", "kernel-nokho", "selftests", "debian-host",
)  # fmt: skip
"""What only tests need; built in addition by ``images build --tests``."""
KEEP_DAYS = 14.0

_HINT = "liveupdate images build"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """One line of ``images list``. ``detail`` is a release, a package count or the like."""

    entry: Entry
    #: a run would use it now
    is_current: bool
    detail: str


def open_cache() -> Cache:
    """Return the image cache of this user."""
    return Cache(paths.cache_dir() / "images")


def build(which: Sequence[str], *, steps: Steps) -> tuple[Path, ...]:
    """Build images that are not in the cache yet.

    :param which: names out of :data:`DEFAULT` and :data:`TESTS`; none means :data:`DEFAULT`.
    :return: the images' files, in the order of ``which``.
    :raises BuildError: with the last lines of the tool that failed.
    """
    cache = open_cache()
    sources = paths.guest_images_dir()
    names = tuple(which) or DEFAULT
    unknown = [name for name in names if name not in DEFAULT + TESTS]
    if unknown:
        known = ", ".join(DEFAULT + TESTS)
        raise BuildError(f"no image '{unknown[0]}'", hint=f"known: {known}")
    compiler = need_compiler()
    kernels = kernel.KernelBuilder(cache, sources / "kernel", steps)
    module_sets = modules.ModulesBuilder(cache, sources / "kernel", sources / "modules", steps)

    def build_kernel(variant: kernel.Variant) -> Path:
        return kernels.build(variant) / "bzImage"

    builders: dict[str, Callable[[], Path]] = {
        "rootfs": lambda: (
            rootfs.build_rootfs(cache, sources / "host", compiler, steps) / "rootfs.ext4"
        ),
        "debian-host": lambda: debianhost.build(cache, steps) / "rootfs.ext4",
        "guest": lambda: (
            guest.build_guest(cache, sources / "guest", compiler, sys.executable, steps)
            / guest.IMAGE
        ),
        # in the order of VARIANTS, which is the cheap one
        **{f"kernel-{v.name}": partial(build_kernel, v) for v in kernel.VARIANTS},
        **{f"modules-{v.name}": partial(module_sets.build, v) for v in kernel.VARIANTS},
        "selftests": lambda: modules.build_selftests(
            cache, sources / "selftests", sources / "modules", compiler, steps
        ),
    }
    built = {name: make() for name, make in builders.items() if name in names}
    for name, path in built.items():
        _link(cache, name, path)
    return tuple(built[name] for name in names)


def need_compiler() -> str:
    """Return the version of the compiler that images are built with.

    :raises BuildError: there is none.
    """
    compiler = kernel.compiler_version()
    if compiler == "none":
        raise BuildError("gcc and ld are needed to build images", hint="run 'make setup'")
    return compiler


def _link(cache: Cache, name: str, path: Path) -> None:
    """Let ``by-name/NAME`` point at the last build; for people, no code reads it."""
    directory = cache.root / "by-name"
    directory.mkdir(parents=True, exist_ok=True)
    # two builders may get here at the same time
    fresh = directory / f".{name}.{secrets.token_hex(4)}"
    fresh.symlink_to(Path("..") / path.relative_to(cache.root))
    fresh.replace(directory / name)


def current_digests() -> dict[str, tuple[str, str]]:
    """Map each image's name to (kind, digest) as the checkout and the compiler are now."""
    sources = paths.guest_images_dir()
    compiler = kernel.compiler_version()
    found = {
        f"kernel-{variant.name}": (
            "kernel",
            digest_of(kernel.inputs_of(sources / "kernel", variant, compiler)),
        )
        for variant in kernel.VARIANTS
    }
    for name in modules.VARIANTS:
        inputs = modules.modules_inputs(
            sources / "modules", kernel.find_variant(name), found[f"kernel-{name}"][1]
        )
        found[f"modules-{name}"] = (modules.KIND, digest_of(inputs))
    tests = modules.selftests_inputs(sources / "selftests", sources / "modules", compiler)
    found["selftests"] = ("selftests", digest_of(tests))
    found["rootfs-base"] = ("rootfs-base", digest_of(rootfs.base_inputs()))
    found["rootfs"] = ("rootfs", digest_of(rootfs.rootfs_inputs(sources / "host", compiler)))
    found["debian-host"] = ("debian-host", digest_of(debianhost.inputs()))
    found["guest"] = ("guest", digest_of(guest.guest_inputs(sources / "guest", compiler)))
    return found


def find_image(name: str) -> Path:
    """Return the directory of a built image.

    :raises PlanError: it has not been built.
    """
    entry = open_cache().find(*current_digests()[name])
    if entry is None:
        raise PlanError(f"image '{name}' has not been built", hint=f"run '{_HINT} {name}'")
    return entry


def find_kernel(name: str) -> KernelImage:
    """Return a built kernel by name, such as "kernel-nokho"; errors as :func:`find_image`."""
    return kernel_facts.read_image_json(find_image(name))


def needed(outgoing: Path | None, incoming: Path | None) -> tuple[str, ...]:
    """Return the names of the images that :func:`resolve` needs for these kernels."""
    return (
        "rootfs",
        "guest",
        *(("kernel-a", "modules-a") if outgoing is None else ()),
        *(("kernel-b", "modules-b") if incoming is None else ()),
    )


def find_missing(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of ``names`` that have not been built, in the same order."""
    cache, digests = open_cache(), current_digests()
    return tuple(name for name in names if cache.find(*digests[name]) is None)


def _with_modules(entries: dict[str, Path], variant: str) -> KernelImage:
    """Return a built kernel together with the modules for it."""
    image = kernel_facts.read_image_json(entries[f"kernel-{variant}"])
    return replace(image, modules=str(entries[f"modules-{variant}"]))


def name_or_read(kernel_or_path: str) -> KernelImage:
    """Return a built kernel by its name, such as "kernel-a", with the modules for it; or an image.

    :raises PlanError: it has not been built, or is no kernel.
    """
    digests = current_digests()
    if kernel_or_path not in digests or Path(kernel_or_path).exists():
        return read_kernel(Path(kernel_or_path))
    image = find_kernel(kernel_or_path)
    modules_of = digests.get(kernel_or_path.replace("kernel-", "modules-"))
    found = modules_of and open_cache().find(*modules_of)
    return replace(image, modules=str(found)) if found else image


def read_kernel(path: Path) -> KernelImage:
    """Read the facts of the user's own bzImage; they are cached, because unpacking takes a second.

    :raises PlanError: the file cannot be read or is no kernel.
    """
    try:
        config = kernel_facts.config_beside(path, "")
        inputs = {
            "name": "facts",
            "image": file_sha256(path),
            "config": file_sha256(config) if config else "",
            "recipe": "2",
        }

        def builder(scratch: Path) -> None:
            image = kernel_facts.read_image(path)
            kernel_facts.write_image_json(scratch / "image.json", image, str(path))

        entry = open_cache().build("facts", inputs, builder)
    except OSError as error:
        raise PlanError(f"cannot read kernel '{path}': {error.strerror}") from error
    except BuildError as error:
        raise PlanError(error.message) from error
    return replace(kernel_facts.read_image_json(entry), path=str(path.resolve()))


def resolve(outgoing: Path | None, incoming: Path | None) -> ImageSet:
    """Return the images of a run.

    :param outgoing: the user's own outgoing bzImage, or None for the built one; ``incoming``
        likewise.
    :raises PlanError: something has not been built, or is no kernel.
    """
    cache = open_cache()
    digests = current_digests()
    found = {name: cache.find(kind, digest) for name, (kind, digest) in digests.items()}
    missing = sorted(name for name in needed(outgoing, incoming) if found[name] is None)
    if missing:
        raise PlanError(f"not built yet: {', '.join(missing)}", hint=f"run '{_HINT}'")
    entries = {name: path for name, path in found.items() if path is not None}
    first = read_kernel(outgoing) if outgoing else _with_modules(entries, "a")
    second = read_kernel(incoming) if incoming else _with_modules(entries, "b")
    root = entries["rootfs"]
    # Guests keep the built kernel when the host gets the user's, which may lack virtio.
    guest_kernel = entries["kernel-a"] / "bzImage" if "kernel-a" in entries else Path(first.path)
    return ImageSet(
        outgoing=first,
        incoming=second,
        guest_kernel=str(guest_kernel),
        guest_initrd=str(entries["guest"] / guest.IMAGE),
        rootfs=str(root / "rootfs.ext4"),
        rootfs_sha256=json.loads((root / "image.json").read_text())["sha256"],
        ssh_client_key=str(root / "client_key"),
        ssh_host_key_pub=str(root / "ssh_host_key.pub"),
    )


def make_kit(images: ImageSet) -> Path:
    """Return the kit disk for these images; build it if necessary.

    :raises BuildError: the agent does not compile.
    """
    cache = open_cache()
    base = cache.find("rootfs-base", digest_of(rootfs.base_inputs()))
    return kit.build_kit(cache, images, base / "python" if base else None)


def listing() -> tuple[ImageInfo, ...]:
    """Return all images in the cache, current ones first within each kind."""
    current = set(current_digests().values())
    found = [
        ImageInfo(
            entry=entry,
            is_current=(entry.kind, entry.digest) in current,
            detail=_describe(entry.path),
        )
        for entry in open_cache().entries()
        if entry.kind != "facts"
    ]
    return tuple(
        sorted(found, key=lambda info: (info.entry.kind, not info.is_current, info.entry.name))
    )


def _describe(entry: Path) -> str:
    if (entry / "bzImage").exists():
        image = kernel_facts.read_image_json(entry)
        return f"{image.release}, build id {image.build_id[:12]}, {' '.join(image.abi) or 'no KHO'}"
    if (entry / "release").exists():
        count = len(list(entry.glob("*.ko")))
        return f"{count} modules for {(entry / 'release').read_text()}"
    if (entry / "packages").exists():
        lines = (entry / "packages").read_text().splitlines()
        qemu = [line.split()[1] for line in lines if line.startswith("qemu-system-x86 ")]
        return f"{len(lines)} packages, QEMU {qemu[0] if qemu else 'none'}"
    return ""


def gc(*, keep_days: float = KEEP_DAYS, everything: bool = False) -> tuple[int, int]:
    """Remove images that no run has used for ``keep_days``; current ones stay.

    :param everything: remove all, also current images and the kernel's build trees.
    :return: how many were removed, and how many bytes that freed.
    """
    cache = open_cache()
    before = len(cache.entries())
    current = frozenset(cache.path_of(*pair) for pair in current_digests().values())
    limit = time.time() + 1 if everything else time.time() - keep_days * 86400
    freed = cache.remove_older(limit, keep=frozenset() if everything else current)
    for tree in sorted((cache.root / "build").glob("*")):
        used_at = max((path.stat().st_mtime for path in tree.iterdir()), default=0.0)
        lock = tree.name if tree.name.startswith("tree-") else kernel.TREE_LOCK
        if used_at < limit:
            with cache.locked(lock):
                freed += tree_bytes(tree)
                shutil.rmtree(tree)
    return before - len(cache.entries()), freed
