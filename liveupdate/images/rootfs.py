# SPDX-License-Identifier: Apache-2.0
"""The root file system of the host under update: Debian trixie, QEMU from backports, and init.c.

It is built in two stages, each cached: Debian's packages (a minute and the network), then init and
the SSH keys (a second). Neither needs root: without it, mmdebstrap uses user namespaces, and
fakeroot keeps the owners. Must not know kernels or machines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.steps import Steps
from liveupdate.core.units import MIB
from liveupdate.images import ext4
from liveupdate.images.cache import Cache, file_sha256
from liveupdate.images.source import MIRROR
from liveupdate.images.tool import run_tool

SUITE = "trixie"
BACKPORTS = f"{SUITE}-backports"
#: QEMU must know mode=cpr-reboot and preserve memfds; the release's own is too old for some of it
PIN = f"Package: qemu-* seabios ipxe-qemu\nPin: release n={BACKPORTS}\nPin-Priority: 900\n"
PACKAGES = (
    "python3", "openssh-server", "kexec-tools", "kmod", "iproute2", "qemu-system-x86",
    # makes the file system on reserved memory
    "e2fsprogs",
)  # fmt: skip
#: the host under update never reads these directories
EXCLUDED = (
    "/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/share/lintian/*", "/usr/share/bash-completion/*", "/usr/share/zsh/*",
    "/usr/share/zoneinfo/*", "/usr/share/i18n/*", "/usr/lib/x86_64-linux-gnu/gconv/*",
    "/usr/bin/qemu-system-i386", "/usr/bin/qemu-system-x86_64-microvm",
    "/usr/share/qemu/*.dtb", "/usr/share/qemu/hppa-*", "/usr/share/qemu/s390-*",
    "/usr/share/qemu/openbios-*", "/usr/share/qemu/u-boot*", "/usr/share/qemu/slof*",
    "/usr/share/qemu/skiboot*", "/usr/share/qemu/pxe-*", "/usr/share/qemu/palcode-*",
)  # fmt: skip
#: what the interpreter needs to run apart from its own tree, see kit.compile_argv
PYTHON_LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1")
SSHD_CONFIG = """\
# Only the pinned host key, only the pinned client key, and no look-ups that wait for a network.
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
"""
BOOTSTRAP_S = 1200.0
#: run with the new root as $1: keys are made for each image (make_keys), and the kit is mounted
HOOKS = ('rm -f "$1"/etc/ssh/ssh_host_*', 'mkdir -p "$1/kit"')
#: increase when the code below changes the image
RECIPE = "1"


def mmdebstrap_argv(
    target: Path, packages: tuple[str, ...] = PACKAGES, hooks: tuple[str, ...] = HOOKS
) -> tuple[str, ...]:
    """Return the command that makes the tarball of Debian's packages.

    :param hooks: shell commands, each on one line, that are run when the packages are there.
    """
    pin = PIN.replace("\n", "\\n")
    # The hook gets the new root as $1 and runs in mmdebstrap's own shell.
    hook = (
        'mkdir -p "$1/etc/apt/preferences.d"; '
        f'printf "{pin}" > "$1/etc/apt/preferences.d/liveupdate"'
    )
    return (
        "mmdebstrap", "--mode=auto", "--variant=essential", "--format=tar",
        f"--include={','.join(packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "3"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        f"--setup-hook={hook}",
        *(f"--customize-hook={each}" for each in hooks),
        SUITE, str(target), f"deb {MIRROR} {SUITE} main", f"deb {MIRROR} {BACKPORTS} main",
    )  # fmt: skip


def base_inputs() -> dict[str, str]:
    """Return everything that decides the first stage, except the archive's own state."""
    return {"name": "rootfs-base", "recipe": RECIPE, "argv": json.dumps(mmdebstrap_argv(Path("-")))}


def rootfs_inputs(host_dir: Path, compiler: str) -> dict[str, str]:
    """Return everything that decides the second stage."""
    return {
        "name": "rootfs",
        "base": json.dumps(base_inputs(), sort_keys=True),
        "init": file_sha256(host_dir / "init.c"),
        "sshd": SSHD_CONFIG,
        "compiler": compiler,
        "recipe": RECIPE,
    }


def build_base(cache: Cache, steps: Steps) -> Path:
    """Return the entry of the first stage: ``base.ext4``, ``packages``, ``python/``.

    :raises BuildError: mmdebstrap failed; quotes its last lines.
    """

    def builder(scratch: Path) -> None:
        with steps.step("rootfs: Debian packages", suite=SUITE):
            tarball = scratch / "tree.tar"
            run_mmdebstrap(mmdebstrap_argv(tarball))
        with steps.step("rootfs: file system"):
            image = scratch / "base.ext4"
            tree = make_file_system(scratch, tarball, image, "liveupdate-root", 8 * MIB)
            _copy_python(tree, scratch / "python")
            shutil.rmtree(tree)

    return cache.build("rootfs-base", base_inputs(), builder)


def run_mmdebstrap(argv: tuple[str, ...]) -> None:
    """Run a command of :func:`mmdebstrap_argv`.

    :raises BuildError: mmdebstrap failed; quotes its last lines.
    """
    hint = "check the network; without root, /etc/subuid must name you"
    run_tool(argv, Deadline.after(BOOTSTRAP_S, "mmdebstrap"), "mmdebstrap failed", hint=hint)


def make_file_system(
    scratch: Path, tarball: Path, image: Path, label: str, spare_bytes: int
) -> Path:
    """Turn mmdebstrap's tarball into an image and a list ``packages`` beside it; the tarball is
    removed.

    :return: the unpacked tree, for the caller to remove.
    """
    tree = scratch / "tree"
    tree.mkdir()
    # Without root fakeroot remembers the owners between unpacking and mke2fs.
    saved = scratch / "fakeroot"
    as_root = os.geteuid() == 0
    unpack = () if as_root else ("fakeroot", "-s", str(saved))
    argv = (
        *unpack, "tar", "-x", "-p", "--numeric-owner", "--exclude=./dev/*", "-f", tarball,
        "-C", tree,
    )  # fmt: skip
    deadline = Deadline.after(300.0, "unpacking of the rootfs")
    proc.run(argv, deadline=deadline, tree=not as_root)
    tarball.unlink()
    prefix = () if as_root else ("fakeroot", "-i", str(saved))
    ext4.make_image(tree, image, label, spare_bytes=spare_bytes, prefix=prefix)
    status = (tree / "var/lib/dpkg/status").read_text()
    (scratch / "packages").write_text(parse_packages(status))
    saved.unlink(missing_ok=True)
    return tree


def parse_packages(status: str) -> str:
    """Return ``name version`` lines from dpkg's status file."""
    pattern = re.compile(r"^Package: (\S+)$.*?^Version: (\S+)$", re.MULTILINE | re.DOTALL)
    return "".join(f"{name} {version}\n" for name, version in sorted(pattern.findall(status)))


def _copy_python(tree: Path, target: Path) -> None:
    """Keep the interpreter of the rootfs: bytecode must be compiled by the interpreter that runs
    it.
    """
    (interpreter,) = (tree / "usr/bin").glob("python3.[0-9][0-9]")
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    (target / "bin").mkdir(parents=True)
    shutil.copy(interpreter, target / "bin/python3")
    shutil.copytree(
        tree / "usr/lib" / interpreter.name,
        target / "lib" / interpreter.name,
        ignore=shutil.ignore_patterns("__pycache__"),
        ignore_dangling_symlinks=True,
    )
    for name in (*PYTHON_LIBRARIES, "ld-linux-x86-64.so.2"):
        shutil.copy(libraries / name, target / "bin" / name)


def build_rootfs(cache: Cache, host_dir: Path, compiler: str, steps: Steps) -> Path:
    """Return the entry of the second stage.

    It holds ``rootfs.ext4``, ``client_key`` (0600), ``ssh_host_key.pub``, ``image.json``.

    :raises BuildError: init.c does not compile, or the first stage failed.
    """

    def builder(scratch: Path) -> None:
        base = build_base(cache, steps)
        with steps.step("rootfs: init and keys"):
            init = scratch / "liveupdate-init"
            origin, deadline = host_dir / "init.c", Deadline.after(120.0, "init.c")
            run_tool(init_argv(origin, init), deadline, f"'{origin}' does not compile")
            init.chmod(0o755)
            finish(scratch, base / "base.ext4", ((init, "/liveupdate-init"),), base=base.name)
            shutil.copyfile(base / "packages", scratch / "packages")
            init.unlink()

    inputs = rootfs_inputs(host_dir, compiler)
    return cache.build("rootfs", inputs, builder, again=lambda: rootfs_inputs(host_dir, compiler))


def finish(
    scratch: Path, image: Path, files: Sequence[tuple[Path, str]] = (), **facts: object
) -> None:
    """Make ``rootfs.ext4`` of ``image``, with new keys and the configuration of sshd; and
    ``image.json``.

    :param files: more to put in, as of :func:`ext4.add_files`.
    :param facts: more for ``image.json``.
    """
    make_keys(scratch)
    config, keys, host_key = (
        scratch / name for name in ("sshd_config", "authorized_keys", "ssh_host_key")
    )
    config.write_text(SSHD_CONFIG)
    shutil.copyfile(scratch / "client_key.pub", keys)
    config.chmod(0o644)
    keys.chmod(0o644)
    wanted = (
        *files,
        (config, "/etc/ssh/sshd_config"),
        (keys, "/etc/ssh/authorized_keys"),
        (host_key, "/etc/ssh/ssh_host_ed25519_key"),
    )
    ext4.add_files(image, scratch / "rootfs.ext4", wanted)
    for path in (config, keys, host_key):
        path.unlink()
    sha256 = file_sha256(scratch / "rootfs.ext4")
    (scratch / "image.json").write_text(json.dumps({"sha256": sha256, **facts}))


def init_argv(origin: Path, target: Path) -> tuple[str, ...]:
    """Return the command that compiles init.c; static, so that nothing is linked in the
    blackout.
    """
    return (
        "gcc", "-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror",
        f"-ffile-prefix-map={origin.parent}=.", "-o", str(target), str(origin),
    )  # fmt: skip


def make_keys(scratch: Path) -> None:
    """Make ``ssh_host_key`` and ``client_key``, with their public halves, in a directory."""
    for name in ("ssh_host_key", "client_key"):
        argv = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "liveupdate", "-f")
        proc.run((*argv, scratch / name), deadline=Deadline.after(30.0, "ssh-keygen"))
