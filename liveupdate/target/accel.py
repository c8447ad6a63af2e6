# SPDX-License-Identifier: Apache-2.0
"""Chooses the accelerator by running a guest under it.

A ``/dev/kvm`` that opens and a ``query-kvm`` that says enabled can still be broken (seen: the guest
dies of "KVM internal error" on its first instructions, or QEMU aborts in ``kvm_buf_set_msrs``). So
KVM is chosen only if a small guest has started under it and printed its line. Must not know what
the accelerator is for, except that guests will run nested in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

import msgspec

from liveupdate.core import proc
from liveupdate.core.atomic_write import atomic_write
from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import DeadlineExceeded, LiveUpdateError, PlanError
from liveupdate.core.paths import cache_dir, runtime_dir
from liveupdate.target.machines import write_owner
from liveupdate.transport.qmp import Qmp

log = logging.getLogger(__name__)

#: what guest-images/guest/payload.c prints when `lu.probe` is on its command line
PROBE_OK = "liveupdate-guest: probe ok"
QEMU = "qemu-system-x86_64"
#: under TCG, on a machine with four times too much to do, it comes up in four seconds
PROBE_TIMEOUT_S = 10.0
_MAX_CACHE_BYTES = 64 * 1024


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the probe guest; ``error`` is "" when it ran."""

    error: str
    #: identity of what was probed: boot of this host, QEMU, kernel, initrd
    key: str


def decide(requested: str, kvm_error: str) -> tuple[str, str]:
    """Choose an accelerator from the request and the reason why KVM cannot be used ("" when it
    can).

    :return: kvm or tcg, and the reason in one line for people and for the record.
    :raises PlanError: KVM was requested and does not work.
    """
    if requested not in ("auto", "kvm", "tcg"):
        raise PlanError(f"no accelerator '{requested}'", hint="one of auto, kvm, tcg")
    if requested == "tcg":
        return "tcg", "asked for"
    if not kvm_error:
        return "kvm", "a probe guest ran under KVM"
    if requested == "kvm":
        raise PlanError(f"KVM does not work here: {kvm_error}", hint="--accel auto falls back")
    return "tcg", f"TCG with +svm,+npt, for KVM does not work here: {kvm_error}"


def choose(
    requested: str, *, kernel: Path, initrd: Path, use_cache: bool = True
) -> tuple[str, str]:
    """Choose the accelerator; probes at most once per boot of this host and QEMU.

    :param kernel: guest kernel; :param initrd: with the payload as its init.
    :raises PlanError: as :func:`decide`.
    """
    if requested == "tcg":
        return decide(requested, "")
    return decide(requested, find_kvm_error(kernel, initrd, QEMU, use_cache=use_cache))


def find_kvm_error(kernel: Path, initrd: Path, qemu: str, *, use_cache: bool = True) -> str:
    """Say why KVM cannot be used, or "" when a probe guest ran."""
    error = _find_plain_obstacle()
    if error:
        return error
    key = _make_key(kernel, initrd, qemu)
    cache = cache_dir() / "accel.json"
    known = _read_cache(cache) if use_cache else None
    if known is not None and known.key == key:
        return known.error
    error = run_probe(kernel, initrd, qemu, Deadline.after(PROBE_TIMEOUT_S, "the probe guest"))
    _write_cache(cache, Probe(error=error, key=key))
    return error


def run_probe(
    kernel: Path, initrd: Path, qemu: str, deadline: Deadline, *, accel: str = "kvm"
) -> str:
    """Run the probe guest and return what went wrong, "" when it started.

    :param accel: "tcg" tests the probe itself.
    """
    with tempfile.TemporaryDirectory(prefix="probe-", dir=runtime_dir()) as name:
        directory = Path(name)
        write_owner(directory)
        serial, errors = directory / "serial", directory / "stderr"
        argv = build_probe_argv(qemu, kernel, initrd, directory, accel)
        with errors.open("wb") as output, proc.spawn(argv, stdout=output, stderr=output) as child:
            error = _watch_probe(child, directory, serial, deadline)
        if not error:
            return ""
        said = _last_line(errors)
        return f"{error}; QEMU says: {said}" if said else error


def build_probe_argv(
    qemu: str, kernel: Path, initrd: Path, directory: Path, accel: str
) -> tuple[str, ...]:
    """Build the argv of the probe guest. Pure."""
    # fmt: off
    return (
        qemu, "-name", "liveupdate-probe",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-accel", accel, "-cpu", "host" if accel == "kvm" else "max",
        "-M", "q35", "-m", "256M",
        "-qmp", f"unix:{directory / 'qmp'},server=on,wait=off",
        "-serial", f"file:{directory / 'serial'}",
        "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", "console=ttyS0 panic=-1 lu.probe",
    )
    # fmt: on


def _watch_probe(child: proc.Child, directory: Path, serial: Path, deadline: Deadline) -> str:
    with Qmp(directory / "qmp", watch=lambda: _ended(child)) as qmp:
        try:
            qmp.connect(deadline)

            def look() -> str | None:
                if PROBE_OK in _read_text(serial):
                    return ""
                if child.returncode is not None:
                    return f"a probe guest ended ({_how(child.returncode)}) and printed nothing"
                # QEMU stays alive with the guest dead, and says so only when asked
                answer = qmp.execute("query-status", {}, deadline)
                status = answer.get("status") if isinstance(answer, dict) else None
                if status in ("internal-error", "guest-panicked", "io-error", "shutdown"):
                    return f"a probe guest ended in state '{status}'"
                return None

            return wait_until(look, deadline, interval_s=0.05)
        except LiveUpdateError as error:
            if PROBE_OK in _read_text(serial):
                # said its line and powered off between two looks
                return ""
            if isinstance(error, DeadlineExceeded):
                # seen: the virtual CPU never leaves KVM, and QEMU's monitor waits for it
                stuck = ", and QEMU does not answer either" if error.last else ""
                return f"a probe guest said nothing for {error.timeout_s:.0f} s{stuck}"
            return f"probe guest: {error.message}"


def _ended(child: proc.Child) -> LiveUpdateError | None:
    code = child.returncode
    return None if code is None else LiveUpdateError(f"QEMU ended ({_how(code)})")


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


def _find_plain_obstacle() -> str:
    """Return an obstacle that can be found without a guest, or ""."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    for vendor in ("kvm_intel", "kvm_amd"):
        nested = _read_text(Path(f"/sys/module/{vendor}/parameters/nested")).strip()
        if nested in ("N", "0"):
            return f"nested virtualisation is off ({vendor}.nested={nested})"
    return ""


def _make_key(kernel: Path, initrd: Path, qemu: str) -> str:
    digest = hashlib.sha256(_read_text(Path("/proc/sys/kernel/random/boot_id")).encode())
    for path in (Path(proc.find_program(qemu) or qemu), kernel, initrd):
        with contextlib.suppress(OSError), path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_cache(path: Path) -> Probe | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_CACHE_BYTES), type=Probe)
    except (OSError, ValueError):
        return None


def _write_cache(path: Path, probe: Probe) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, msgspec.json.encode(probe), mode=0o600)
    except OSError as error:
        log.debug("accelerator probe not cached: %s", error)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    loud = [line for line in lines if "internal error" in line or "Assertion" in line]
    return (loud or lines[-1:] or [""])[0]
