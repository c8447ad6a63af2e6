# SPDX-License-Identifier: Apache-2.0
"""The registers of a guest's vCPUs, as the agent reports them; checked, as no host is trusted."""

from __future__ import annotations

from collections.abc import Iterable

from liveupdate.model import codec
from liveupdate.model.vcpu_state import VCPUS_MAX, VcpuState
from liveupdate.transport.agent_link import AgentEvent

EVENT = "vcpu-state"
_FIELDS = ("moment", "vcpu", "classes", "msrs", "refused")


def collect_vcpus(events: Iterable[AgentEvent], guest: str) -> tuple[VcpuState, ...]:
    """Take a guest's states from events, in order; one that follows no protocol is left out."""
    found: list[VcpuState] = []
    for event in events:
        if event.name != EVENT or event.guest != guest or len(found) >= 2 * VCPUS_MAX:
            continue
        try:
            row = [event.at_ns, *(event.data.get(field) for field in _FIELDS)]
            found.append(codec.decode(VcpuState, row, EVENT))
        except codec.CodecError:
            continue
    return tuple(found)
