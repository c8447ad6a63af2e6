# SPDX-License-Identifier: Apache-2.0
"""What a mechanism needs of both kernels, as far as their images tell. Pure; a part of planning."""

from __future__ import annotations

from liveupdate.core.errors import PlanError
from liveupdate.faults.base import Fault
from liveupdate.model.mechanism import Requirements
from liveupdate.model.plan import ImageSet, KernelImage
from liveupdate.model.scenario import Scenario
from liveupdate.scenario.load import where


def check_kernels(
    scenario: Scenario, images: ImageSet, mechanism: Requirements, fault: Fault | None
) -> None:
    """Both kernels must have every ABI of the mechanism, and the same."""
    name = fault.name if fault is not None else ""
    wanted = fault.change.abi if fault is not None and fault.change is not None else "same"
    for kernel, key in ((images.outgoing, "kernel"), (images.incoming, "next_kernel")):
        _need_modules(kernel, mechanism, where(scenario, key))
    out_where = where(scenario, "kernel") if scenario.kernel else "outgoing kernel"
    in_where = where(scenario, "next_kernel") if scenario.next_kernel else "incoming kernel"
    _need_abi(images.outgoing, mechanism, out_where)
    if wanted == "none":
        if _abi(images.incoming, "kho-v"):
            raise PlanError(
                f"{in_where}: fault '{name}' needs a kernel without KHO, and"
                f" '{images.incoming.path}' has it"
            )
        return
    _need_abi(images.incoming, mechanism, in_where)
    differing = [
        f"{_abi(images.outgoing, prefix)} -> {_abi(images.incoming, prefix)}"
        for prefix in mechanism.abi_prefixes
        if _abi(images.outgoing, prefix) != _abi(images.incoming, prefix)
    ]
    if wanted == "other":
        if not differing:
            raise PlanError(
                f"{in_where}: fault '{name}' needs a kernel of another ABI, and"
                f" '{images.incoming.path}' has the same"
            )
    elif differing:
        raise PlanError(
            f"{in_where}: '{images.incoming.path}' has another handover ABI"
            f" ({', '.join(differing)})",
            hint="the incoming kernel could not read what the outgoing one leaves",
        )


def _need_modules(kernel: KernelImage, mechanism: Requirements, place: str) -> None:
    if mechanism.modules and not kernel.modules:
        raise PlanError(
            f"{place}: mechanism '{mechanism.name}' needs our modules"
            f" ({', '.join(mechanism.modules)}), which are not built for kernel '{kernel.path}'",
            hint="leave the kernel out, or choose a mechanism that needs none: luo-memfd",
        )


def _abi(kernel: KernelImage, prefix: str) -> str:
    return next((text for text in sorted(kernel.abi) if text.startswith(prefix)), "")


def _need_abi(kernel: KernelImage, mechanism: Requirements, place: str) -> None:
    for prefix in mechanism.abi_prefixes:
        if not _abi(kernel, prefix):
            what = {"kho-v": "KHO", "luo-v": "LUO"}.get(prefix, prefix.removesuffix("-v"))
            options = " ".join(f"CONFIG_{symbol}=y" for symbol in mechanism.kconfig)
            raise PlanError(
                f"{place}: kernel '{kernel.path}' has no {what}",
                hint=f"mechanism '{mechanism.name}' needs {options}",
            )
