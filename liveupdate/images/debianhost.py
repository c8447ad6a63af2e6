# SPDX-License-Identifier: Apache-2.0
"""A host as an operator has it: Debian trixie with systemd, apt and sshd. For tests only.

From this project it has SSH keys only; Ansible or an operator installs agent, kernel, command line
and kexec-tools. It has no network to the outside, so its only package source is a directory of its
own, with kexec-tools and its dependencies. Must not know kernels or machines.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from liveupdate.core.steps import Steps
from liveupdate.core.units import MIB
from liveupdate.images import rootfs
from liveupdate.images.cache import Cache

#: without kexec-tools: a test has to install them
PACKAGES = (
    "systemd", "systemd-sysv", "udev", "apt", "python3", "python3-apt", "openssh-server", "kmod",
    "iproute2", "qemu-system-x86", "e2fsprogs",
)  # fmt: skip
REPOSITORY = "/srv/apt"
IN_REPOSITORY = "kexec-tools"
SOURCES = f"deb [trusted=yes] file:{REPOSITORY} ./\n"
NETWORK = """\
# the network that SSH comes in by; the other interfaces are the agent's
[Match]
MACAddress=52:54:00:10:00:01

[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
LinkLocalAddressing=no
"""
#: for kernels, packages and journals that come later
SPARE_BYTES = 256 * MIB
#: increase when the code below changes the image
RECIPE = "1"

# Runs in mmdebstrap's shell with the new root as $1; a repository of one directory, see
# sources.list(5) on "./".
_FILL_REPOSITORY = f"""\
mkdir -p "$1{REPOSITORY}"; cd "$1{REPOSITORY}";
mkdir -p "$1/tmp/debs/partial";
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -q -y --download-only
-o Dir::Cache::archives="$1/tmp/debs" install {IN_REPOSITORY};
mv "$1"/tmp/debs/*.deb .; rm -r "$1/tmp/debs";
for deb in *.deb; do
dpkg-deb -f "$deb"; echo "Filename: ./$deb";
echo "Size: $(stat -c %s "$deb")"; echo "SHA256: $(sha256sum "$deb" | cut -d" " -f1)"; echo;
done > Packages"""
# The stamps keep systemd from bringing caches up to date at each boot (systemd-update-done(8)).
_SETTLE = """\
rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/apt/sources.list.d/*;
rm -f "$1"/etc/systemd/system/timers.target.wants/*;
echo 7f1f0f3e5d2c4b6a9e8d7c6b5a493827 > "$1/etc/machine-id";
echo host > "$1/etc/hostname";
chroot "$1" systemctl -q enable systemd-networkd.service;
chroot "$1" systemctl -q disable systemd-networkd-wait-online.service;
chroot "$1" systemctl -q set-default multi-user.target;
touch "$1/etc/.updated" "$1/var/.updated"
"""


def mmdebstrap_argv(target: Path) -> tuple[str, ...]:
    """Return the command that makes the tarball."""
    hooks = tuple(" ".join(script.splitlines()) for script in (_FILL_REPOSITORY, _SETTLE))
    return rootfs.mmdebstrap_argv(target, PACKAGES, hooks)


def inputs() -> dict[str, str]:
    """Return everything that decides the image, except the archive's own state."""
    return {
        "name": "debian-host",
        "argv": json.dumps(mmdebstrap_argv(Path("-"))),
        "files": json.dumps([rootfs.SSHD_CONFIG, NETWORK, SOURCES]),
        "spare": str(SPARE_BYTES),
        "recipe": RECIPE,
    }


def build(cache: Cache, steps: Steps) -> Path:
    """Return the entry: ``rootfs.ext4``, ``packages``, ``client_key`` and ``ssh_host_key.pub``.

    :raises BuildError: mmdebstrap failed; quotes its last lines.
    """

    def builder(scratch: Path) -> None:
        with steps.step("debian host: packages", suite=rootfs.SUITE):
            tarball = scratch / "tree.tar"
            rootfs.run_mmdebstrap(mmdebstrap_argv(tarball))
        with steps.step("debian host: file system"):
            base = scratch / "base.ext4"
            shutil.rmtree(
                rootfs.make_file_system(scratch, tarball, base, "debian-host", SPARE_BYTES)
            )
            _add_files(scratch, base)
            base.unlink()

    return cache.build("debian-host", inputs(), builder)


def _add_files(scratch: Path, base: Path) -> None:
    files = []
    for name, text in (
        ("/etc/systemd/network/10-management.network", NETWORK),
        ("/etc/apt/sources.list", SOURCES),
    ):
        path = scratch / name.rpartition("/")[2]
        path.write_text(text)
        path.chmod(0o644)
        files.append((path, name))
    rootfs.finish(scratch, base, files)
    for path, _ in files:
        path.unlink()
