# SPDX-License-Identifier: Apache-2.0
"""What the agent of a host surveyed (liveupdate/agent/update/survey.py), as values. Pure.

It comes from the host and is untrusted: it is decoded strictly.
"""

from __future__ import annotations

from collections.abc import Mapping

from liveupdate.model import codec
from liveupdate.model.base import Value
from liveupdate.model.evidence import KernelFacts


class GuestSpecFacts(Value, frozen=True, kw_only=True):
    """A guest as the agent runs it (SPEC_KEYS of the agent's module)."""

    name: str
    memory_bytes: int
    vcpus: int
    pattern_bytes: int
    disk: str
    image: str
    qga: bool


class GuestFacts(Value, frozen=True, kw_only=True):
    """A guest of the survey: its description and its state now."""

    spec: GuestSpecFacts
    pid: int
    status: str | None
    adapter: str | None
    disk: str | None
    ram_bytes: int | None
    error: str | None


class Opener(Value, frozen=True, kw_only=True):
    """A process that has /dev/liveupdate open."""

    pid: int
    name: str


class Stranger(Value, frozen=True, kw_only=True):
    """A virtual machine that the agent does not run."""

    pid: int
    name: str
    guest: str
    libvirt: bool


class VfioFacts(Value, frozen=True, kw_only=True):
    """A device that is bound to vfio-pci."""

    bdf: str
    keep: str | None


class KexecFacts(Value, frozen=True, kw_only=True):
    """The host's means to load a kernel."""

    program: bool
    loaded: bool | None
    disabled: bool | None


class AgentFacts(Value, frozen=True, kw_only=True):
    """The state of the agent, and the update that holds the host."""

    pid: int
    handover: str
    #: id, owner, since, digest, watch of the update that holds the host
    update: Mapping[str, object] | None
    #: started by systemd
    unit: bool


class Survey(Value, frozen=True, kw_only=True):
    """What the agent's call ``survey`` answers."""

    facts: KernelFacts
    abi: tuple[str, ...]
    options: Mapping[str, str] | None
    kexec: KexecFacts
    owners: tuple[Opener, ...]
    memory: Mapping[str, int]
    run_free_bytes: int
    guests: Mapping[str, GuestFacts]
    strangers: tuple[Stranger, ...]
    devices: Mapping[str, Mapping[str, object]]
    vfio: tuple[VfioFacts, ...]
    agent: AgentFacts


def read_survey(answer: Mapping[str, object]) -> Survey:
    """Decode the agent's answer.

    :raises codec.CodecError: it does not follow the protocol.
    """
    return codec.decode(Survey, dict(answer), "survey")
