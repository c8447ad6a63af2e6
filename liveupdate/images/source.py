# SPDX-License-Identifier: Apache-2.0
"""The kernel's source: Debian's ``linux-source`` package, pinned in ``guest-images/kernel/BASE``.

apt fetches it and checks signatures, with sources, lists and archives of its own in a private
directory: the machine's apt configuration is neither read nor changed, and root is not needed. Must
not know configs or variants.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError, CommandFailed
from liveupdate.images.cache import file_sha256
from liveupdate.images.tool import run_tool

log = logging.getLogger(__name__)

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ABI_HEADERS = "include/linux/kho/abi/*.h"
FETCH_S = 900.0
UNPACK_S = 600.0

_ABI = re.compile(rb'#define\s+\w*COMPATIBLE\w*\s+"([a-z-]+-v\d+)"')


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """The pin: the source that series and fragments are made for."""

    package: str
    version: str
    sha256: str
    suite: str
    abi: tuple[str, ...]


def read_base(path: Path) -> Base:
    """Read ``BASE``.

    :raises BuildError: a key is missing or the file is not TOML.
    """
    try:
        pin = msgspec.toml.decode(path.read_bytes(), type=Base)
    except (OSError, ValueError) as error:
        raise BuildError(f"cannot use '{path}' as the kernel's pin: {error}") from error
    return msgspec.structs.replace(pin, abi=tuple(sorted(pin.abi)))


def apt_options(state: Path) -> tuple[str, ...]:
    """Return options that keep apt inside ``state``, see apt.conf(5)."""
    # fmt: off
    return (
        "-o", f"Dir::Etc::sourcelist={state}/sources.list",
        "-o", "Dir::Etc::sourceparts=/dev/null",
        "-o", "Dir::Etc::preferences=/dev/null",
        "-o", "Dir::Etc::preferencesparts=/dev/null",
        "-o", f"Dir::State::lists={state}/lists",
        "-o", f"Dir::Cache={state}/cache",
        "-o", "APT::Sandbox::User=root",
        "-o", "Acquire::Languages=none",
        "-o", "Acquire::Retries=3",
    )
    # fmt: on


def sources_line(suite: str) -> str:
    """Return the one line of the private sources.list."""
    return f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n"


def parse_candidates(madison: str, pin: Base) -> tuple[tuple[str, str], ...]:
    """Parse ``apt-cache madison`` into (package, version): the pin first, then newest first."""
    rows = [tuple(cell.strip() for cell in line.split("|")) for line in madison.splitlines()]
    found = {(row[0], row[1]) for row in rows if len(row) == 3}
    pinned = (pin.package, pin.version)
    rest = sorted(found - {pinned}, key=lambda item: _version_key(item[1]), reverse=True)
    return ((pinned,) if pinned in found else ()) + tuple(rest)


def _version_key(version: str) -> tuple[int, ...]:
    # Enough to order kernels of one suite; ~ and + only distinguish rebuilds of one version.
    return tuple(int(number) for number in re.findall(r"\d+", version))


def read_abi(tree: Path) -> tuple[str, ...]:
    """Return the compatible strings that a kernel source announces for KHO and LUO, sorted."""
    found = {
        match.decode()
        for path in tree.glob(ABI_HEADERS)
        for match in _ABI.findall(path.read_bytes())
    }
    return tuple(sorted(found))


def fetch_source(pin: Base, target: Path, *, say: Callable[[str], None]) -> tuple[str, str]:
    """Unpack the pinned source to ``target``, or the newest of the same ABI when the pin is gone.

    :param target: must not exist; its parent holds the download meanwhile.
    :param say: called when something other than the pin is used.
    :return: package and version of what was unpacked.
    :raises BuildError: no source fits, or a download differs from the pin.
    """
    if not KEYRING.exists():
        raise BuildError(
            f"no '{KEYRING}' to check Debian's archive with",
            hint="install debian-archive-keyring, or give --kernel-tree DIR",
        )
    state = target.parent / "apt"
    shutil.rmtree(state, ignore_errors=True)
    for directory in ("lists/partial", "cache/archives/partial"):
        (state / directory).mkdir(parents=True)
    (state / "sources.list").write_text(sources_line(pin.suite))
    deadline = Deadline.after(FETCH_S, f"the download of {pin.package}")
    options = apt_options(state)
    try:
        proc.run(["apt-get", *options, "-q", "update"], deadline=deadline)
        pattern = "^linux-source-[0-9.]+$"
        names = proc.run(
            ["apt-cache", *options, "search", "--names-only", pattern], deadline=deadline
        ).stdout
        packages = sorted(line.split()[0] for line in names.splitlines())
        madison = proc.run(["apt-cache", *options, "madison", *packages], deadline=deadline).stdout
        for package, version in parse_candidates(madison, pin):
            is_pin = (package, version) == (pin.package, pin.version)
            deb = _download(options, state, package, version, deadline)
            if is_pin and file_sha256(deb) != pin.sha256:
                raise BuildError(
                    f"'{package}' {version} has SHA-256 {file_sha256(deb)}, pinned is {pin.sha256}"
                )
            _unpack(deb, state / "tree")
            deb.unlink()
            (tree,) = (state / "tree").iterdir()
            if is_pin or read_abi(tree) == pin.abi:
                if not is_pin:
                    say(f"pinned {pin.package} {pin.version} is gone, taking {package} {version}")
                tree.rename(target)
                return package, version
            say(f"{package} {version} has another ABI: {', '.join(read_abi(tree)) or 'none'}")
            shutil.rmtree(state / "tree")
    except CommandFailed as error:
        raise BuildError(
            f"cannot get '{pin.package}' from {MIRROR}: {error}",
            hint="check the network, or give --kernel-tree DIR",
        ) from error
    finally:
        shutil.rmtree(state, ignore_errors=True)
    raise BuildError(
        f"no linux-source in {pin.suite} has the ABI {', '.join(pin.abi)}",
        hint="give --kernel-tree DIR, or move guest-images/kernel/BASE",
    )


def _download(
    options: tuple[str, ...], state: Path, package: str, version: str, deadline: Deadline
) -> Path:
    download = state / "deb"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir()
    command = ["apt-get", *options, "-q", "download", f"{package}={version}"]
    proc.run(command, deadline=deadline, cwd=download)
    (deb,) = download.glob("*.deb")
    return deb


def _unpack(deb: Path, target: Path) -> None:
    """Unpack the one tarball of the package; ``target`` gets its top directory."""
    deadline = Deadline.after(UNPACK_S, f"unpacking of {deb.name}")
    shell = deb.parent / "deb-root"
    proc.run(["dpkg-deb", "--extract", deb, shell], deadline=deadline)
    (tarball,) = shell.glob("usr/src/linux-source-*.tar.*")
    target.mkdir()
    proc.run(
        ["tar", "--extract", "--file", tarball, "--directory", target, "--no-same-owner"],
        deadline=deadline,
        env={"XZ_DEFAULTS": "-T0"},
        tree=True,
    )
    shutil.rmtree(shell)


def series_digest(directory: Path, patches: tuple[str, ...]) -> str:
    """SHA-256 over names and bytes of patches, in order, hex."""
    total = hashlib.sha256()
    for name in patches:
        total.update(f"{name}\0{file_sha256(directory / name)}\n".encode())
    return total.hexdigest()


def read_series(path: Path) -> tuple[str, ...]:
    """Read a quilt series: one patch per line, ``#`` begins a comment."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return tuple(line for line in lines if line)


def apply_patches(tree: Path, directory: Path, patches: tuple[str, ...]) -> None:
    """Apply patches in order.

    :raises BuildError: naming the patch that does not apply, with the output of patch(1).
    """
    command = ("patch", "-p1", "--forward", "--fuzz=0", "--batch", "--no-backup-if-mismatch")
    for name in patches:
        argv = (*command, "--directory", tree, "--input", directory / name)
        deadline = Deadline.after(60.0, f"patch {name}")
        run_tool(argv, deadline, f"patch '{name}' does not apply", tree=False)
