# SPDX-License-Identifier: Apache-2.0
"""The host under update as a QEMU machine on this control host.

A context manager: entering starts the machine; leaving ends it in any case and leaves no process,
socket or file behind except the run directory. Must not know what the machine is for.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import DeadlineExceeded, LaunchError, LiveUpdateError, LostMachine
from liveupdate.core.paths import SUN_PATH_BYTES
from liveupdate.model.device_models import FED_KINDS, NAMESPACE_BYTES
from liveupdate.target.base import Entered, Order, Process, there
from liveupdate.target.machines import Machine
from liveupdate.target.qemu.argv import (
    RAM_ID,
    SSH_NIC,
    MachinePaths,
    build_argv,
    parse_ssh_port,
)
from liveupdate.target.qemu.run_files import last_words, make_disk
from liveupdate.transport.agent_link import AgentLink
from liveupdate.transport.console import Console
from liveupdate.transport.guest_network import Wire
from liveupdate.transport.monitor import Monitor, QmpEvent
from liveupdate.transport.physmem import PhysMem, parse_mtree
from liveupdate.transport.qmp import Qmp
from liveupdate.transport.ssh import Ssh

log = logging.getLogger(__name__)

LAUNCH_TIMEOUT_S = 30.0
#: QEMU ends within milliseconds of `quit` unless it is stuck
QUIT_TIMEOUT_S = 5.0


class QemuHost(Entered):
    """One machine, used once. ``qmp console agent wire ram disks`` exist while it is entered."""

    #: name of the memory backend's region in ``info mtree``
    _ram_id = RAM_ID

    def __init__(self, order: Order) -> None:
        """:param order: its run directory gets ``boot-N/``, ``disks/`` and ``qemu.log``."""
        super().__init__(run_id=order.run_id, run_dir=order.run_dir, registry=order.registry)
        self.spec = order.plan.machine
        #: where images come from; they are never written to
        self.order = order
        self.append = order.plan.boot_append
        self.argv: tuple[str, ...] = ()
        self.disks: Mapping[str, Path] = MappingProxyType({})
        #: what is behind NVMe controllers, by name of the device
        self.namespaces: Mapping[str, Path] = MappingProxyType({})
        self.qemu_version = ""
        #: what ``query-kvm`` says of this machine, which does not prove that KVM works
        self.kvm_enabled: bool | None = None
        self.ssh_port = 0
        self._child: Process | None = None
        self._qmp: Monitor | None = None
        self._wire: Wire | None = None
        #: the links to the passed-through devices, by name
        self.feeds: dict[str, Wire] = {}
        self._ram: PhysMem | None = None
        #: the memfd of the RAM
        self.ram_fd = -1
        self._prepared: MachinePaths | None = None
        self._killed = False

    # --- capabilities

    @property
    def qmp(self) -> Monitor:
        """The monitor. :raises StateError: the machine is not entered."""
        return there(self._qmp)

    @property
    def wire(self) -> Wire:
        """The link to the guests. :raises StateError: the machine is not entered."""
        return there(self._wire)

    @property
    def ram(self) -> PhysMem:
        """The machine's RAM. :raises StateError: the machine is not entered."""
        return there(self._ram)

    @property
    def watch_path(self) -> Path:
        """Socket of the second monitor, which a machine with passed-through devices has."""
        return there(self._prepared).watch

    @property
    def pid(self) -> int:
        """Process id of QEMU. :raises StateError: the machine is not entered."""
        return there(self._child).pid

    def ssh(self, deadline: Deadline) -> Ssh:
        """Log in as root, with the pinned host key."""
        return Ssh.connect(
            host="127.0.0.1",
            port=self.ssh_port,
            user="root",
            key=Path(self.order.plan.images.ssh_client_key),
            host_key=Path(self.order.plan.images.ssh_host_key_pub),
            deadline=deadline,
            watch=self.death,
        )

    def reset(self, deadline: Deadline) -> None:
        """Reset the machine and wait for the first line of its kernel.

        Any other reset ends the machine (``-no-reboot``).
        """
        mark = self.console.mark()
        self.qmp.execute("set-action", {"reboot": "reset"}, deadline)
        self.qmp.execute("system_reset", {}, deadline)
        # Not before there is a kernel again: SeaBIOS resets once more to get its own memory clean.
        self.console.wait_line("Linux version", deadline, since=mark)
        self.qmp.execute("set-action", {"reboot": "shutdown"}, deadline)

    @property
    def outside(self) -> QemuHost:
        """This machine: it can be observed from outside."""
        return self

    def place_kernel(self, hop: int, path: Path) -> str:
        """Return the kernel's path in the kit, which holds both kernels."""
        return "/kit/kernel-b" if hop % 2 else "/kit/kernel-a"

    def cut_ssh(self) -> None:
        """Cut the network of SSH; for the fault tests."""
        self.qmp.execute("set_link", {"name": SSH_NIC, "up": False})

    def read_stat(self) -> bytes:
        """Read ``/proc/PID/stat`` of QEMU; empty when there is no such process."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return b""

    def kill(self) -> None:
        """Kill QEMU with its process group; for the fault tests."""
        self._killed = True
        there(self._child).kill()

    def death(self) -> Exception | None:
        """Return why waiting is useless: QEMU ended or is ending, or a panic; else None."""
        if self._child is None or self._stopping:
            return None
        code = self._child.returncode
        event = self._shutdown_event()
        if self._console is not None and (panic := self._console.death()) is not None:
            return panic
        if event is not None:
            reason = event.data.get("reason", "unknown")
            return LostMachine(f"the machine ended: {reason}", how="exited")
        if code is not None:
            tail = last_words(self._log_file)
            how = self._describe_end(code)
            return LostMachine(f"QEMU ended ({how}){': ' + tail if tail else ''}", how="exited")
        return None

    # --- lifetime

    def _enter(self) -> None:
        deadline = Deadline.after(LAUNCH_TIMEOUT_S, "QEMU to start")
        self.start(deadline)
        self.resume(deadline)

    def start(self, deadline: Deadline, *, incoming: bool = False) -> None:
        """Start QEMU and connect everything; the machine stays paused until :meth:`resume`.

        The caller shuts down, also when this fails.

        :param incoming: it waits for a saved state; :meth:`prepare` has filled RAM and disks.
        :raises LaunchError: with QEMU's message.
        """
        paths = self._prepared if self._prepared is not None else self.prepare()
        try:
            self._wire = self._stack.enter_context(Wire(paths.wire_ours, paths.wire_qemu))
            for number, (name, kind) in enumerate(self.spec.devices):
                if kind not in FED_KINDS:
                    continue
                feed = Wire(paths.feed_ours(number), paths.feed_qemu(number))
                self.feeds[name] = self._stack.enter_context(feed)
            self._child = self._launch(paths, deadline, incoming=incoming)
            self._stack.callback(self._child.close)
            self._register()
            self._connect(paths, deadline, booted=incoming)
        except LostMachine as error:
            # A QEMU that refuses its command line closes its sockets a moment before it ends.
            if self._child is not None:
                with contextlib.suppress(DeadlineExceeded):
                    self._child.wait(Deadline.after(1.0, "QEMU to end"))
            raise LaunchError(f"QEMU did not start: {self.death() or error.message}") from error
        except OSError as error:
            raise LaunchError(f"QEMU did not start: {error}") from error

    def resume(self, deadline: Deadline) -> None:
        """Let the virtual CPUs run."""
        self.qmp.execute("cont", {}, deadline)

    def prepare(self) -> MachinePaths:
        """Make what QEMU will open: the directory of sockets, RAM, disks. Called by :meth:`start`.

        :raises LaunchError: no room, no permission.
        """
        try:
            runtime = self._make_runtime_dir()
            self._stack.callback(self._registry.remove, self.run_id)
            self._make_ram()
            plan, directory = self.order.plan, self.run_dir / "disks"
            directory.mkdir(exist_ok=True)
            images = {guest.name: Path(guest.image) for guest in plan.guests if guest.image}
            disks = tuple(
                make_disk(directory, serial, size, images.get(serial))
                for serial, size in self.spec.disks
            )
            self.namespaces = MappingProxyType(
                {
                    name: make_disk(directory, name, NAMESPACE_BYTES).path
                    for name, kind in self.spec.devices
                    if kind == "nvme"
                }
            )
        except OSError as error:
            raise LaunchError(f"cannot prepare the machine: {error}") from error
        self.disks = MappingProxyType({disk.serial: disk.path for disk in disks})
        paths = MachinePaths(
            kernel=Path(plan.images.outgoing.path),
            rootfs=Path(plan.images.rootfs),
            kit=self.order.kit,
            disks=disks,
            runtime_dir=runtime,
            ram_fd=self.ram_fd,
            namespaces=self.namespaces,
        )
        if len(os.fsencode(paths.console)) > SUN_PATH_BYTES:
            raise LaunchError(
                f"'{paths.console}' is too long for a unix socket", hint="set XDG_RUNTIME_DIR"
            )
        self._prepared = paths
        return paths

    def shutdown(self) -> tuple[str, ...]:
        """Quit, wait, kill; then clean up. Idempotent.

        :return: all errors on the way; :attr:`problems` keeps them.
        """
        problems = super().shutdown()
        for problem in problems:
            log.warning("%s: %s", self.run_id, problem)
        return problems

    # --- inside

    def _end(self, problems: list[str]) -> None:
        if self._child is not None and self._child.returncode is None:
            self._end_process(problems)
        if self._console is not None:
            with contextlib.suppress(DeadlineExceeded):
                self._console.drain(Deadline.after(1.0, "the rest of the console"))

    # what another way of starting QEMU does differently (:mod:`liveupdate.target.libvirt.host`)

    def _launch(self, paths: MachinePaths, deadline: Deadline, *, incoming: bool) -> Process:
        """Start QEMU; ``argv`` is known afterwards."""
        self.argv = build_argv(
            self.spec, paths, run_id=self.run_id, append=self.append, incoming=incoming
        )
        with self._log_file.open("ab") as output:
            return proc.spawn(self.argv, stdout=output, stderr=output, pass_fds=(paths.ram_fd,))

    def _make_monitor(self, paths: MachinePaths) -> Monitor:
        return Qmp(paths.qmp, watch=self.death)

    def _make_ram(self) -> None:
        self.ram_fd = os.memfd_create(f"liveupdate-{self.run_id}", os.MFD_CLOEXEC)
        self._stack.callback(os.close, self.ram_fd)
        os.ftruncate(self.ram_fd, self.spec.memory_bytes)

    def _map_ram(self, deadline: Deadline) -> PhysMem:
        """Map the RAM. :raises ValueError: the monitor does not say where it is."""
        ranges = parse_mtree(self.qmp.hmp("info mtree -f", deadline), self._ram_id)
        return PhysMem(self.ram_fd, self.spec.memory_bytes, ranges)

    def _describe_end(self, code: int) -> str:
        return f"signal {-code}" if code < 0 else f"exit {code}"

    @property
    def _log_file(self) -> Path:
        return self.run_dir / "qemu.log"

    def _connect(self, paths: MachinePaths, deadline: Deadline, *, booted: bool) -> None:
        self._qmp = self._make_monitor(paths)
        self._stack.callback(self._qmp.close)
        version = self._qmp.connect(deadline).get("qemu", {})
        if isinstance(version, dict):
            self.qemu_version = ".".join(
                str(version.get(k, "?")) for k in ("major", "minor", "micro")
            )
        self._console = self._stack.enter_context(
            Console(paths.console, self.run_dir, booted=booted, watch=self._process_death)
        )
        self._console.connect(deadline)
        self._agent = self._stack.enter_context(AgentLink(paths.agent, watch=self.death))
        self._agent.connect(deadline)
        kvm = self._qmp.execute("query-kvm", {}, deadline)
        self.kvm_enabled = bool(kvm.get("enabled")) if isinstance(kvm, dict) else None
        try:
            self.ssh_port = parse_ssh_port(self._qmp.hmp("info usernet", deadline))
            self._ram = self._stack.enter_context(self._map_ram(deadline))
        except ValueError as error:
            raise LaunchError(f"QEMU's monitor makes no sense: {error}") from error
        self._register()

    def _register(self) -> None:
        child = there(self._child)
        self._registry.add(
            Machine(
                run_id=self.run_id,
                pid=child.pid,
                start_time=child.start_time,
                owner_pid=os.getpid(),
                owner_start_time=proc.read_start_time(os.getpid()) or 0,
                runtime_dir=str(there(self._prepared).runtime_dir),
                run_dir=str(self.run_dir),
                ssh_port=self.ssh_port or None,
                accel=self.spec.accel,
            )
        )

    def _process_death(self) -> Exception | None:
        """Like :meth:`death`, but the console can still be read after a panic."""
        if self._child is None or self._child.returncode is None:
            return None
        return self.death()

    def _shutdown_event(self) -> QmpEvent | None:
        events = self._qmp.events() if self._qmp else ()
        return next((event for event in events if event.name == "SHUTDOWN"), None)

    def _end_process(self, problems: list[str]) -> None:
        child = there(self._child)
        try:
            if self._shutdown_event() is None:
                self.qmp.quit(Deadline.after(QUIT_TIMEOUT_S, "QEMU to take 'quit'"))
            # otherwise it is on its way out by itself, and answers no more
            child.wait(Deadline.after(QUIT_TIMEOUT_S, "QEMU to end"))
        except LiveUpdateError as error:
            if child.returncode is None and not self._killed:
                problems.append(f"QEMU had to be killed: {error}")
            child.kill()
