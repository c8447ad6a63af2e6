# SPDX-License-Identifier: Apache-2.0
"""The checks of ``liveupdate doctor``: each tests one thing and says how to fix it."""

from __future__ import annotations

import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from liveupdate.cli import prepare_run
from liveupdate.core import proc
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LiveUpdateError
from liveupdate.core.paths import SUN_PATH_BYTES, cache_dir, results_dir, runtime_dir
from liveupdate.core.units import GIB, MIB, format_size
from liveupdate.images import catalogue
from liveupdate.transport.qmp import Qmp

OK, WARN, BAD = "ok", "warn", "bad"
PROBE_S = 20.0
#: a host of 2 GiB and QEMU's own memory
RUN_RAM_BYTES = 2 * GIB + 256 * MIB
#: kernel source and objects, rootfs, downloads
BUILD_BYTES = 8 * GIB
RUN_BYTES = 256 * MIB

#: programs by what needs them; package is Debian's
RUN_TOOLS: Mapping[str, str] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "mke2fs": "e2fsprogs",
}
BUILD_TOOLS: Mapping[str, str] = {
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "mmdebstrap": "mmdebstrap",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
#: QEMU devices of the host under update and of its guests' passed-through network card
DEVICES = ("intel-iommu", "igb", "virtio-blk-pci", "virtio-net-pci", "virtserialport")


class Finding(NamedTuple):
    """What one check found. ``state`` is ok, warn (a run still works) or bad (it does not)."""

    state: str
    what: str
    hint: str = ""


def check_python() -> Finding:
    """Report the version of Python; one older than 3.11 does not get this far."""
    return Finding(OK, ".".join(map(str, sys.version_info[:3])))


def check_tools() -> Finding:
    """Find the programs that a run needs, and those that building images needs."""
    missing = [(name, pkg) for name, pkg in RUN_TOOLS.items() if proc.find_program(name) is None]
    if missing:
        return _missing(BAD, missing)
    missing = [(name, pkg) for name, pkg in BUILD_TOOLS.items() if proc.find_program(name) is None]
    if missing:
        return _missing(WARN, missing)
    return Finding(OK, f"{len(RUN_TOOLS) + len(BUILD_TOOLS)} found")


def _missing(state: str, missing: list[tuple[str, str]]) -> Finding:
    names = ", ".join(name for name, _ in missing)
    why = "" if state == BAD else " (needed to build images only)"
    packages = " ".join(sorted({package for _, package in missing}))
    return Finding(
        state,
        f"missing: {names}{why}",
        hint=f"'make setup', or: apt-get install {packages}",
    )


def check_qemu() -> Finding:
    """Check QEMU's version, devices, and nested SVM under TCG, as QEMU reports them over QMP."""
    hint = "QEMU 8.0 or newer; on Debian 12 from bookworm-backports, which 'make setup' does"
    try:
        version, devices, has_svm = ask_qemu(Deadline.after(PROBE_S, "QEMU to answer"))
    except LiveUpdateError as error:
        return Finding(BAD, error.message, hint)
    missing = [name for name in DEVICES if name not in devices]
    if not has_svm:
        missing.append("nested SVM under TCG")
    if missing:
        what = f"{version} lacks {', '.join(missing)}"
        # igb is for passthrough; without it a plain run still works
        state = WARN if missing == ["igb"] else BAD
        return Finding(state, what, hint)
    return Finding(OK, f"{version}, igb, nested SVM under TCG")


def ask_qemu(deadline: Deadline) -> tuple[str, frozenset[str], bool]:
    """Start a QEMU without a guest and ask for its version, device types, and SVM under TCG."""
    with tempfile.TemporaryDirectory(prefix="lu-") as directory:
        path = Path(directory) / "qmp"
        log = Path(directory) / "log"
        argv = (
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35", "-accel", "tcg", "-S", "-qmp", f"unix:{path},server=on,wait=off",
        )  # fmt: skip
        with log.open("wb") as output, proc.spawn(argv, stdout=output, stderr=output) as child:
            wait_until(
                lambda: path.exists() or child.returncode is not None,
                deadline,
                describe=lambda: log.read_text(errors="replace").strip(),
            )
            with Qmp(path) as qmp:
                greeting = qmp.connect(deadline)
                types = qmp.execute(
                    "qom-list-types", {"implements": "device", "abstract": False}, deadline
                )
                model = qmp.execute(
                    "query-cpu-model-expansion",
                    {"type": "full", "model": {"name": "max"}},
                    deadline,
                )
    listed = types if isinstance(types, list) else []
    names = {str(item.get("name")) for item in listed if isinstance(item, dict)}
    match model:
        case {"model": {"props": {"svm": True, "npt": True}}}:
            has_svm = True
        case _:
            has_svm = False
    return _version(greeting), frozenset(names), has_svm


def _version(greeting: Mapping[str, object]) -> str:
    """Version of QEMU in what :meth:`Qmp.connect` returns."""
    match greeting:
        case {"qemu": {"major": major, "minor": minor, "micro": micro}}:
            return f"{major}.{minor}.{micro}"
    return "unknown version"


def check_accel() -> Finding:
    """Find out with a probe guest whether KVM works; an open ``/dev/kvm`` proves nothing."""
    try:
        images = catalogue.resolve(None, None)
    except LiveUpdateError:
        return Finding(WARN, "not tested: build the images first")
    try:
        accel, reason = prepare_run.choose_accel("auto", images, use_cache=False)
    except LiveUpdateError as error:
        return Finding(BAD, error.message, error.hint or "")
    if accel == "kvm":
        return Finding(OK, f"kvm: {reason}")
    return Finding(WARN if Path("/dev/kvm").exists() else OK, f"{accel}: {reason}")


def check_images() -> Finding:
    """Find the built images; a run builds those that are missing, if there is a compiler."""
    hint = "liveupdate images build"
    try:
        missing = catalogue.find_missing(catalogue.needed(None, None))
        if missing:
            catalogue.need_compiler()
            what = f"not built yet: {', '.join(missing)}; a run builds them first"
            return Finding(WARN, what, hint)
        images = catalogue.resolve(None, None)
    except LiveUpdateError as error:
        return Finding(BAD, error.message, error.hint or hint)
    what = f"outgoing {images.outgoing.release}, incoming {images.incoming.release}"
    return Finding(OK, what)


def check_memory() -> Finding:
    """Compare the memory that is available with what the default scenario needs."""
    free = prepare_run.available_memory()
    what = f"{format_size(free)} available, {format_size(RUN_RAM_BYTES)} needed by default"
    if free < RUN_RAM_BYTES:
        return Finding(BAD, what, "end other programs, or add RAM")
    return Finding(OK, what)


def check_disk() -> Finding:
    """Check the free space of the image cache and of the working directory."""
    cache, runs = (prepare_run.find_existing(path) for path in (cache_dir(), results_dir()))
    for path, needed, what in ((runs, RUN_BYTES, "runs"), (cache, BUILD_BYTES, "building images")):
        free = shutil.disk_usage(path).free
        if free < needed or not os.access(path, os.W_OK):
            return Finding(
                BAD if what == "runs" else WARN,
                what=f"'{path}' has {format_size(free)} free; {what} need {format_size(needed)}",
                hint="free some space, or set XDG_CACHE_HOME or --results",
            )
    return Finding(OK, f"{format_size(shutil.disk_usage(cache).free)} free")


def check_shared_memory() -> Finding:
    """Check that a memfd can be as large as the host's RAM, which QEMU and this process map."""
    try:
        descriptor = os.memfd_create("lu-doctor", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, RUN_RAM_BYTES)
            with mmap.mmap(descriptor, RUN_RAM_BYTES) as view:
                view[0] = 1
        finally:
            os.close(descriptor)
    except OSError as error:
        what = f"memfd of {format_size(RUN_RAM_BYTES)}: {error.strerror}"
        return Finding(BAD, what, "raise the limits on shared memory and address space (ulimit -v)")
    return Finding(OK, f"memfd of {format_size(RUN_RAM_BYTES)}")


def check_user_namespaces() -> Finding:
    """Check for user namespaces, which building the root disk needs unless it is done by root."""
    if os.geteuid() == 0:
        return Finding(OK, "not needed: this is root")
    try:
        proc.run(["unshare", "-Ur", "true"], deadline=Deadline.after(PROBE_S, "unshare"))
    except LiveUpdateError as error:
        return Finding(
            WARN,
            f"no user namespaces: {error.message}",
            hint="sysctl kernel.unprivileged_userns_clone=1, or build images as root",
        )
    return Finding(OK, "user namespaces work")


def check_runtime() -> Finding:
    """Check that the paths of a run's sockets are short enough for ``sun_path``."""
    try:
        path = runtime_dir()
    except (LiveUpdateError, OSError) as error:
        return Finding(BAD, str(error), "set XDG_RUNTIME_DIR")
    # a run's sockets are RUNTIME/RUN-ID/NAME.sock
    room = SUN_PATH_BYTES - len(os.fsencode(path))
    if room < 32:
        what = f"'{path}' is too long for sockets"
        return Finding(BAD, what, "set XDG_RUNTIME_DIR to a shorter path")
    return Finding(OK, str(path))


CHECKS: Mapping[str, Callable[[], Finding]] = {
    "python": check_python,
    "tools": check_tools,
    "qemu": check_qemu,
    "accel": check_accel,
    "images": check_images,
    "memory": check_memory,
    "disk": check_disk,
    "shm": check_shared_memory,
    "userns": check_user_namespaces,
    "runtime": check_runtime,
}
"""By name, in the order in which doctor shows them; each stands alone."""
