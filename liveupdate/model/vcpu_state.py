# SPDX-License-Identifier: Apache-2.0
"""What KVM knew of one vCPU at one moment, as the host's agent read it through the VMM. Values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from liveupdate.model.base import Row

#: in hexadecimal; an agent reads at most 64 KiB of XSAVE
_Bytes = Annotated[str, Meta(pattern="^([0-9a-f]{2})*$", max_length=1 << 17)]
_Index = Annotated[str, Meta(pattern="^[0-9a-f]{1,8}$")]
_U64 = Annotated[str, Meta(pattern="^[0-9a-f]{1,16}$")]
_Short = Annotated[str, Meta(max_length=64)]

BEFORE, AFTER = "before", "after"
#: more than any guest has
VCPUS_MAX = 256


class VcpuState(Row, frozen=True, kw_only=True):
    """The registers of one vCPU.

    :ivar at_ns: when the agent's message arrived.
    :ivar moment: ``before``: it had stopped; ``after``: loaded on the incoming kernel, not yet run.
    :ivar classes: each class of state as KVM's ioctl gives it, in hexadecimal.
    :ivar msrs: index to value, both in hexadecimal.
    :ivar refused: what could not be read, and the error.
    """

    at_ns: int
    moment: Literal["before", "after"]
    vcpu: Annotated[int, Meta(ge=0, lt=VCPUS_MAX)]
    classes: Annotated[Mapping[_Short, _Bytes], Meta(max_length=16)]
    msrs: Annotated[Mapping[_Index, _U64], Meta(max_length=2048)]
    refused: Annotated[Mapping[_Short, _Short], Meta(max_length=2048)]
