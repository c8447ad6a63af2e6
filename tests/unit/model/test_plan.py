# SPDX-License-Identifier: Apache-2.0
"""What a plan says of its target."""

from __future__ import annotations

from msgspec.structs import replace

from liveupdate.model.targets import Capability
from tests.support import evidence_builder as make


def test_a_target_of_another_version_has_no_capability() -> None:
    plan = make.make_plan()
    assert plan.target_has(Capability.CLOCK)
    assert not replace(plan, target="xen").target_has(Capability.CLOCK)
