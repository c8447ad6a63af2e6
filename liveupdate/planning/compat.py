# SPDX-License-Identifier: Apache-2.0
"""What will happen when one kernel hands guests over to another, as far as both images tell.

Pure: a table of rules over two :class:`KernelImage`. ``liveupdate compat`` prints what they say,
and the planner refuses a run that would lose the guests. Each rule names its source; paths are of
Linux 7.3 unless a rule names another release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from msgspec import UNSET

from liveupdate.model.kernel_needs import BY_SYMBOL, Without
from liveupdate.model.mechanism import KHO, LUO, Requirements
from liveupdate.model.plan import KernelImage


class Outcome(IntEnum):
    """What becomes of the guests. Of several findings, the greatest is what happens."""

    PASSES = 0
    #: they pass, and a check of the run has no evidence
    UNPROVEN = 1
    #: an image does not tell
    UNKNOWN = 2
    LOST = 3
    #: the incoming kernel does not come up
    PANIC = 4
    #: nothing is handed over, and there is no jump: the outgoing kernel cannot
    REFUSED = 5

    @property
    def text(self) -> str:
        """Return it for people."""
        return {
            Outcome.PASSES: "passes",
            Outcome.UNPROVEN: "passes, and a check has no evidence",
            Outcome.UNKNOWN: "cannot be told",
            Outcome.LOST: "memory lost",
            Outcome.PANIC: "panic",
            Outcome.REFUSED: "refused",
        }[self]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says of a pair: outcome, whose doing it is, why, and the rule's source."""

    outcome: Outcome
    side: str
    why: str
    source: str


Rule = Callable[[KernelImage, KernelImage, Requirements], Iterator[Finding]]

_INCOMING = {
    Without.PANIC: Outcome.PANIC,
    Without.UNREACHABLE: Outcome.PANIC,
    Without.HANDOVER: Outcome.LOST,
    Without.GUESTS: Outcome.LOST,
    Without.UNPROVEN: Outcome.UNPROVEN,
}
_MISMATCH = {
    "kho-v": (
        Outcome.LOST,
        "the incoming kernel disables the revival of what KHO kept",
        "kernel/liveupdate/kexec_handover.c, kho_populate()",
    ),
    "luo-v": (
        Outcome.PANIC,
        "the incoming kernel panics at boot",
        "kernel/liveupdate/luo_core.c, luo_early_startup() and luo_restore_fail()",
    ),
    "memfd-v": (
        Outcome.LOST,
        "the incoming kernel has no handler for the file, and its session cannot be retrieved",
        "kernel/liveupdate/luo_file.c, 'No registered handler for compatible'",
    ),
    "memblock-v": (
        Outcome.LOST,
        "the incoming kernel does not revive what reserve_mem= set aside",
        "mm/memblock.c, reserve_mem_kho_retrieve_fdt()",
    ),
    "reserve-mem-v": (
        Outcome.LOST,
        "the incoming kernel does not revive the region",
        "mm/memblock.c, reserve_mem_kho_revive()",
    ),
}
_ABSENT = {
    "kho-v": "arch/x86/kernel/setup.c, 'Passed KHO data, but CONFIG_KEXEC_HANDOVER not set'",
    "luo-v": "Documentation/userspace-api/liveupdate.rst: no LUO, no /dev/liveupdate",
}


def abi_of(kernel: KernelImage, prefix: str) -> str:
    """Return the compatible string that begins with ``prefix``, parts included; "": none."""
    return next((text for text in sorted(kernel.abi) if text.startswith(prefix)), "")


def _options(
    outgoing: KernelImage, incoming: KernelImage, mechanism: Requirements
) -> Iterator[Finding]:
    source = "liveupdate kernel needs"
    for side, kernel in (("outgoing", outgoing), ("incoming", incoming)):
        if kernel.lacks is UNSET:
            why = f"the {side} image shows no configuration (IKCONFIG), nor is one beside it"
            yield Finding(Outcome.UNKNOWN, side, why, source)
            continue
        for text in kernel.lacks:
            need = BY_SYMBOL[text.partition("=")[0]]
            if not _is_needed(need.symbol, mechanism):
                continue
            outcome = _INCOMING[need.without]
            if side == "outgoing" and outcome > Outcome.UNPROVEN:
                outcome = Outcome.REFUSED
            why = f"{need.without}: {need.reason}, and the {side} kernel has CONFIG_{text}"
            yield Finding(outcome, side, why, source)


def _is_needed(symbol: str, mechanism: Requirements) -> bool:
    """Whether an option has to do with this mechanism; all do but those of KHO and LUO."""
    if symbol.startswith("KEXEC_HANDOVER"):
        return KHO in mechanism.witnesses or "kho-v" in mechanism.abi_prefixes
    return symbol != "LIVEUPDATE" or LUO in mechanism.witnesses


def _strings(
    outgoing: KernelImage, incoming: KernelImage, mechanism: Requirements
) -> Iterator[Finding]:
    for prefix in mechanism.abi_prefixes:
        name = {"kho-v": "KHO", "luo-v": "LUO"}.get(prefix, prefix.removesuffix("-v"))
        left, read = abi_of(outgoing, prefix), abi_of(incoming, prefix)
        outcome, why, source = _MISMATCH[prefix]
        absent = _ABSENT.get(prefix, source)
        if not left:
            why = f"the outgoing kernel has no {name}"
            yield Finding(Outcome.REFUSED, "outgoing", why, absent)
        elif not read:
            yield Finding(Outcome.LOST, "incoming", f"the incoming kernel has no {name}", absent)
        elif left != read:
            yield Finding(outcome, "incoming", f"{left} -> {read}: {why}", source)
        else:
            yield Finding(Outcome.PASSES, "incoming", f"both kernels: {left}", source)


def _modules(
    outgoing: KernelImage, incoming: KernelImage, mechanism: Requirements
) -> Iterator[Finding]:
    for side, kernel in (("outgoing", outgoing), ("incoming", incoming)):
        if mechanism.modules and not kernel.modules:
            yield Finding(
                Outcome.REFUSED if side == "outgoing" else Outcome.LOST,
                side,
                f"mechanism '{mechanism.name}' needs our modules ({', '.join(mechanism.modules)}),"
                f" which are not built for the {side} kernel",
                "docs/mechanisms.md",
            )


RULES: tuple[Rule, ...] = (_strings, _options, _modules)


def compare(
    outgoing: KernelImage, incoming: KernelImage, mechanism: Requirements
) -> tuple[Finding, ...]:
    """Return what all rules say of a pair, the worst first."""
    found = (finding for rule in RULES for finding in rule(outgoing, incoming, mechanism))
    return tuple(sorted(found, key=lambda finding: -finding.outcome))


def outcome_of(findings: tuple[Finding, ...]) -> Outcome:
    """Return what happens, of what :func:`compare` found; with no finding it passes."""
    return findings[0].outcome if findings else Outcome.PASSES
