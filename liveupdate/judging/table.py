# SPDX-License-Identifier: Apache-2.0
"""The table of all checks. The planner reads it too, so what only a judge needs is not imported."""

from __future__ import annotations

from liveupdate.judging.check import CheckRow
from liveupdate.judging.checks import (
    budget,
    device,
    device_state,
    guest,
    handover,
    iommu_faults,
    liveness,
    mappings,
    memory,
    state,
    translation,
    vcpu_state,
)

FAMILIES = (
    handover,
    state,
    memory,
    liveness,
    guest,
    vcpu_state,
    translation,
    mappings,
    iommu_faults,
    device,
    device_state,
    budget,
)
"""The files that judge; each ends with its ``CHECKS``. In the order in which reports show them."""

CHECKS: tuple[CheckRow, ...] = tuple(row for family in FAMILIES for row in family.CHECKS)
"""Every check, in the order in which reports show them."""

CHECK_IDS = tuple(row.id for row in CHECKS)
"""Their ids, which are stable."""
