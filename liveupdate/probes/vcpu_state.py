# SPDX-License-Identifier: Apache-2.0
"""The registers of a guest's vCPUs, as the agent reports them; checked, as no host is trusted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from liveupdate.model import codec
from liveupdate.model.vcpu_state import VcpuState
from liveupdate.transport.agent_link import AgentEvent

EVENT = "vcpu-state"
_ERRORS = {
    EVENT: "the registers of its vCPUs cannot be read",
    "clock-carried": "its clock could not be carried over the blackout",
}
_ERROR_CHARS = 300
_FIELDS = ("moment", "vcpu", "classes", "msrs", "refused")


def find_errors(events: Iterable[AgentEvent], guest: str) -> Iterator[str]:
    """Say what an agent could not read or set of a guest's vCPUs and clock."""
    for event in events:
        what, error = _ERRORS.get(event.name), event.data.get("error")
        if event.guest == guest and what is not None and isinstance(error, str):
            yield f"{what}: {error[:_ERROR_CHARS]}"


def collect_vcpus(events: Iterable[AgentEvent], guest: str, vcpus: int) -> tuple[VcpuState, ...]:
    """Take a guest's states from events, in order; one that follows no protocol is left out.

    :param vcpus: how many it has; one state more than these can have is kept, which shows.
    """
    found: list[VcpuState] = []
    for event in events:
        if event.name != EVENT or event.guest != guest or len(found) > 2 * vcpus:
            continue
        try:
            row = [event.at_ns, *(event.data.get(field) for field in _FIELDS)]
            found.append(codec.decode(VcpuState, row, EVENT))
        except codec.CodecError:
            continue
    return tuple(found)
