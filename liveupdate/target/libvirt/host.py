# SPDX-License-Identifier: Apache-2.0
"""The host under update as a libvirt domain on this control host.

A QEMU machine like :mod:`liveupdate.target.qemu.host`, started and held by a libvirtd. Its domain
is transient and ends with this process's connection, so nothing stays defined, however the run
ends. Must not know what the machine is for.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path
from urllib.parse import urlsplit

from msgspec.structs import replace

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LaunchError, LiveUpdateError, PlanError
from liveupdate.core.proc import read_start_time
from liveupdate.target.base import Order, Process
from liveupdate.target.libvirt import domain_xml
from liveupdate.target.libvirt.link import Link, PassedMonitor
from liveupdate.target.machines import is_named, machine_name
from liveupdate.target.qemu.argv import MachinePaths
from liveupdate.target.qemu.host import QemuHost
from liveupdate.transport.monitor import Monitor
from liveupdate.transport.physmem import PhysMem, parse_mtree

DEFAULT_URI = "qemu:///session"
_DESTROY_TIMEOUT_S = 15.0
_KILL_TIMEOUT_S = 10.0


class DomainProcess:
    """The QEMU of a domain: a child of libvirtd, watched through a pidfd, ended by libvirt.

    Only libvirtd knows its exit status; ``returncode`` is 0 once it has ended.
    """

    def __init__(self, pid: int, link: Link) -> None:
        """:raises OSError: the process has already ended."""
        self.pid = pid
        self._link = link
        self._pidfd = os.pidfd_open(pid)
        self.start_time = read_start_time(pid) or 0

    @property
    def returncode(self) -> int | None:
        """0 once the process has ended; None while it runs."""
        return 0 if self._is_over(0) else None

    def wait(self, deadline: Deadline) -> int:
        """Wait until it ends. :raises DeadlineExceeded: it still runs."""
        if not self._is_over(deadline.remaining_s):
            raise deadline.exceeded(f"pid {self.pid} still runs")
        return 0

    def crash(self) -> None:
        """Kill it without libvirt; for the fault tests."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.wait(Deadline.after(_KILL_TIMEOUT_S, "QEMU to be killed"))

    def kill(self) -> None:
        """End it through libvirt, or directly when libvirt fails. Idempotent."""
        if self.returncode is not None:
            return
        try:
            self._link.destroy(Deadline.after(_DESTROY_TIMEOUT_S, "libvirt to end the machine"))
            self.wait(Deadline.after(_KILL_TIMEOUT_S, "QEMU to end"))
        except LiveUpdateError:
            self.crash()

    def close(self) -> None:
        """Close the pidfd. Idempotent."""
        self.kill()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _is_over(self, timeout_s: float) -> bool:
        if self._pidfd < 0:
            # closed, which ends the process
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))


class LibvirtHost(QemuHost):
    """One domain, used once. It offers the same as :class:`QemuHost`, except warm starts."""

    _ram_id = domain_xml.RAM_ID

    def __init__(self, order: Order) -> None:
        """:param order: the place is the URI of a libvirtd on this machine.

        :raises PlanError: there is no such QEMU.
        """
        super().__init__(order)
        qemu = shutil.which(self.spec.qemu)
        if qemu is None:
            raise PlanError(f"no program '{self.spec.qemu}' in PATH", hint="run 'make setup'")
        # libvirt takes no program that has to be looked for
        self.spec = replace(self.spec, qemu=qemu)
        self.uri = order.plan.place
        self._link: Link | None = None

    def kill(self) -> None:
        """Kill QEMU, as a crash would end it; for the fault tests."""
        self._killed = True
        if isinstance(self._child, DomainProcess):
            self._child.crash()

    def _make_ram(self) -> None:
        """Do nothing: QEMU makes the RAM, as the domain says."""

    def _launch(self, paths: MachinePaths, deadline: Deadline, *, incoming: bool) -> Process:
        if incoming:
            raise LaunchError("a libvirt domain is not started from a saved host")
        self._link = Link.open(self.uri, deadline)
        self._stack.callback(self._leave)
        xml = domain_xml.build_xml(
            self.spec,
            paths,
            run_id=self.run_id,
            append=self.append,
            owner=(os.getuid(), os.getgid()) if is_privileged(self.uri) else None,
        )
        (self.run_dir / "domain.xml").write_text(xml, encoding="utf-8")
        uuid = self._link.create(xml, deadline)
        pid, self.argv = find_qemu(self.run_id, uuid)
        return DomainProcess(pid, self._link)

    def _make_monitor(self, paths: MachinePaths) -> Monitor:
        assert self._link is not None
        return PassedMonitor(self._link)

    def _map_ram(self, deadline: Deadline) -> PhysMem:
        ranges = parse_mtree(self.qmp.hmp("info mtree -f", deadline), self._ram_id)
        try:
            descriptor = open_memfd(self.pid, self.spec.memory_bytes)
        except OSError as error:
            raise LaunchError(
                f"the domain's RAM cannot be mapped: {error}",
                hint="run as root, or take a libvirtd of this user (qemu:///session)",
            ) from error
        try:
            return PhysMem(descriptor, self.spec.memory_bytes, ranges)
        finally:
            os.close(descriptor)

    def _describe_end(self, code: int) -> str:
        stopped = None if self._link is None else self._link.stopped
        return f"libvirt: {stopped or 'not told how'}"

    def _leave(self) -> None:
        """Close the connection once libvirt has forgotten the domain."""
        if self._link is None:
            return
        link, name = self._link, machine_name(self.run_id)
        deadline = Deadline.after(_DESTROY_TIMEOUT_S, "libvirt to forget the domain")
        try:
            if link.lost is None:
                link.destroy(deadline)
                wait_until(lambda: not link.is_defined(name, deadline), deadline)
        finally:
            link.close()


def is_privileged(uri: str) -> bool:
    """Whether a libvirtd at ``uri`` runs QEMU as another user than its own."""
    return urlsplit(uri).path == "/system"


def find_qemu(run_id: str, uuid: str) -> tuple[int, tuple[str, ...]]:
    """Return pid and argv of a domain's QEMU on this machine; libvirt has no call for it.

    :raises LaunchError: it runs elsewhere, or has ended.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            cmdline = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if is_named(cmdline, run_id) and uuid.encode() in cmdline.split(b"\0"):
            words = cmdline.rstrip(b"\0").split(b"\0")
            return int(entry.name), tuple(word.decode(errors="replace") for word in words)
    raise LaunchError(
        f"the QEMU of domain {uuid} does not run on this machine",
        hint="target 'libvirt' needs a libvirtd on the control host",
    )


def open_memfd(pid: int, size_bytes: int) -> int:
    """Open the memfd of that size among a process's descriptors.

    :raises OSError: there is none, or it may not be opened.
    """
    for item in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(item).startswith("/memfd:") and item.stat().st_size == size_bytes:
            return os.open(item, os.O_RDWR | os.O_CLOEXEC)
    raise FileNotFoundError(f"QEMU {pid} has no memfd of {size_bytes} bytes")
