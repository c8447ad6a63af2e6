# SPDX-License-Identifier: Apache-2.0
"""The checks of ``liveupdate doctor``: each tests one thing and says how to fix it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LiveUpdateError
from liveupdate.core.units import GIB, MIB, format_size

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. ``state`` is ok, warn (a run still works) or bad (it does not)."""

    name: str
    state: str
    what: str
    hint: str = ""


def check_python() -> Finding:
    """Report the version of Python; one older than 3.11 does not get this far."""
    return Finding(name="python", state=OK, what=".".join(map(str, sys.version_info[:3])))


def check_tools() -> Finding:
    """Find the programs that a run needs, and those that building images needs."""
    from liveupdate.core.proc import find_program

    missing = [(name, pkg) for name, pkg in RUN_TOOLS.items() if find_program(name) is None]
    if missing:
        return _missing(BAD, missing)
    missing = [(name, pkg) for name, pkg in BUILD_TOOLS.items() if find_program(name) is None]
    if missing:
        return _missing(WARN, missing)
    return Finding(name="tools", state=OK, what=f"{len(RUN_TOOLS) + len(BUILD_TOOLS)} found")


def _missing(state: str, missing: list[tuple[str, str]]) -> Finding:
    names = ", ".join(name for name, _ in missing)
    why = "" if state == BAD else " (needed to build images only)"
    packages = " ".join(sorted({package for _, package in missing}))
    return Finding(
        name="tools",
        state=state,
        what=f"missing: {names}{why}",
        hint=f"'make setup', or: apt-get install {packages}",
    )


def check_qemu() -> Finding:
    """Check QEMU's version, devices, and nested SVM under TCG, as QEMU reports them over QMP."""
    hint = "QEMU 8.0 or newer; on Debian 12 from bookworm-backports, which 'make setup' does"
    try:
        version, devices, has_svm = ask_qemu(Deadline.after(PROBE_S, "QEMU to answer"))
    except LiveUpdateError as error:
        return Finding(name="qemu", state=BAD, what=error.message, hint=hint)
    missing = [name for name in DEVICES if name not in devices]
    if not has_svm:
        missing.append("nested SVM under TCG")
    if missing:
        what = f"{version} lacks {', '.join(missing)}"
        # igb is for passthrough; without it a plain run still works
        state = WARN if missing == ["igb"] else BAD
        return Finding(name="qemu", state=state, what=what, hint=hint)
    return Finding(name="qemu", state=OK, what=f"{version}, igb, nested SVM under TCG")


def ask_qemu(deadline: Deadline) -> tuple[str, frozenset[str], bool]:
    """Start a QEMU without a guest and ask for its version, device types, and SVM under TCG."""
    from liveupdate.core import proc
    from liveupdate.transport.qmp import Qmp

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
    props = _dig(model, "model", "props")
    names = {item.get("name") for item in types if isinstance(item, dict)} if isinstance(
        types, list
    ) else set()  # fmt: skip
    has_svm = isinstance(props, dict) and props.get("svm") is True and props.get("npt") is True
    return _version(greeting), frozenset(map(str, names)), has_svm


def _dig(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _version(greeting: object) -> str:
    """Version of a QMP greeting, whichever of its levels was handed on."""
    for path in (("qemu",), ("version", "qemu"), ("QMP", "version", "qemu")):
        found = _dig(greeting, *path)
        if isinstance(found, dict):
            return ".".join(str(found.get(part, "?")) for part in ("major", "minor", "micro"))
    return "unknown version"


def check_accel() -> Finding:
    """Find out with a probe guest whether KVM works; an open ``/dev/kvm`` proves nothing."""
    from liveupdate.cli.prepare_run import choose_accel
    from liveupdate.images import catalogue

    try:
        images = catalogue.resolve(None, None)
    except LiveUpdateError:
        return Finding(name="accel", state=WARN, what="not tested: build the images first")
    try:
        accel, reason = choose_accel("auto", images, use_cache=False)
    except LiveUpdateError as error:
        return Finding(name="accel", state=BAD, what=error.message, hint=error.hint or "")
    if accel == "kvm":
        return Finding(name="accel", state=OK, what=f"kvm: {reason}")
    return Finding(
        name="accel",
        state=WARN if Path("/dev/kvm").exists() else OK,
        what=f"{accel}: {reason}",
    )


def check_images() -> Finding:
    """Find the built images; a run builds those that are missing, if there is a compiler."""
    from liveupdate.images import catalogue

    hint = "liveupdate images build"
    try:
        missing = catalogue.find_missing(catalogue.needed(None, None))
        if missing:
            catalogue.need_compiler()
            what = f"not built yet: {', '.join(missing)}; a run builds them first"
            return Finding(name="images", state=WARN, what=what, hint=hint)
        images = catalogue.resolve(None, None)
    except LiveUpdateError as error:
        return Finding(name="images", state=BAD, what=error.message, hint=error.hint or hint)
    what = f"outgoing {images.outgoing.release}, incoming {images.incoming.release}"
    return Finding(name="images", state=OK, what=what)


def check_memory() -> Finding:
    """Compare the memory that is available with what the default scenario needs."""
    from liveupdate.cli.prepare_run import available_memory

    free = available_memory()
    what = f"{format_size(free)} available, {format_size(RUN_RAM_BYTES)} needed by default"
    if free < RUN_RAM_BYTES:
        return Finding(name="memory", state=BAD, what=what, hint="end other programs, or add RAM")
    return Finding(name="memory", state=OK, what=what)


def check_disk() -> Finding:
    """Check the free space of the image cache and of the working directory."""
    from liveupdate.core.paths import cache_dir, results_dir

    cache, runs = (_nearest(path) for path in (cache_dir(), results_dir()))
    for path, needed, what in ((runs, RUN_BYTES, "runs"), (cache, BUILD_BYTES, "building images")):
        free = shutil.disk_usage(path).free
        if free < needed or not os.access(path, os.W_OK):
            return Finding(
                name="disk",
                state=BAD if what == "runs" else WARN,
                what=f"'{path}' has {format_size(free)} free; {what} need {format_size(needed)}",
                hint="free some space, or set XDG_CACHE_HOME or --results",
            )
    return Finding(name="disk", state=OK, what=f"{format_size(shutil.disk_usage(cache).free)} free")


def _nearest(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def check_shared_memory() -> Finding:
    """Check that a memfd can be as large as the host's RAM, which QEMU and this process map."""
    import mmap

    try:
        descriptor = os.memfd_create("lu-doctor", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, RUN_RAM_BYTES)
            with mmap.mmap(descriptor, RUN_RAM_BYTES) as view:
                view[0] = 1
        finally:
            os.close(descriptor)
    except OSError as error:
        return Finding(
            name="shm", state=BAD, what=f"memfd of {format_size(RUN_RAM_BYTES)}: {error.strerror}",
            hint="raise the limits on shared memory and address space (ulimit -v)",
        )  # fmt: skip
    return Finding(name="shm", state=OK, what=f"memfd of {format_size(RUN_RAM_BYTES)}")


def check_user_namespaces() -> Finding:
    """Check for user namespaces, which building the root disk needs unless it is done by root."""
    if os.geteuid() == 0:
        return Finding(name="userns", state=OK, what="not needed: this is root")
    from liveupdate.core import proc

    try:
        proc.run(["unshare", "-Ur", "true"], deadline=Deadline.after(PROBE_S, "unshare"))
    except LiveUpdateError as error:
        return Finding(
            name="userns",
            state=WARN,
            what=f"no user namespaces: {error.message}",
            hint="sysctl kernel.unprivileged_userns_clone=1, or build images as root",
        )
    return Finding(name="userns", state=OK, what="user namespaces work")


def check_runtime() -> Finding:
    """Check that the paths of a run's sockets are short enough for ``sun_path``."""
    from liveupdate.core.paths import SUN_PATH_BYTES, runtime_dir

    try:
        path = runtime_dir()
    except (LiveUpdateError, OSError) as error:
        return Finding(name="runtime", state=BAD, what=str(error), hint="set XDG_RUNTIME_DIR")
    # a run's sockets are RUNTIME/RUN-ID/NAME.sock
    room = SUN_PATH_BYTES - len(os.fsencode(path))
    if room < 32:
        return Finding(name="runtime", state=BAD, what=f"'{path}' is too long for sockets",
                       hint="set XDG_RUNTIME_DIR to a shorter path")  # fmt: skip
    return Finding(name="runtime", state=OK, what=str(path))


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_tools,
    check_qemu,
    check_accel,
    check_images,
    check_memory,
    check_disk,
    check_shared_memory,
    check_user_namespaces,
    check_runtime,
)
"""In the order in which doctor shows them; each stands alone."""
