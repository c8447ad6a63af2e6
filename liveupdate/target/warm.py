# SPDX-License-Identifier: Apache-2.0
"""Warm start: a booted host under update, saved once and loaded by later runs.

QEMU migrates to a file without the RAM (``x-ignore-shared``); the RAM is copied from memfd to a
sparse file and back. A state is in ``$XDG_CACHE_HOME/liveupdate/warm/KEY/``, complete or not at
all; the key is the digest of everything it was made from. A state that does not load is removed.
Must not know what runs in the machine. The caller has stopped the guests' VMMs, because a virtual
CPU in guest mode cannot be loaded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, cast

import msgspec
import xxhash
from msgspec import Meta

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LaunchError, LiveUpdateError
from liveupdate.target.qemu.host import QemuHost
from liveupdate.transport.monitor import Monitor

log = logging.getLogger(__name__)

FORMAT: Final = 1
_CHUNK_BYTES = 4 << 20
_SHORT_HOLE_BYTES = 64 << 10
_MAX_META_BYTES = 16 << 20
_CAPABILITIES = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


class WarmStateError(LaunchError):
    """A saved state could not be made or did not load; the caller starts the machine cold."""


class FileMeta(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a state: ``segments`` are (offset, length) of its data, the rest are holes.

    The segments are stored and not read from the file system again, so that ``xxh3`` over them is
    the same on any file system.
    """

    #: in the state's own directory
    name: Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\0]+$")]
    size_bytes: int
    segments: tuple[tuple[int, int], ...]
    xxh3: str


class WarmMeta(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``meta.json``. ``facts`` are the caller's: what it has to know of the machine."""

    format: Literal[1]
    key: str
    qemu_version: str
    memory_bytes: int
    #: host time at which the machine stood still, CLOCK_REALTIME
    saved_realtime_ns: int
    files: tuple[FileMeta, ...]
    facts: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmFigures:
    """Sizes of what was saved, without holes."""

    state_bytes: int
    ram_bytes: int


def make_key(parts: Mapping[str, object]) -> str:
    """Digest everything a state depends on: images, QEMU, machine, guests, command line."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class WarmStore:
    """The saved states of this user. Safe under several runs at once."""

    def __init__(self, root: Path) -> None:
        """:param root: ``cache_dir() / "warm"``; made when needed."""
        self.root = root

    def find(self, key: str) -> WarmMeta | None:
        """Return the state with that key; one that cannot be read is removed."""
        path = self.root / key
        try:
            with (path / "meta.json").open("rb") as file:
                meta = msgspec.json.decode(file.read(_MAX_META_BYTES), type=WarmMeta)
            if meta.key != key:
                raise ValueError(f"key '{meta.key}' in the directory of '{key}'")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("warm state '%s' cannot be used: %s", key, error)
            self.discard(key)
            return None
        return meta

    def save(
        self, host: QemuHost, key: str, facts: Mapping[str, object], deadline: Deadline
    ) -> WarmFigures:
        """Save a running machine, which continues afterwards. Its guests' VMMs are stopped by now.

        :raises WarmStateError: it could not be saved; the machine continues anyway.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.root))
        try:
            with self._locked(exclusive=False):
                host.qmp.execute("stop", {}, deadline)
                try:
                    realtime_ns = time.time_ns()
                    files = _write(host, fresh, deadline)
                finally:
                    host.qmp.execute("cont", {}, deadline)
                meta = WarmMeta(
                    format=FORMAT,
                    key=key,
                    qemu_version=host.qemu_version,
                    memory_bytes=host.spec.memory_bytes,
                    saved_realtime_ns=realtime_ns,
                    files=files,
                    facts=dict(facts),
                )
                # No fsync of a gigabyte: the checksums tell a torn file, and it is only a cache.
                text = msgspec.json.format(msgspec.json.encode(meta), indent=1)
                (fresh / "meta.json").write_bytes(text)
                self._publish(fresh, key)
        except (OSError, LiveUpdateError) as error:
            if isinstance(error, WarmStateError):
                raise
            raise WarmStateError(f"the state could not be saved: {error}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return WarmFigures(
            state_bytes=files[0].size_bytes, ram_bytes=sum(size for _at, size in files[1].segments)
        )

    def load(self, host: QemuHost, state: WarmMeta, deadline: Deadline) -> None:
        """Start a machine from a state; ``host.resume()`` lets it run.

        :raises WarmStateError: it did not load and was removed. The caller shuts ``host`` down.
        """
        try:
            with self._locked(exclusive=False):
                _read(host, self.root / state.key, state, deadline)
        except (OSError, KeyError, ValueError, LiveUpdateError) as error:
            self.discard(state.key)
            raise WarmStateError(f"the saved state did not load: {error}") from error

    def discard(self, key: str) -> None:
        """Remove a state. Idempotent."""
        path = self.root / key
        doomed = self.root / f".{key}.doomed.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            # out of the way at once; a run that is loading it keeps its open files
            path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def prune(self, keep_bytes: int) -> tuple[str, ...]:
        """Remove the least recently used states until the rest fit; return their keys.

        Leftovers of saves that were killed are removed as well.
        """
        removed: list[str] = []
        if not self.root.is_dir():
            return ()
        with self._locked(exclusive=True):
            states: list[tuple[float, int, str]] = []
            for path in self.root.iterdir():
                if path.is_dir() and path.name.startswith("."):
                    shutil.rmtree(path, ignore_errors=True)
                elif path.is_dir():
                    used = sum(item.stat().st_blocks * 512 for item in path.iterdir())
                    states.append((path.stat().st_mtime, used, path.name))
            total = sum(used for _, used, _ in states)
            for _, used, key in sorted(states):
                if total <= keep_bytes:
                    break
                shutil.rmtree(self.root / key)
                removed.append(key)
                total -= used
        return tuple(removed)

    def _publish(self, fresh: Path, key: str) -> None:
        target = self.root / key
        try:
            fresh.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another run was faster; both were made from the same things.
            log.debug("warm state '%s' was there already", key)

    @contextlib.contextmanager
    def _locked(self, *, exclusive: bool) -> Iterator[None]:
        """Keep :meth:`prune` away from a state that is being written or read."""
        with (self.root / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield


def _write(host: QemuHost, directory: Path, deadline: Deadline) -> tuple[FileMeta, ...]:
    """Write QEMU's state, the RAM and the disks, in this order."""
    state = directory / "state"
    host.qmp.execute("migrate-set-capabilities", _CAPABILITIES, deadline)
    host.qmp.execute("migrate", {"uri": f"file:{state}"}, deadline)
    _wait_migrated(host.qmp, deadline)
    files = [_describe(state), _save_sparse(host.ram_fd, directory / "ram")]
    for path in host.disks.values():
        with path.open("rb") as disk:
            files.append(_save_sparse(disk.fileno(), directory / f"disk-{path.name}"))
    return tuple(files)


def _read(host: QemuHost, path: Path, meta: WarmMeta, deadline: Deadline) -> None:
    files = {item.name: item for item in meta.files}
    if meta.memory_bytes != host.spec.memory_bytes:
        raise ValueError(f"it has {meta.memory_bytes} bytes of RAM")
    host.prepare()
    _load_sparse(path, files["ram"], host.ram_fd)
    for target in host.disks.values():
        with target.open("r+b") as disk:
            _load_sparse(path, files[f"disk-{target.name}"], disk.fileno())
    if _describe(path / "state") != files["state"]:
        raise ValueError("'state' is not as it was saved")
    # the newest are kept longest
    os.utime(path)
    host.start(deadline, incoming=True)
    host.qmp.execute("migrate-set-capabilities", _CAPABILITIES, deadline)
    host.qmp.execute("migrate-incoming", {"uri": f"file:{path / 'state'}"}, deadline)
    _wait_migrated(host.qmp, deadline)


def _wait_migrated(qmp: Monitor, deadline: Deadline) -> None:
    """Wait for the end of a migration.

    :raises WarmStateError: with QEMU's message.
    """

    def look() -> Mapping[str, object] | None:
        answer = cast("Mapping[str, object]", qmp.execute("query-migrate", {}, deadline))
        return answer if answer.get("status") in ("completed", "failed", "cancelled") else None

    answer = wait_until(look, deadline, interval_s=0.005)
    if answer["status"] != "completed":
        raise WarmStateError(
            f"QEMU: migration {answer['status']}: {answer.get('error-desc', 'no reason given')}"
        )


def find_segments(descriptor: int, size_bytes: int) -> tuple[tuple[int, int], ...]:
    """Return (offset, length) of each piece of data; short holes count as data."""
    found: list[tuple[int, int]] = []
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        offset = min(os.lseek(descriptor, start, os.SEEK_HOLE), size_bytes)
        if found and start - sum(found[-1]) < _SHORT_HOLE_BYTES:
            start = found.pop()[0]
        found.append((start, offset - start))
    return tuple(found)


def _save_sparse(source: int, target: Path) -> FileMeta:
    """Copy the data without the holes; sendfile takes half the time of any copy through user
    space.
    """
    size_bytes = os.fstat(source).st_size
    segments = find_segments(source, size_bytes)
    with target.open("w+b") as file:
        file.truncate(size_bytes)
        for start, length in segments:
            os.lseek(file.fileno(), start, os.SEEK_SET)
            done = 0
            while done < length:
                sent = os.sendfile(file.fileno(), source, start + done, length - done)
                if sent == 0:
                    raise OSError(errno.EIO, "the file became shorter while it was copied")
                done += sent
    return _describe(target, segments)


def _describe(path: Path, segments: tuple[tuple[int, int], ...] | None = None) -> FileMeta:
    with path.open("rb") as file, _mapped(file.fileno()) as (view, size_bytes):
        segments = ((0, size_bytes),) if segments is None else segments
        digest = xxhash.xxh3_64()
        for start, length in segments:
            with view[start : start + length] as data:
                digest.update(data)
    return FileMeta(
        name=path.name, size_bytes=size_bytes, segments=segments, xxh3=digest.hexdigest()
    )


def _load_sparse(directory: Path, meta: FileMeta, target: int) -> None:
    """Fill ``target``. Into a memfd, writing from a mapping is faster than anything else tried;
    sendfile, which splices page by page, takes eight times as long.

    :raises ValueError: the file is not as it was saved.
    """
    digest = xxhash.xxh3_64()
    with (directory / meta.name).open("rb") as file, _mapped(file.fileno()) as (view, size_bytes):
        if size_bytes != meta.size_bytes:
            raise ValueError(f"'{meta.name}' has {size_bytes} bytes, not {meta.size_bytes}")
        os.ftruncate(target, 0)
        os.ftruncate(target, size_bytes)
        for start, length in meta.segments:
            for at in range(start, start + length, _CHUNK_BYTES):
                with view[at : min(at + _CHUNK_BYTES, start + length)] as chunk:
                    digest.update(chunk)
                    _pwrite_all(target, chunk, at)
    if digest.hexdigest() != meta.xxh3:
        raise ValueError(f"'{meta.name}' is not as it was saved")


def _pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        with data[done:] as rest:
            done += os.pwrite(descriptor, rest, offset + done)


@contextlib.contextmanager
def _mapped(descriptor: int) -> Iterator[tuple[memoryview, int]]:
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes == 0:
        yield memoryview(b""), 0
        return
    with (
        mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ) as mapping,
        memoryview(mapping) as view,
    ):
        yield view, size_bytes
