# SPDX-License-Identifier: Apache-2.0
"""Content-addressed cache of built things.

An entry is a directory ``KIND/DIGEST`` that appears whole, by rename(2), or not at all. Of two
builders of the same entry, the second waits for the first's flock(2) and then uses its result. The
kernel drops the lock of a builder that died in any way. Must not know what is built.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core.atomic_write import atomic_write
from liveupdate.core.errors import BuildError

#: hex digits of a SHA-256 that make a directory's name
DIGEST_DIGITS = 24
_INFO = "entry.json"


def digest_of(parts: Mapping[str, str]) -> str:
    """Digest named inputs; the names are part of it, their order is not."""
    canonical = json.dumps(dict(parts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_DIGITS]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_sha256(root: Path, pattern: str = "*") -> str:
    """SHA-256 over names, modes and bytes of the files under a directory, hex."""
    total = hashlib.sha256()
    for path in sorted(root.rglob(pattern)):
        if path.is_file() and "__pycache__" not in path.parts:
            executable = bool(path.stat().st_mode & 0o100)
            line = f"{path.relative_to(root)}\0{int(executable)}\0{file_sha256(path)}\n"
            total.update(line.encode())
    return total.hexdigest()


class SourcesChanged(BuildError):
    """The inputs of an image changed while it was being built."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the sources of '{name}' changed while it was being built")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing in the cache."""

    kind: str
    digest: str
    path: Path
    size_bytes: int
    #: seconds since the epoch, of the last :meth:`Cache.find` that returned it
    used_at: float
    #: what it was made from, as given to :meth:`Cache.build`
    inputs: Mapping[str, str]

    @property
    def name(self) -> str:
        """The image's name."""
        return self.inputs.get("name", self.kind)


class Cache:
    """A directory of entries; see the module's docstring for the guarantees."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path_of(self, kind: str, digest: str) -> Path:
        """Return where an entry is, or would be."""
        return self.root / kind / digest

    def find(self, kind: str, digest: str) -> Path | None:
        """Return an entry's directory and note its use, or None."""
        path = self.path_of(kind, digest)
        try:
            os.utime(path / _INFO)
        except OSError:
            return None
        return path

    def build(
        self,
        kind: str,
        inputs: Mapping[str, str],
        builder: Callable[[Path], None],
        *,
        again: Callable[[], Mapping[str, str]] | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> Path:
        """Return the entry for ``inputs``; make it with ``builder`` when there is none.

        :param builder: fills the empty directory it is given. When it raises, nothing is left.
        :param again: reads the inputs once more when the builder is done.
        :param waiting: called once when another process builds the same entry just now.
        :raises SourcesChanged: the inputs changed during the build, so it is unknown what was
            built.
        """
        digest = digest_of(inputs)
        if found := self.find(kind, digest):
            return found
        with self.locked(f"{kind}-{digest}", waiting=waiting):
            if found := self.find(kind, digest):
                return found
            final = self.path_of(kind, digest)
            final.parent.mkdir(parents=True, exist_ok=True)
            for stale in final.parent.glob(f".{digest}-*"):
                # Left by a builder that was killed: it would hold the lock if it lived.
                shutil.rmtree(stale, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=final.parent))
            try:
                builder(scratch)
                if again is not None and again() != inputs:
                    raise SourcesChanged(inputs.get("name", kind))
                atomic_write(scratch / _INFO, json.dumps(dict(inputs), indent=1).encode())
                scratch.chmod(0o755)
                if final.exists():
                    # Left by a gc that was interrupted: it removes entry.json first.
                    shutil.rmtree(final)
                scratch.rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return final

    @contextmanager
    def locked(self, name: str, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock called ``name`` against other processes (and other threads)."""
        directory = self.root / "locks"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BuildError(
                f"cannot use the image cache '{self.root}': {error.strerror}",
                hint="set XDG_CACHE_HOME to a directory you can write to",
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The file stays: unlinking it would let two processes lock two different inodes.
            yield
        finally:
            os.close(descriptor)

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries, by kind and then latest use first."""
        found = [
            self._entry(path)
            for path in self.root.glob(f"*/*/{_INFO}")
            # by-name/NAME is a link to an entry, which is there already
            if not path.parent.is_symlink()
        ]
        return tuple(sorted(found, key=lambda entry: (entry.kind, -entry.used_at)))

    def remove_older(self, used_before: float, *, keep: frozenset[Path] = frozenset()) -> int:
        """Remove entries not used since ``used_before`` (epoch seconds); return bytes freed.

        Entries that are being built are not seen; left-overs of builders that died are removed.
        """
        freed = 0
        for entry in self.entries():
            if entry.used_at < used_before and entry.path not in keep:
                with self.locked(f"{entry.kind}-{entry.digest}"):
                    (entry.path / _INFO).unlink(missing_ok=True)
                    shutil.rmtree(entry.path, ignore_errors=True)
                freed += entry.size_bytes
        for scratch in self.root.glob("*/.*-*"):
            freed += self._remove_stale(scratch)
        return freed

    def _remove_stale(self, scratch: Path) -> int:
        digest = scratch.name[1:].partition("-")[0]
        lock = self.root / "locks" / f"{scratch.parent.name}-{digest}"
        try:
            with lock.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = tree_bytes(scratch)
                shutil.rmtree(scratch, ignore_errors=True)
                return size
        except OSError:
            # Another process builds it, or there was never a lock and it is no entry.
            return 0

    def _entry(self, info: Path) -> Entry:
        inputs = json.loads(info.read_bytes())
        return Entry(
            kind=info.parent.parent.name,
            digest=info.parent.name,
            path=info.parent,
            size_bytes=tree_bytes(info.parent),
            used_at=info.stat().st_mtime,
            inputs={str(key): str(value) for key, value in inputs.items()},
        )


def tree_bytes(root: Path) -> int:
    """Bytes on disk under a directory; sparse files count what they hold."""
    total = 0
    for directory, _, files in os.walk(root):
        for name in files:
            total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total
