# SPDX-License-Identifier: Apache-2.0
"""The facts of a kernel image: read from its bytes and the configuration beside it, and kept."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import msgspec
from msgspec import UNSET

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError, CommandFailed
from liveupdate.formats import kconfig
from liveupdate.formats.kernelimage import KernelFacts, KernelImageError, read_kernel_image
from liveupdate.images.cache import file_sha256
from liveupdate.model.kernel_needs import lacking
from liveupdate.model.plan import KernelImage


def _unpack_lzo(data: bytes) -> bytes:
    """Unpack with lzop(1): no library of PyPI that is free to link does."""
    with tempfile.TemporaryDirectory() as name:
        packed, plain = Path(name, "a.lzo"), Path(name, "a")
        packed.write_bytes(data)
        argv = ["lzop", "-d", "-o", str(plain), str(packed)]
        try:
            # lzop complains of what the kernel's build appends, after it has unpacked all
            proc.run(argv, deadline=Deadline.after(60.0, "lzop"), check=False)
            return plain.read_bytes()
        except (CommandFailed, OSError) as error:
            raise KernelImageError(f"LZO needs lzop(1), which failed: {error}") from error


def read_facts(path: Path) -> KernelFacts:
    """Read what an image says of itself, with the configuration beside it when it has none in it.

    :raises BuildError: it is no kernel, or cannot be decoded.
    """
    try:
        facts = read_kernel_image(path.read_bytes(), _unpack_lzo)
        if facts.config is None:
            found = config_beside(path, facts.release)
            if found is not None:
                config = kconfig.parse_config(found.read_text(), str(found))
                facts = dataclasses.replace(facts, config=config)
    except OSError as error:
        raise BuildError(f"cannot read kernel '{path}': {error.strerror}") from error
    except (KernelImageError, kconfig.KconfigError) as error:
        raise BuildError(f"'{path}' is not a kernel that can be used: {error}") from error
    return facts


def config_beside(path: Path, release: str) -> Path | None:
    """Return the configuration that lies where builds and distributions put it, or None."""
    names = [".config", "config", f"config-{release}"]
    if path.parent.name == "boot" and path.parent.parent.parent.name == "arch":
        names.append("../../../.config")
    return next((found for name in names if (found := path.parent / name).is_file()), None)


def read_image(path: Path) -> KernelImage:
    """Read an image's facts as a run needs them.

    :raises BuildError: as :func:`read_facts`.
    """
    facts = read_facts(path)
    return KernelImage(
        path=str(path),
        sha256=file_sha256(path),
        release=facts.release,
        build_id=facts.build_id,
        abi=facts.abi,
        features=facts.features,
        lacks=UNSET if facts.config is None else lacking(facts.config.values),
    )


def write_image_json(path: Path, image: KernelImage, origin: str) -> None:
    """Write the facts beside an image, so that later readers need not unpack it."""
    facts = {**msgspec.to_builtins(image), "origin": origin}
    del facts["path"]
    path.write_text(json.dumps(facts, indent=1))


def read_image_json(entry: Path) -> KernelImage:
    """Return the facts of a cache entry that :class:`KernelBuilder` made.

    One that an earlier version made has no ``lacks`` in it, but its ``config``.
    """
    facts = json.loads((entry / "image.json").read_text())
    del facts["origin"]
    if "lacks" not in facts and (entry / "config").is_file():
        facts["lacks"] = lacking(kconfig.parse_config((entry / "config").read_text()).values)
    return msgspec.convert({**facts, "path": str(entry / "bzImage")}, KernelImage)
