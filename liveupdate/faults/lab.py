# SPDX-License-Identifier: Apache-2.0
"""Faults of the host under update as a machine, of the ways into it and of the control host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.faults.base import CALL_S, Later, Moment, Part, errs, fault, struck
from liveupdate.model.evidence import Struck
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    from liveupdate.run.testbed import Testbed


_ENDED = ("gone", "Z")
_WRITES = "everything could be stored"


@fault(
    "kill-agent",
    "the agent is killed before the jump",
    at=Moment.BROWNOUT,
    expect=errs("handover.session"),
)
def kill_agent(bed: Testbed) -> Struck:
    """Kill the agent over SSH."""
    deadline = Deadline.after(CALL_S, "the agent to be killed over SSH")
    ssh, pid = bed.ssh(deadline), bed.agent_pid

    def look() -> str:
        return read_state(ssh.run(("cat", f"/proc/{pid}/stat"), deadline).stdout)

    def look_for_end() -> str | None:
        state = look()
        return state if state in _ENDED else None

    before = look()
    ssh.run(("kill", "-9", str(pid)), deadline).check()
    after = wait_until(look_for_end, deadline)
    return struck("the agent", f"process {pid} of the host, over SSH", before, after)


@fault(
    "ssh-drop",
    "the way in by SSH is cut during the blackout",
    at=Moment.BLACKOUT,
    needs={Capability.MONITOR},
    expect=errs("handover.kho"),
)
def ssh_drop(bed: Testbed) -> Struck:
    """Cut the SSH network of the host under update."""
    before = bed.read_link()
    bed.own_machine.cut_ssh()
    return struck("link of SSH's network card", "its register", before, bed.read_link())


@fault(
    "qmp-drop",
    "the monitor connection is cut during the blackout",
    at=Moment.BLACKOUT,
    needs={Capability.MONITOR_CUT},
    expect=errs("handover.kho"),
)
def qmp_drop(bed: Testbed) -> Later:
    """Cut the connection to the monitor."""
    qmp = bed.own_machine.qmp
    before = _say_connection(qmp.lost)
    qmp.drop()
    return lambda: struck(
        "the connection to QEMU's monitor", "the control host", before, _say_connection(qmp.lost)
    )


@fault(
    "qemu-killed",
    "the host under update's QEMU is killed",
    at=Moment.BLACKOUT,
    needs={Capability.PROCESS},
    expect=errs("handover.kho"),
)
def qemu_killed(bed: Testbed) -> Later:
    """Kill QEMU, the machine of the host under update."""
    machine = bed.own_machine
    where = f"process {machine.pid} of the control host"
    before = read_state(machine.read_stat())
    machine.kill()
    return lambda: struck("QEMU", where, before, read_state(machine.read_stat()))


@fault(
    "disk-full",
    "the run directory's file system is full",
    at=Moment.BROWNOUT,
    needs={Part.DIGESTS},
    expect=errs("memory.content"),
)
def disk_full(bed: Testbed) -> Later:
    """Let later writes to the run directory fail as on a full disk."""
    before = bed.record.failure or _WRITES
    bed.record.fill_disk()
    # this record is one of those that cannot be stored; the run that made it has it all the same
    return lambda: struck(
        "the run directory", str(bed.record.path), before, bed.record.failure or _WRITES
    )


def _say_connection(lost: str | None) -> str:
    return "connected" if lost is None else f"gone: {lost}"


def read_state(stat: bytes) -> str:
    """Return a process's state, a letter, from ``/proc/PID/stat`` (proc_pid_stat(5)); "gone" when
    there is none.
    """
    # the name in field 2 may hold anything: from its last parenthesis on
    fields = stat.rpartition(b")")[2].split()
    return fields[0].decode(errors="replace") if fields else "gone"
