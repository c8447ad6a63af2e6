# SPDX-License-Identifier: Apache-2.0
"""The evidence of a run as one file for a change ticket, with the digest of every file in it.

A gzip'ed tar. Its first member, ``manifest.json``, names every other member with size and sha256;
the digest of the whole file goes into the ticket. Its name has the beginning of the run's seal
(:mod:`liveupdate.evidence.chain`) in it. A bundle is untrusted input when it is judged: sizes are
looked at first, names checked, and only members in the manifest are unpacked, piece by piece.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import liveupdate
from liveupdate.core.errors import EvidenceError
from liveupdate.evidence.beneath import MAX_FILES
from liveupdate.evidence.chain import read_seal
from liveupdate.evidence.files import StoreError, write_atomic

FORMAT = 1
MANIFEST = "manifest.json"
SUFFIX = ".bundle.tar.gz"
MAX_MANIFEST_BYTES = 16 << 20
MAX_TOTAL_BYTES = 64 << 30
#: how much of the seal is in the name
SEAL_DIGITS = 16
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was written. ``sha256`` is of the whole file."""

    path: Path
    sha256: str
    files: int


def make_bundle(run_dir: Path) -> Bundle:
    """Write the bundle of a run directory beside it.

    :raises StoreError: it cannot be written, or a file cannot be read.
    """
    path = run_dir.with_name(f"{run_dir.name}.{read_seal(run_dir)[:SEAL_DIGITS]}{SUFFIX}")
    try:
        names = sorted(
            each.relative_to(run_dir).as_posix()
            for each in run_dir.rglob("*")
            if each.is_file() and not each.is_symlink() and not each.name.startswith(".")
        )
        contents = {name: (run_dir / name).read_bytes() for name in names}
    except OSError as error:
        raise StoreError(run_dir, error) from error
    manifest = {
        "bundle": FORMAT,
        "run": run_dir.name,
        "tool_version": liveupdate.__version__,
        "made_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in contents.items()
        },
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, MANIFEST, json.dumps(manifest, indent=1).encode())
        for name, data in contents.items():
            _add(tar, name, data)
    whole = out.getvalue()
    write_atomic(path, whole, mode=0o600)
    return Bundle(path=path, sha256=hashlib.sha256(whole).hexdigest(), files=len(contents))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o600
    tar.addfile(info, io.BytesIO(data))


def unpack(bundle: Path, directory: Path) -> Path:
    """Check a bundle and unpack it below ``directory``; return the run directory.

    :raises EvidenceError: it was altered, or is no bundle; none of it can be trusted.
    """
    try:
        with gzip.open(bundle) as stream:
            root = _unpack(stream, bundle, directory)
    except (OSError, tarfile.TarError, EOFError, ValueError, zlib.error) as error:
        raise EvidenceError(f"'{bundle}' is no bundle that can be read: {error}") from error
    named = re.search(rf"\.([0-9a-f]{{{SEAL_DIGITS}}}){re.escape(SUFFIX)}$", bundle.name)
    if named and not read_seal(root).startswith(named[1]):
        raise EvidenceError(f"'{bundle}' is named after another seal than that of its run")
    return root


def _unpack(stream: gzip.GzipFile, bundle: Path, directory: Path) -> Path:
    first = _next_member(stream)
    if first is None or first.name != MANIFEST or first.size > MAX_MANIFEST_BYTES:
        raise EvidenceError(f"'{bundle}' does not begin with '{MANIFEST}'")
    out = io.BytesIO()
    _copy(stream, first, out)
    files, run = _read_manifest(out.getvalue(), bundle)
    wanted = sum(size for size, _ in files.values())
    if wanted > shutil.disk_usage(directory).free:
        raise EvidenceError(f"'{bundle}' needs {wanted} bytes below '{directory}', there are less")
    root = directory / run
    root.mkdir(mode=0o700)
    seen: set[str] = set()
    while (member := _next_member(stream)) is not None:
        name = member.name
        if name in seen or name not in files:
            raise EvidenceError(f"'{bundle}': '{name}' is not in its manifest, or there twice")
        size, sha256 = files[name]
        if member.size != size:
            raise EvidenceError(f"'{bundle}': '{name}' has {member.size} bytes, not {size}")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("xb") as file:
            if _copy(stream, member, file) != sha256:
                raise EvidenceError(f"'{bundle}': '{name}' was altered after the bundle was made")
        seen.add(name)
    if missing := sorted(set(files) - seen):
        raise EvidenceError(f"'{bundle}': '{missing[0]}' is missing")
    return root


def _next_member(stream: gzip.GzipFile) -> tarfile.TarInfo | None:
    """Read a header; None: it is the end. Only plain files have a place in a bundle: headers that
    describe the next one (PAX, GNU) can be of any size.
    """
    header = stream.read(tarfile.BLOCKSIZE)
    if not header.strip(b"\0"):
        return None
    member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise EvidenceError(f"'{member.name}' is no plain file")
    return member


def _copy(stream: gzip.GzipFile, member: tarfile.TarInfo, to: BinaryIO) -> str:
    """Copy a member piece by piece; return its SHA-256."""
    digest, left = hashlib.sha256(), member.size
    while left > 0:
        if not (piece := stream.read(min(_PIECE, left))):
            raise EvidenceError(f"'{member.name}' is cut short")
        digest.update(piece)
        to.write(piece)
        left -= len(piece)
    stream.read(-member.size % tarfile.BLOCKSIZE)
    return digest.hexdigest()


def _read_manifest(data: bytes, bundle: Path) -> tuple[dict[str, tuple[int, str]], str]:
    """Return (size, sha256) of every file, and the run's name."""
    try:
        manifest = json.loads(data)
        if manifest["bundle"] != FORMAT:
            raise EvidenceError(
                f"'{bundle}' has format {manifest['bundle']}, this tool reads {FORMAT}"
            )
        run = manifest["run"]
        files = {
            name: (int(facts["bytes"]), str(facts["sha256"]))
            for name, facts in manifest["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"'{bundle}': its manifest cannot be read: {error!r}") from error
    if len(files) > MAX_FILES or sum(size for size, _ in files.values()) > MAX_TOTAL_BYTES:
        raise EvidenceError(f"'{bundle}' contains more than any run")
    for name in (run, *files):
        if not _is_safe(name) or (name is run and "/" in run):
            raise EvidenceError(f"'{bundle}' contains a name that leads out of it: {name!r}")
    return files, run


def _is_safe(name: object) -> bool:
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name and name != "."
