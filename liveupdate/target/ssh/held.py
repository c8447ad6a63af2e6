# SPDX-License-Identifier: Apache-2.0
"""A machine that is updated as it is: it is not reset, and one update holds its agent.

Processes come and go during an update and take it again each time. Its console is useful but not
needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LaunchError, LiveUpdateError, LostMachine, RemoteError
from liveupdate.target.machines import Registry
from liveupdate.target.ssh.host import AGENT_SOCKET, SshHost, log_in
from liveupdate.target.ssh.spec import ConsoleSpec, LabMachine
from liveupdate.transport.agent_link import Garbled, Reply, parse_line

log = logging.getLogger(__name__)

#: an update outlives its process, and a place would be released with the process
NO_CONSOLE = "it is a labgrid place's, and an update takes no place"
_CONSOLE_S = 5.0
_LOOK_S = 0.05
#: sends the lines it is given, and prints the answer to call 1
_ASK = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(float(sys.argv[2]))
s.connect(sys.argv[1])
for line in sys.argv[3:]:
    s.sendall(line.encode() + b"\\n")
for line in s.makefile("rb"):
    found = json.loads(line) if line.strip() else {}
    if found.get("re") == 1 or (found.get("re") == 0 and "error" in found):
        sys.stdout.buffer.write(line)
        break
"""


class HeldHost(SshHost):
    """One machine, held by one update from entering it until the update releases it."""

    def __init__(
        self,
        machine: LabMachine,
        *,
        run_id: str,
        run_dir: Path,
        registry: Registry,
        update: str,
        owner: str,
        console_dir: Path | None = None,
    ) -> None:
        """:param console_dir: directory for the console's log, if not ``run_dir``."""
        super().__init__(machine, run_id=run_id, run_dir=run_dir, registry=registry)
        self._attach = {"id": update, "owner": owner}
        self._console_dir = console_dir or run_dir

    @property
    def has_console(self) -> bool:
        """Whether the console is being read."""
        return self._console is not None

    def _reach(self, deadline: Deadline) -> None:
        runtime = self._make_runtime_dir()
        self._try_console(runtime)
        self._connect_agent(runtime, deadline)

    def _try_console(self, runtime: Path) -> None:
        if self.machine.console != ConsoleSpec():
            try:
                self._console = self._connect_console(
                    runtime, self._console_dir, _CONSOLE_S, booted=True
                )
            except (LiveUpdateError, OSError) as error:
                # an update goes on without it, but a panic then looks like a reset
                log.warning("the console of the host is not read: %s", error)

    def death(self) -> Exception | None:
        """Return None also after a panic: the machine may come back and can be asked then."""
        return None if self._stopping else self._refusal

    def reconnect(self) -> None:
        """Drop the connection to the agent and make a new one: a lost network gives no error."""
        if self._relay is not None:
            self._relay.drop()

    def wait_line(self, deadline: Deadline) -> None:
        """Wait until the agent can be reached; before that, calls would be dropped.

        :raises DeadlineExceeded: it cannot be reached.
        :raises WrongHostKey, HostLocked: waiting does not help.
        """

        def look() -> bool | None:
            if self._refusal is not None:
                raise self._refusal
            return True if self._relay is not None and self._relay.is_open else None

        wait_until(look, deadline, interval_s=_LOOK_S, describe=lambda: self.trouble)

    @property
    def trouble(self) -> str:
        """Why there is no connection to the agent now; "": there is one, as far as is known."""
        return self._relay.trouble if self._relay is not None else "not entered"


def ask(
    machine: LabMachine,
    name: str,
    args: Mapping[str, object],
    deadline: Deadline,
    *,
    attach: bool = False,
) -> Mapping[str, object]:
    """Send a machine's agent one call, while another process may be connected.

    :param attach: the call changes something, so no other process may be connected.
    :raises LiveUpdateError: the machine cannot be reached.
    :raises RemoteError: the agent refuses.
    :raises LaunchError: there is no agent.
    """
    lines = [json.dumps({"seq": 1, "call": name, "args": dict(args)})]
    if attach:
        lines.insert(0, json.dumps({"seq": 0, "call": "attach", "args": {"id": ""}}))
    with log_in(machine, deadline) as ssh:
        limit = f"{deadline.remaining_s:.1f}"
        done = ssh.run(("python3", "-I", "-S", "-c", _ASK, AGENT_SOCKET, limit, *lines), deadline)
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise LaunchError(f"the host runs no agent of liveupdate: {said}", hint="see docs/apply.md")
    answer = parse_line(done.stdout.strip())
    if not isinstance(answer, Reply):
        why = answer.why if isinstance(answer, Garbled) else "no reply"
        raise LostMachine(f"the agent gave no valid answer to '{name}': {why}", how="garbled")
    if answer.ok is None:
        raise RemoteError(name, answer.kind, answer.message)
    return answer.ok
