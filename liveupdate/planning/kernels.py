# SPDX-License-Identifier: Apache-2.0
"""Whether a run may jump from one kernel to the other. Pure; a part of planning."""

from __future__ import annotations

from msgspec.structs import replace

from liveupdate.core.errors import PlanError
from liveupdate.faults.base import Fault
from liveupdate.model.mechanism import Requirements
from liveupdate.model.plan import ImageSet, KernelImage
from liveupdate.model.scenario import Scenario
from liveupdate.planning.compat import Outcome, abi_of, compare
from liveupdate.scenario.load import where


def name_for(kernel: KernelImage, append: str) -> str:
    """Give the parameters of a command line the names that this kernel has for them.

    7.4 renames kho_scratch= (8fe64603a475 "kho: rename kho_scratch= commandline parameter").
    """
    old, new = "kho_scratch=", "kho_bootmem="
    if kernel.has_feature(new):
        return append.replace(old, new)
    return append.replace(new, old) if kernel.has_feature(old) else append


def check_kernels(
    scenario: Scenario,
    images: ImageSet,
    mechanism: Requirements,
    fault: Fault | None,
    *,
    testbed: bool,
) -> None:
    """Refuse kernels between which the guests would be lost, unless that is what is wanted.

    :param testbed: the host is made for the run; other machines boot by means of their own.
    :raises PlanError: naming what would happen and why, or what a fault needs.
    """
    name = fault.name if fault is not None else ""
    wanted = fault.change.abi if fault is not None and fault.change is not None else "same"
    keys = {
        "outgoing": ("kernel", "kernel_tree"),
        "incoming": ("next_kernel", "next_kernel_tree", "kernel_tree"),
    }
    places = {
        side: next(
            (where(scenario, key) for key in names if getattr(scenario, key)), f"{side} kernel"
        )
        for side, names in keys.items()
    }
    outgoing, incoming = images.outgoing, images.incoming
    place = f"{places['incoming']}: fault '{name}' needs a kernel"
    if wanted == "none" and abi_of(incoming, "kho-v"):
        raise PlanError(f"{place} without KHO, and '{incoming.path}' has it")
    pairs = [(abi_of(outgoing, text), abi_of(incoming, text)) for text in mechanism.abi_prefixes]
    if wanted == "other" and all(left == read for left, read in pairs):
        raise PlanError(f"{place} of another ABI, and '{incoming.path}' has the same")
    if wanted != "same" or scenario.jump_anyway:
        return
    if not testbed:
        outgoing, incoming = replace(outgoing, lacks=()), replace(incoming, lacks=())
    worst = compare(outgoing, incoming, mechanism)[:1]
    for finding in worst:
        if finding.outcome >= Outcome.LOST:
            path = getattr(images, finding.side).path
            raise PlanError(
                f"{places[finding.side]}: with '{path}' the outcome would be"
                f" '{finding.outcome.text}': {finding.why}",
                hint="'liveupdate compat' shows all reasons, --jump-anyway runs it all the same",
            )
