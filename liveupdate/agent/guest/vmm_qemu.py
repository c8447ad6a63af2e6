# SPDX-License-Identifier: Apache-2.0
"""VMM adapter: QEMU with migration mode ``cpr-reboot`` (QEMU docs/devel/migration/CPR.rst).

RAM is a file of the agent's, mapped shared and skipped by ``x-ignore-shared``; all other state
goes to a memfd. The adapter is chosen by what ``query-qmp-schema`` lists, never by version.
"""

from __future__ import annotations

import os
import select
import time

from ..base.fast_stdlib import TYPE_CHECKING, close_fd, connect_unix, listen_unix
from ..base.names import KindError
from .qmp import Qmp, QmpError, QmpLost
from .spec import MIB, GuestSpec

if TYPE_CHECKING:
    from ..base.fast_stdlib import Socket
    from ..mechanisms.base import Ram

QEMU = "/usr/bin/qemu-system-x86_64"
RUN_DIR = "/run/liveupdate"
KIT_DIR = "/kit"
ADAPTER = "cpr-reboot"

#: under TCG a VMM takes seconds to start, and there may be many at once
START_S = 60.0
COMMAND_S = 30.0
#: a guest's drivers have to stop their devices, and to start them again
SLEEP_S = 15.0
TAIL_BYTES = 2000

_SAVE_SETUP: list[tuple[str, dict[str, object]]] = [
    ("migrate-set-parameters", {"mode": ADAPTER}),
    (
        "migrate-set-capabilities",
        {
            "capabilities": [
                {"capability": "x-ignore-shared", "state": True},
                # the end of a migration is an event, not polled for
                {"capability": "events", "state": True},
            ]
        },
    ),
]


class VmmError(KindError):
    """The VMM did not do what it was told; ``kind`` names the request."""


def build_argv(
    spec: GuestSpec, ram: Ram, fds: dict[str, int], disk: str, *, incoming: bool
) -> list[str]:
    """Return the VMM's command line.

    :param fds: descriptors that it inherits under the numbers they have here, beside the RAM's:
        ``tap``, ``qmp``, ``payload`` and, if it has a guest agent, ``qga``.

    The devices depend on ``spec`` alone, because the state of one process must fit the next. Slots
    are given, so that the order of options does not matter.
    """
    # fmt: off
    argv = [
        QEMU,
        "-name", spec.name,
        "-nodefaults", "-no-user-config", "-no-reboot",
        # a guest that takes its VMM over can neither start programs nor get rights by them
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-display", "none",
        "-accel", "kvm",
        "-cpu", "host",
        "-smp", str(spec.vcpus),
        "-m", f"{spec.memory_bytes // MIB}M",
        # unused devices cost start-up time in the blackout; irqchip: KVM may have
        # been built without PIC and IO-APIC (CONFIG_KVM_IOAPIC), and SMM
        "-machine", "q35,memory-backend=ram,kernel-irqchip=split,smm=off,graphics=off,vmport=off,"
                    "smbus=off,sata=off,usb=off",
        "-object", f"memory-backend-file,id=ram,size={spec.memory_bytes},"
                   f"mem-path=/proc/self/fd/{ram.fd},share=on"
                   f"{f',offset={ram.offset}' if ram.offset else ''}"
                   f"{f',align={ram.align}' if ram.align else ''}",
        "-chardev", f"socket,id=qmp,fd={fds['qmp']},server=on,wait=off",
        "-qmp", "chardev:qmp",
        "-chardev", f"file,id=serial,path={RUN_DIR}/{spec.name}.serial,append=on",
        "-serial", "chardev:serial",
        "-blockdev", f"driver=raw,node-name=disk,file.driver=host_device,file.filename={disk},"
                     # O_DIRECT wants pages it can take a reference to; a copy is as durable, as the
                     # guest's flushes are passed on
                     f"file.aio=threads,cache.direct={'on' if ram.pinnable else 'off'}",
        "-device", f"virtio-blk-pci,drive=disk,addr=0x2,serial={spec.name}",
        "-netdev", f"tap,id=net,fd={fds['tap']},vhost=off",
        "-device", f"virtio-net-pci,netdev=net,addr=0x3,mac={spec.mac},romfile=",
        "-device", "virtio-serial-pci,id=vser,addr=0x4,max_ports=4",
        "-chardev", f"socket,id=payload,fd={fds['payload']},server=on,wait=off",
        "-device", "virtserialport,bus=vser.0,nr=1,chardev=payload,name=org.liveupdate.guest",
    ]
    if "qga" in fds:
        argv += [
            "-chardev", f"socket,id=qga,fd={fds['qga']},server=on,wait=off",
            "-device", "virtserialport,bus=vser.0,nr=2,chardev=qga,name=org.qemu.guest_agent.0",
        ]
    if not spec.image:
        argv += [
            "-kernel", f"{KIT_DIR}/guest-kernel",
            "-initrd", f"{KIT_DIR}/guest-initrd",
            "-append", spec.kernel_append(),
        ]
    # fmt: on
    if spec.devices:
        from .passthrough import device_argv

        argv += device_argv(spec.devices)
    return [*argv, "-incoming", "defer"] if incoming else argv


def choose_adapter(raw: object) -> str:
    """Return the adapter that a VMM with this ``query-qmp-schema`` answer can be handled by.

    :raises VmmError: ``unsupported``, naming what is missing.
    """
    schema = {
        str(item.get("name")): item
        for item in (raw if isinstance(raw, list) else [])
        if isinstance(item, dict)
    }
    if ADAPTER not in _values(schema, "migrate-set-parameters", "mode"):
        raise VmmError("unsupported", f"this QEMU has no migration mode '{ADAPTER}'")
    capabilities = _values(schema, "migrate-set-capabilities", "capabilities", "capability")
    if "x-ignore-shared" not in capabilities:
        raise VmmError("unsupported", "this QEMU has no migration capability 'x-ignore-shared'")
    return ADAPTER


def _values(schema: dict[str, dict[str, object]], command: str, *path: str) -> list[object]:
    """Return the values of the enum that is a member, or a member's member, of the arguments."""
    at = schema.get(command, {}).get("arg-type")
    for name in path:
        members = _members(schema, at)
        at = next((item.get("type") for item in members if item.get("name") == name), None)
        at = schema.get(str(at), {}).get("element-type", at)  # of a list, what is in it
    values = schema.get(str(at), {}).get("values")  # before QEMU 6.2 gave enums members
    named: list[object] = [item.get("name") for item in _members(schema, at)]
    return named or (values if isinstance(values, list) else [])


def _members(schema: dict[str, dict[str, object]], name: object) -> list[dict[str, object]]:
    members = schema.get(str(name), {}).get("members")
    return [m for m in members if isinstance(m, dict)] if isinstance(members, list) else []


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


class QemuVmm:
    """One QEMU process: start, save or load, quit. Methods block; one thread at a time."""

    def __init__(self, spec: GuestSpec) -> None:
        self.spec = spec
        self.argv: list[str] = []
        self.pid = -1
        self.pidfd = -1
        #: the number under which it has its guest's RAM
        self.ram_fd = -1
        #: exit status (negative: signal), None while it runs
        self.status: int | None = None
        #: its end was requested, so it needs no event
        self.ending = False
        self.version = ""
        self.payload: Socket | None = None
        self.qga: Socket | None = None
        self._qmp: Qmp | None = None

    # --- life

    def spawn(self, ram: Ram, tap: int, disk: str, *, incoming: bool) -> None:
        """Start the process; on return its sockets are connected, and its monitor is not yet up."""
        base = f"{RUN_DIR}/{self.spec.name}"
        names = ["qmp", "payload"] + (["qga"] if self.spec.qga else [])
        listeners = {name: listen_unix(f"{base}.{name}") for name in names}
        try:
            fds = {"tap": tap, **{name: sock.fileno() for name, sock in listeners.items()}}
            self.ram_fd = ram.fd
            self.argv = build_argv(self.spec, ram, fds, disk, incoming=incoming)
            log = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self.pid = os.posix_spawn(
                QEMU,
                self.argv,
                {"PATH": "/usr/bin:/bin", "LANG": "C"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, f"{base}.stderr", log, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    # onto itself: clears close-on-exec (glibc 2.29, POSIX.1-2024)
                    *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in (ram.fd, *fds.values())),
                ],
                setsid=True,
            )
            self.pidfd = os.pidfd_open(self.pid)
            if self.spec.cpu >= 0:
                # before it has made any thread
                os.sched_setaffinity(self.pid, {self.spec.cpu})
            self._connect()
        finally:
            for sock in listeners.values():
                sock.close()

    def _connect(self) -> None:
        base = f"{RUN_DIR}/{self.spec.name}"
        self._qmp = Qmp(connect_unix(f"{base}.qmp"))
        self._connect_payload()
        if self.spec.qga:
            self.qga = connect_unix(f"{base}.qga")

    def _connect_payload(self) -> None:
        self.payload = connect_unix(f"{RUN_DIR}/{self.spec.name}.payload")
        self.payload.setblocking(False)

    def adopt(self, pid: int, ram_fd: int) -> None:
        """Take over a process that an earlier agent started and to which no process is
        connected.
        """
        self.pid, self.ram_fd = pid, ram_fd
        self.pidfd = os.pidfd_open(pid)
        self._connect()
        self.greet()

    def greet(self) -> None:
        """Wait until the monitor answers."""
        try:
            version = self._monitor().greet(time.monotonic() + START_S)
        except QmpLost as err:
            said = self.stderr_tail() or "it said nothing"
            raise VmmError("vmm-start", f"{err}; {said}") from err
        qemu = version.get("qemu")
        if isinstance(qemu, dict):
            self.version = f"{qemu.get('major')}.{qemu.get('minor')}.{qemu.get('micro')}"

    def check_adapter(self) -> str:
        """Return the name of the adapter that fits this QEMU.

        :raises VmmError: none does.
        """
        return choose_adapter(self._execute("query-qmp-schema", {}))

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        if self.status is None and self.pidfd >= 0:
            import signal  # pulls in enum; never needed when all goes well

            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def wait_end(self, timeout_s: float) -> None:
        """Wait for the end of the process and reap it; kill it when that takes too long."""
        if self.pidfd < 0 or self.status is not None:
            return
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            self.kill()
        self.reap()

    def reap(self) -> int:
        """Reap the ended process and return its status. Idempotent."""
        if self.status is None:
            try:
                _pid, status = os.waitpid(self.pid, 0)
                self.status = os.waitstatus_to_exitcode(status)
            except ChildProcessError:
                self.status = -1 if self.status is None else self.status
        return self.status

    def close(self) -> None:
        """Close the sockets and descriptors of an ended process."""
        for each in (self.payload, self.qga, self._qmp):
            if each is not None:
                each.close()
        self.payload = self.qga = self._qmp = None
        self.pidfd = close_fd(self.pidfd)

    def stderr_tail(self) -> str:
        """Return the end of the VMM's stderr."""
        return _tail(f"{RUN_DIR}/{self.spec.name}.stderr")

    def last_words(self) -> str:
        """Return the last output of the VMM, and of the guest on its console.

        With ``-no-reboot`` a guest that panics is a VMM that ends and prints nothing.
        """
        said = self.stderr_tail() or "nothing"
        console = _tail(f"{RUN_DIR}/{self.spec.name}.serial") or "nothing"
        return f"the VMM said {said}; the guest's console: {console}"

    # --- the guest in it

    def query_status(self) -> str:
        """Return QEMU's run state, such as ``running``."""
        reply = self._execute("query-status", {})
        return str(reply.get("status")) if isinstance(reply, dict) else "unknown"

    def stop(self) -> None:
        """Stop the vCPUs."""
        self._execute("stop", {})

    def cont(self) -> None:
        """Let the vCPUs run."""
        self._execute("cont", {})

    def send_to_sleep(self) -> None:
        """Have the payload suspend the guest to RAM; return when it sleeps.

        :raises VmmError: it does not sleep, and may do so later.
        """
        line = b'{"cmd":"sleep"}\n'
        try:
            if self.payload is None or self.payload.send(line) != len(line):
                raise BlockingIOError
        except OSError as err:
            raise VmmError("sleep", f"guest '{self.spec.name}' does not read its port") from err
        try:
            self._monitor().wait_event("SUSPEND", lambda _data: True, time.monotonic() + SLEEP_S)
        except QmpLost as err:
            said = f"guest '{self.spec.name}' does not go to sleep: {err}"
            raise VmmError("sleep", said) from err

    def reopen_payload(self) -> None:
        """Connect to the payload's port again; the reader of the old connection sees its end."""
        import _socket

        old = self.payload
        if old is not None:
            try:  # noqa: SIM105 - contextlib costs an import
                old.shutdown(_socket.SHUT_RDWR)
            except OSError:
                pass  # closed by the other end
        self._connect_payload()

    def wake(self) -> None:
        """Wake a sleeping guest; it is awake some time later."""
        self._execute("system_wakeup", {})

    def reset(self) -> None:
        """Reset the guest; with ``-no-reboot`` that ends the VMM."""
        self._batch([("set-action", {"reboot": "reset"}), ("system_reset", {})])

    def wait_reset(self) -> str:
        """Wait until the VMM reports the reset, and return its reason.

        :raises VmmError: it does not.
        """
        wanted = "host-qmp-system-reset"
        try:
            data = self._monitor().wait_event(
                "RESET", lambda d: d.get("reason") == wanted, time.monotonic() + COMMAND_S
            )
        except QmpLost as err:
            raise VmmError("vmm", f"guest '{self.spec.name}': {err}") from err
        return f"RESET, {data.get('reason')}"

    def arm(self) -> None:
        """Do all of ``save`` that can be done ahead, in the brownout."""
        self._batch(_SAVE_SETUP)

    def save(self, state: int) -> int:
        """Write the stopped guest's state into memfd ``state``; return its size in bytes."""
        # The VMM opens the agent's descriptor: it was started long before that memfd was made.
        self._batch([("migrate", {"uri": f"file:/proc/{os.getpid()}/fd/{state}"})])
        self._await_migration("save")
        return os.fstat(state).st_size

    def load(self, state: int) -> None:
        """Load what ``save`` wrote; the guest stays stopped."""
        uri = f"file:/proc/{os.getpid()}/fd/{state}"
        self._batch([*_SAVE_SETUP, ("migrate-incoming", {"uri": uri})])
        self._await_migration("load")

    # --- plumbing

    def _monitor(self) -> Qmp:
        if self._qmp is None:
            raise VmmError("vmm", "the VMM is not running")
        return self._qmp

    def _execute(self, command: str, args: dict[str, object]) -> object:
        return self._batch([(command, args)])[-1]

    def _batch(self, commands: list[tuple[str, dict[str, object]]]) -> list[object]:
        try:
            return self._monitor().batch(commands, time.monotonic() + COMMAND_S)
        except QmpError as err:
            raise VmmError("vmm", f"guest '{self.spec.name}': {err}") from err
        except QmpLost as err:
            said = f"guest '{self.spec.name}': {err}; {self.last_words()}"
            raise VmmError("vmm", said) from err

    def _await_migration(self, what: str) -> None:
        ended = ("completed", "failed", "cancelled")
        try:
            data = self._monitor().wait_event(
                "MIGRATION", lambda d: d.get("status") in ended, time.monotonic() + COMMAND_S
            )
        except QmpLost as err:
            said = f"guest '{self.spec.name}': {err}; {self.last_words()}"
            raise VmmError(what, said) from err
        if data.get("status") != "completed":
            info = self._execute("query-migrate", {})
            why = info.get("error-desc") if isinstance(info, dict) else None
            raise VmmError(what, f"guest '{self.spec.name}': migration {data}: {why}")
