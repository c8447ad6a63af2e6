# SPDX-License-Identifier: Apache-2.0
"""The one kernel source tree in which all variants are built, and the patches applied to it.

It is kept between builds, so that a variant that differs by one patch or option costs a few objects
and a link instead of a whole build. Must not know configs or compilers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.images import source


@dataclass(frozen=True, slots=True)
class BuildTree:
    """A directory of ``src``, ``o`` (objects), ``applied`` (copies of its patches), ``origin``."""

    root: Path

    @property
    def src(self) -> Path:
        """Directory of the patched source."""
        return self.root / "src"

    @property
    def objects(self) -> Path:
        """Directory of the objects (``O=``)."""
        return self.root / "o"

    @property
    def _applied(self) -> Path:
        return self.root / "applied"

    @property
    def _dirty(self) -> Path:
        return self.root / "dirty"

    def origin(self) -> str:
        """Return package and version of what is unpacked here."""
        return (self.root / "origin").read_text().strip()

    def is_ready(self) -> bool:
        """Whether there is a source tree whose patches are known."""
        return self.src.is_dir() and not self._dirty.exists()

    def prepare(self, pin: source.Base, *, say: Callable[[str], None]) -> None:
        """Fetch the source tree unless there is one that can be trusted."""
        if self.is_ready():
            return
        # Interrupted within a patch: only a fresh tree is known to be right.
        for stale in (self.src, self._applied, self._dirty):
            if stale.is_dir():
                shutil.rmtree(stale)
            stale.unlink(missing_ok=True)
        self._applied.mkdir(parents=True)
        fresh = self.root / "src.new"
        shutil.rmtree(fresh, ignore_errors=True)
        package, version = source.fetch_source(pin, fresh, say=say)
        (self.root / "origin").write_text(f"{package} {version}\n")
        fresh.rename(self.src)

    def apply(self, directory: Path, patches: tuple[str, ...]) -> None:
        """Apply exactly these patches; files that do not change keep their times.

        :raises BuildError: a patch does not apply.
        """
        wanted = [(directory / name).read_bytes() for name in patches]
        held = sorted(self._applied.iterdir())
        common = 0
        while common < min(len(wanted), len(held)) and held[common].read_bytes() == wanted[common]:
            common += 1
        if common == len(held) == len(wanted):
            return
        self._dirty.touch()
        for patch in reversed(held[common:]):
            command = ["patch", "-p1", "--reverse", "--fuzz=0", "--batch", "--input", str(patch)]
            deadline = Deadline.after(60.0, f"the removal of {patch.name}")
            proc.run([*command, "--directory", str(self.src)], deadline=deadline)
            patch.unlink()
        for index, name in enumerate(patches[common:], start=common):
            source.apply_patches(self.src, directory, (name,))
            (self._applied / f"{index:04}").write_bytes(wanted[index])
        self._dirty.unlink()
