# SPDX-License-Identifier: Apache-2.0
"""The plan of an update, made from what the host reports to run. Pure.

It is the plan of a scenario with one hop, so that the same judge judges it. The number of the hop
is the next one by the host's own count.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from liveupdate.model.plan import ImageSet, KernelImage, Plan
from liveupdate.model.scenario import Budget, GuestSpec, Observation, Scenario, Timeouts
from liveupdate.operate.preflight import Local
from liveupdate.operate.survey import GuestFacts, Survey
from liveupdate.planning.planner import MachineFacts, make_plan

NAME = "apply"


def plan_update(
    survey: Survey,
    local: Local,
    *,
    place: Path,
    append: str,
    host_key: Path,
    key: Path,
    observe: Observation,
    budget: Budget,
    timeouts: Timeouts = Timeouts(),
) -> Plan:
    """Make the plan.

    :param place: description of the host; :param append: the incoming kernel's command line.
    :raises PlanError: these kernels cannot do it.
    """
    outgoing = _outgoing(survey, local)
    scenario = Scenario(
        name=NAME,
        target=f"ssh:{place}",
        guests=tuple(_guest(guest) for _, guest in sorted(survey.guests.items())),
        observe=observe,
        timeouts=timeouts,
        budget=budget,
        cold=True,
        # the agent's record of an update has no room for it
        vcpu_state=False,
    )
    # unknown facts do not count against the kernel: the preflight has reported them
    known = {each.partition("-v")[0] for each in outgoing.abi}
    rest = tuple(each for each in local.incoming.abi if each.partition("-v")[0] not in known)
    images = ImageSet(
        outgoing=replace(outgoing, abi=(*outgoing.abi, *rest)),
        incoming=local.incoming,
        guest_kernel="",
        guest_initrd="",
        rootfs="",
        rootfs_sha256="",
        ssh_client_key=str(key),
        ssh_host_key_pub=str(host_key),
    )
    machine = MachineFacts(
        accel="remote",
        ram_available_bytes=0,
        run_free_bytes=local.run_free_bytes,
        append=append,
    )
    plan = make_plan(scenario, images, machine)
    number = survey.facts.generation + 1
    return replace(
        plan,
        images=replace(images, outgoing=outgoing),
        hops=tuple(replace(hop, number=number) for hop in plan.hops),
    )


def _outgoing(survey: Survey, local: Local) -> KernelImage:
    if local.outgoing is not None:
        return local.outgoing
    return KernelImage(
        path="",
        sha256="",
        release=survey.facts.release,
        build_id=survey.facts.build_id,
        abi=survey.abi,
    )


def _guest(guest: GuestFacts) -> GuestSpec:
    spec = guest.spec
    return GuestSpec(
        name=spec.name,
        memory_bytes=spec.memory_bytes,
        vcpus=spec.vcpus,
        pattern_bytes=spec.pattern_bytes,
        image=spec.image or None,
        liveness="agent" if spec.image else "payload",
    )
