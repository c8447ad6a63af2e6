# SPDX-License-Identifier: Apache-2.0
"""A million spoilt inputs: none may hang or crash a reader, or make it use much memory."""

from __future__ import annotations

import resource

import pytest

from tests.support import hostile
from tests.support.vm import nightly

INPUTS = 1_000_000
#: judging a whole run takes longer: this share of all inputs
RUNS_SHARE = 0.02
MEMORY_KIB = 200 << 10


@nightly.part("hostile")
@pytest.mark.timeout(6 * 3600)
def test_a_million_spoilt_inputs_are_refused_or_read() -> None:
    readers = hostile.readers()
    runs = [name for name in readers if name.startswith("run: ")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for name, (good, read) in readers.items():
            share = (
                RUNS_SHARE / len(runs)
                if name in runs
                else (1 - RUNS_SHARE) / (len(readers) - len(runs))
            )
            hostile.attack(good, read, round(INPUTS * share) + 1, f"night: {name}")
    finally:
        hostile.clean_up()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB
