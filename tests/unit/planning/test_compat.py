# SPDX-License-Identifier: Apache-2.0
"""What two kernels come to: each rule, its outcome, and what is not said is not known."""

from __future__ import annotations

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from liveupdate.model.plan import KernelImage
from liveupdate.planning.compat import Finding, Outcome, compare, outcome_of
from liveupdate.planning.mechanisms import MECHANISMS
from tests.support.planner_inputs import ABI, kernel

OUT = replace(kernel("a"), lacks=())
IN = replace(kernel("b"), lacks=())


def findings(
    outgoing: KernelImage = OUT, incoming: KernelImage = IN, mechanism: str = "luo-memfd"
) -> tuple[Finding, ...]:
    return compare(outgoing, incoming, MECHANISMS[mechanism])


def other(name: str, string: str) -> tuple[str, ...]:
    return tuple(string if text.startswith(f"{name}-v") else text for text in ABI)


def test_equal_kernels_pass_with_every_mechanism_and_each_finding_names_a_rule() -> None:
    for name in MECHANISMS:
        assert outcome_of(findings(mechanism=name)) is Outcome.PASSES
    assert all(each.source and each.why for each in findings())


@pytest.mark.parametrize(
    ("string", "mechanism", "outcome"),
    [
        ("kho-v9", "luo-memfd", Outcome.LOST),
        ("luo-v9", "luo-memfd", Outcome.PANIC),
        ("luo-v5;block-v1", "luo-memfd", Outcome.PANIC),
        ("memfd-v9", "luo-memfd", Outcome.LOST),
        ("memblock-v9", "reserve-mem", Outcome.LOST),
        ("reserve-mem-v9", "reserve-mem", Outcome.LOST),
        ("luo-v9", "pkram", Outcome.PASSES),
        ("kho-v9", "pool", Outcome.PASSES),
    ],
)
def test_another_compatible_string(string: str, mechanism: str, outcome: Outcome) -> None:
    incoming = replace(IN, abi=other(string.partition("-v")[0], string))
    assert outcome_of(findings(incoming=incoming, mechanism=mechanism)) is outcome
    # what the outgoing kernel lacks ends it before the jump
    absent = replace(OUT, abi=())
    expected = Outcome.REFUSED if MECHANISMS[mechanism].abi_prefixes else Outcome.PASSES
    assert outcome_of(findings(outgoing=absent, mechanism=mechanism)) is expected


@pytest.mark.parametrize(
    ("lacks", "outgoing", "incoming"),
    [
        ("VIRTIO_BLK=m", Outcome.REFUSED, Outcome.PANIC),
        ("VIRTIO_CONSOLE=n", Outcome.REFUSED, Outcome.PANIC),
        ("KEXEC_HANDOVER=n", Outcome.REFUSED, Outcome.LOST),
        ("KVM_AMD=n", Outcome.REFUSED, Outcome.LOST),
        ("PROC_PAGE_MONITOR=n", Outcome.UNPROVEN, Outcome.UNPROVEN),
    ],
)
def test_a_needed_option_that_is_missing(lacks: str, outgoing: Outcome, incoming: Outcome) -> None:
    assert outcome_of(findings(outgoing=replace(OUT, lacks=(lacks,)))) is outgoing
    found = findings(incoming=replace(IN, lacks=(lacks,)))
    assert outcome_of(found) is incoming
    assert f"CONFIG_{lacks}" in found[0].why


def test_options_of_kho_and_luo_concern_only_the_mechanisms_that_use_them() -> None:
    without = replace(IN, lacks=("KEXEC_HANDOVER=n", "LIVEUPDATE=n"))
    assert outcome_of(findings(incoming=without, mechanism="pool")) is Outcome.PASSES
    assert outcome_of(findings(incoming=without, mechanism="pkram")) is Outcome.LOST


def test_an_image_that_shows_no_configuration_is_not_known_to_pass() -> None:
    assert outcome_of(findings(incoming=replace(IN, lacks=UNSET))) is Outcome.UNKNOWN
    lost = replace(IN, lacks=UNSET, abi=())
    assert outcome_of(findings(incoming=lost)) is Outcome.LOST


def test_modules_that_are_not_built_for_a_kernel() -> None:
    bare = replace(IN, modules="")
    assert outcome_of(findings(incoming=bare, mechanism="pool")) is Outcome.LOST
    assert outcome_of(findings(outgoing=bare, mechanism="pool")) is Outcome.REFUSED
    assert outcome_of(findings(outgoing=bare)) is Outcome.PASSES
