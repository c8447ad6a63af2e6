# SPDX-License-Identifier: Apache-2.0
"""Where things are: the checkout, and the XDG directories.

The environment is read here and in :mod:`liveupdate.cli` only. Nothing but :func:`runtime_dir`
creates anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from liveupdate.core.errors import PlanError

#: longest path of a unix socket, sun_path of unix(7) without its final NUL
SUN_PATH_BYTES = 107


def checkout_root(env: Mapping[str, str] = os.environ) -> Path:
    """Find the checkout that holds ``guest-images/``; ``LIVEUPDATE_CHECKOUT`` wins.

    :raises PlanError: the package was installed without its checkout.
    """
    named = env.get("LIVEUPDATE_CHECKOUT")
    candidates = [Path(named)] if named else [Path(__file__).resolve().parents[2], Path.cwd()]
    for candidate in candidates:
        if (candidate / "guest-images").is_dir():
            return candidate.resolve()
    raise PlanError(
        f"no 'guest-images' directory in {', '.join(map(str, candidates))}",
        hint="set LIVEUPDATE_CHECKOUT to a checkout of liveupdate",
    )


def guest_images_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Sources of kernels, rootfs and payload."""
    return checkout_root(env) / "guest-images"


def scenarios_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The shipped scenarios."""
    return checkout_root(env) / "scenarios"


def _xdg(env: Mapping[str, str], variable: str, fallback: str) -> Path:
    """XDG Base Directory 0.8: a relative path in the variable is to be ignored."""
    value = env.get(variable, "")
    if value and Path(value).is_absolute():
        return Path(value)
    return Path(env.get("HOME") or str(Path.home())) / fallback


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of built images and warm states; content-addressed, may be deleted at
    any time.
    """
    return _xdg(env, "XDG_CACHE_HOME", ".cache") / "liveupdate"


def config_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of the user's descriptions of lab machines, ``machines/NAME.toml``."""
    return _xdg(env, "XDG_CONFIG_HOME", ".config") / "liveupdate"


def results_dir(option: Path | None = None) -> Path:
    """Return the directory for run directories: ``option``, or ``runs`` in the working
    directory.
    """
    return (option if option is not None else Path("runs")).absolute()


def runtime_dir(env: Mapping[str, str] = os.environ, *, tmp: Path = Path("/tmp")) -> Path:
    """Make (0700) and return the directory of sockets; short, because of ``sun_path``.

    :raises PlanError: it belongs to another user, or others may enter it.
    """
    base = env.get("XDG_RUNTIME_DIR", "")
    if base and Path(base).is_absolute() and os.access(base, os.W_OK | os.X_OK):
        path = Path(base) / "liveupdate"
    else:
        path = tmp / f"liveupdate-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    # every user can write to /tmp: a directory or link planted there must not get the sockets
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PlanError(
            f"'{path}' is not a directory of this user with mode 0700",
            hint="remove it, or set XDG_RUNTIME_DIR",
        )
    return path
