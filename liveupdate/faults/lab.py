# SPDX-License-Identifier: Apache-2.0
"""Faults of the host under update as a machine, of the ways into it and of the control host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liveupdate.core.deadline import Deadline
from liveupdate.faults.base import CALL_S, Moment, Part, errs, fault
from liveupdate.model.targets import Capability

if TYPE_CHECKING:
    from liveupdate.run.testbed import Testbed


@fault(
    "kill-agent",
    "the agent is killed before the jump",
    at=Moment.BROWNOUT,
    expect=errs("handover.session"),
)
def kill_agent(bed: Testbed) -> None:
    """Kill the agent over SSH."""
    deadline = Deadline.after(CALL_S, "the agent to be killed over SSH")
    bed.ssh(deadline).run(("kill", "-9", str(bed.agent_pid)), deadline).check()


@fault(
    "ssh-drop",
    "the way in by SSH is cut during the blackout",
    at=Moment.BLACKOUT,
    needs={Capability.MONITOR},
    expect=errs("handover.kho"),
)
def ssh_drop(bed: Testbed) -> None:
    """Cut the SSH network of the host under update."""
    bed.own_machine.cut_ssh()


@fault(
    "qmp-drop",
    "the monitor connection is cut during the blackout",
    at=Moment.BLACKOUT,
    needs={Capability.MONITOR_CUT},
    expect=errs("handover.kho"),
)
def qmp_drop(bed: Testbed) -> None:
    """Cut the connection to the monitor."""
    bed.own_machine.qmp.drop()


@fault(
    "qemu-killed",
    "the host under update's QEMU is killed",
    at=Moment.BLACKOUT,
    needs={Capability.PROCESS},
    expect=errs("handover.kho"),
)
def qemu_killed(bed: Testbed) -> None:
    """Kill QEMU, the machine of the host under update."""
    bed.own_machine.kill()


@fault(
    "disk-full",
    "the run directory's file system is full",
    at=Moment.BROWNOUT,
    needs={Part.DIGESTS},
    expect=errs("memory.content"),
)
def disk_full(bed: Testbed) -> None:
    """Let later writes to the run directory fail as on a full disk."""
    bed.record.fill_disk()
