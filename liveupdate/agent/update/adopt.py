# SPDX-License-Identifier: Apache-2.0
"""Guests that outlive the agent: what a new agent has to know to take them back.

VMMs are processes of their own and do not end with the agent. Its sessions do, so the kernel drops
an update that was prepared. A file under /run says which process is which guest; a guest's RAM is
opened through its VMM.
"""

from __future__ import annotations

import os

from ..base import host
from ..base.fast_stdlib import TYPE_CHECKING, decode_json, encode_json, try_read_text
from ..guest.guests import Guest
from ..guest.spec import GuestSpec
from ..guest.vmm_qemu import RUN_DIR, VmmError
from ..mechanisms.base import Ram

if TYPE_CHECKING:
    from .holder import Holder

STATE_PATH = f"{RUN_DIR}/guests.json"


def start_time(pid: int) -> str:
    """Return when a process was started, in clock ticks since boot; "": there is no such process.

    A pid may be reused, but not with the same start time.
    """
    stat = try_read_text(f"/proc/{pid}/stat")
    # the name may hold blanks and brackets; the start is field 22 of proc_pid_stat(5)
    return stat.rpartition(")")[2].split()[19] if stat else ""


def write_state(agent: Holder) -> None:
    """Record which process is which guest. A failure costs a later adoption only."""
    rows: list[dict[str, object]] = []
    for guest in agent.guests.values():
        if guest.ram is None or guest.error is not None:
            continue
        rows.append(
            {
                "spec": guest.spec.to_json(),
                "pid": guest.vmm.pid,
                "start": start_time(guest.vmm.pid),
                "ram": [guest.vmm.ram_fd, guest.ram.size, guest.ram.offset, guest.ram.align],
            }
        )
    try:
        with open(f"{STATE_PATH}.new", "wb") as file:
            file.write(encode_json({"boot_id": host.boot_id(), "guests": rows}))
        os.replace(f"{STATE_PATH}.new", STATE_PATH)
    except OSError as err:
        agent.emit("agent-error", {"call": "write_state", "message": str(err)})


def adopt(agent: Holder) -> None:
    """Take back the guests that an earlier agent of this boot left running."""
    try:
        with open(STATE_PATH, "rb") as file:
            state = decode_json(file.read(4 << 20))
    except (OSError, ValueError) as err:
        agent.emit("agent-error", {"call": "adopt", "message": str(err)})
        return
    if not isinstance(state, dict) or state.get("boot_id") != host.boot_id():
        return
    rows = state.get("guests")
    for row in rows if isinstance(rows, list) else []:
        try:
            guest = _adopt_one(agent, row)
        except (OSError, ValueError, KeyError, TypeError, VmmError) as err:
            agent.emit("adopt-failed", {"message": f"{type(err).__name__}: {err}"})
            continue
        agent.guests[guest.spec.name] = guest
        agent.watch(guest)
        agent.emit("adopted", {"guest": guest.spec.name, "pid": guest.vmm.pid})


def _adopt_one(agent: Holder, row: dict[str, object]) -> Guest:
    spec = GuestSpec(row["spec"])
    pid, ram = row["pid"], row["ram"]
    if not isinstance(pid, int) or start_time(pid) != row["start"]:
        raise VmmError("vmm", f"the VMM of guest '{spec.name}' has ended")
    if not isinstance(ram, list):
        raise ValueError("'ram' is no list")
    number, size, offset, align = map(int, ram)
    guest = Guest(spec, agent.handover.open(), agent.network, agent.emit, agent.watch)
    fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    guest.ram = Ram(fd, size, offset=offset, align=align)
    guest.vmm.adopt(pid, number)
    # the earlier agent may have gone in the middle of a freeze
    if guest.vmm.query_status() != "running":
        guest.vmm.cont()
    guest.running = True
    return guest
