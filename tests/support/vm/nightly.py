# SPDX-License-Identifier: Apache-2.0
"""What runs in ``make nightly`` only, and what the faults of ``make test`` show.

The one place that says so: docs/testing.md is compared with it (tests/unit/test_nightly.py), as is
the table of faults, so that a new fault or a new part cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

PARTS: Mapping[str, str] = MappingProxyType(
    {
        "faults": "the faults that `make test` leaves out",
        "mechanisms": "every mechanism through three hops, and with every fault on its region",
        "devices": "DMA that continues hop after hop, and more ways of devices that stop",
        "apply": "updates with the cable out for a while or for good, a panic, more kills",
        "fleet": "a host that Ansible provisions twice, and rolls over three hosts",
        "modules": "checkpatch, W=1 and sparse over the kernel modules, as `make modules-check`",
        "libvirt": "faults on a libvirt domain",
        "mutants": "each shipped scenario's PASS with everything altered, one thing at a time",
        "hostile": "a million spoilt inputs for everything that reads what others wrote",
        "soak": "ten runs in a row, and one run of ten hops",
    }
)
"""The parts of ``make nightly`` and what each is; ``make nightly PART=NAME`` runs one."""

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "cut-state": "flip-state",
        "liveupdate-off": "kho-off",
        "kernel-without-kho": "kexec-load",
        "luo-abi-skew": "kexec-load",
        "region-size": "region-missing",
        "region-version": "region-corrupt",
        "guest-reboot": "kill-vmm",
        "clock-jump": "tsc-skew",
        "flip-msr": "flip-xmm",
        "flip-lapic": "flip-xmm",
        "shift-tsc": "flip-xmm",
        "tamper-context": "drop-translation",
        "record-version": "corrupt-record",
    }
)
"""The faults that run in ``make nightly`` only, each with the fault of ``make test`` by which the
same check comes to the same status and exit code."""

ALSO_RED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "kho-off": ("handover.generation",),
        "kill-vmm": ("guest.network", "budget.blackout"),
        "drop-translation": ("iommu.mappings", "device.no-reset", "device.config-space"),
    }
)
"""Checks that a fault of ``make test`` makes FAIL beside the one that the table of faults names.

Those that no fault names are here; for ``budget.blackout`` the run has a bound of 1 ms.
"""


def part(name: str) -> pytest.MarkDecorator:
    """Mark a test as one of a part of ``make nightly``.

    :raises KeyError: there is no such part.
    """
    assert PARTS[name]
    return pytest.mark.nightly(part=name)
