# SPDX-License-Identifier: Apache-2.0
"""What proves a fault that changes the plan: both kernels, as they were seen."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from liveupdate.faults.base import HopChange
from liveupdate.faults.table import FAULTS
from liveupdate.run import strikes
from liveupdate.run.strikes import compare_kernels, compare_loading, compare_words, find_said
from liveupdate.transport.console import ConsoleLine
from tests.support import evidence_builder as make

(HOP,) = make.make_evidence().hops
assert HOP.before is not None and HOP.after is not None
OUTGOING, INCOMING = HOP.before, HOP.after
OLD = "console=ttyS0 root=/dev/vda init=/lu kho=on liveupdate=on intel_iommu=on memmap=1G!4G"


def change_of(name: str) -> HopChange:
    change = FAULTS[name].change
    assert change is not None
    return change


@pytest.mark.parametrize(
    ("fault", "new", "before", "after"),
    [
        ("kho-off", OLD.replace("kho=on", "kho=off"), "kho=on", "kho=off"),
        ("region-missing", OLD.replace(" memmap=1G!4G", ""), "memmap=1G!4G", "none of them"),
        ("region-size", OLD.replace("1G!", "2M!"), "memmap=1G!4G", "memmap=2M!4G"),
        (
            "hang-incoming",
            OLD.replace("root=/dev/vda", "root=/dev/x rootwait"),
            "root=/dev/vda",
            "root=/dev/x rootwait",
        ),
        ("tsc-skew", f"{OLD} tsc_early_khz=9", "none of them", "tsc_early_khz=9"),
    ],
)
def test_words_are_compared_that_the_fault_changes_and_no_others(
    fault: str, new: str, before: str, after: str
) -> None:
    struck = compare_words(change_of(fault), OLD, f"{new} quiet")
    assert struck is not None
    assert (struck.before, struck.after) == (before, after)


def test_words_of_a_kernel_that_was_not_seen_prove_nothing() -> None:
    assert compare_words(change_of("kho-off"), None, OLD) is None
    assert compare_words(change_of("kho-off"), OLD, None) is None


def test_parameter_that_has_not_come_over_is_as_before() -> None:
    struck = compare_words(change_of("kho-off"), OLD, OLD)
    assert struck is not None and struck.before == struck.after


def test_command_line_is_found_on_the_console() -> None:
    texts = (b"[    0.000000] Linux version 7.3\r\n", b"[    0.1] Kernel command line: a=1 b\r\n")
    lines = [ConsoleLine(boot=1, offset=0, at_ns=1, data=text) for text in texts]
    assert find_said(lines, strikes._CMDLINE) == "a=1 b"
    assert find_said(lines[:1], strikes._CMDLINE) is None
    assert find_said(lines, strikes._RELEASE) == "7.3"


def test_kernel_in_the_place_of_another_has_another_build_id() -> None:
    change = change_of("kernel-without-kho")
    ran = replace(INCOMING, build_id="cc")
    replaced = {"incoming": make.KERNEL_B}
    struck = compare_kernels(change, replaced, OUTGOING, ran, None)
    assert struck is not None
    assert (struck.where, struck.before) == ("incoming", make.KERNEL_B.build_id)
    assert struck.after == "cc"
    # a kernel of the user's own replaces none: it is compared with the outgoing one
    own = compare_kernels(change, {}, OUTGOING, ran, None)
    assert own is not None and (own.before, own.after) == (OUTGOING.build_id, "cc")
    assert compare_kernels(change, replaced, OUTGOING, None, None) is None


def test_kernel_that_panics_is_known_by_the_release_that_it_printed() -> None:
    change = change_of("luo-abi-skew")
    replaced = {"incoming": make.KERNEL_B}
    struck = compare_kernels(change, replaced, OUTGOING, None, "7.3.4-lu-skew")
    assert struck is not None and struck.what == "release of the kernel that ran"
    assert (struck.before, struck.after) == (make.KERNEL_B.release, "7.3.4-lu-skew")
    own = compare_kernels(change, {}, OUTGOING, None, "mine")
    assert own is not None and (own.before, own.after) == (OUTGOING.release, "mine")


def test_both_kernels_in_the_place_of_others_are_compared() -> None:
    change = change_of("stock-kernel")
    ran = replace(OUTGOING, build_id="ss")
    replaced = {"outgoing": make.KERNEL_A, "incoming": make.KERNEL_B}
    struck = compare_kernels(change, replaced, ran, ran, None)
    assert struck is not None
    assert struck.before == f"{make.KERNEL_B.build_id}, {make.KERNEL_A.build_id}"
    assert struck.after == "ss, ss"
    assert compare_kernels(change, {}, ran, ran, None) is None


def test_loading_is_told_by_the_agent() -> None:
    told = {"command": "kexec -c -l /k", "was_loaded": "0", "is_loaded": "1"}
    struck = compare_loading(told)
    assert struck is not None
    assert (struck.before, struck.after) == ("0", "1, by kexec -c -l /k")
    assert compare_loading({}) is None
    assert compare_loading({**told, "is_loaded": None}) is None


@pytest.mark.parametrize("fault", [name for name, each in FAULTS.items() if each.change])
def test_each_fault_of_the_plan_has_something_to_be_seen_by(fault: str) -> None:
    change = change_of(fault)
    # what a change beside these would be seen by is not written yet
    assert change.kernels or change.loader != "file" or change.drop or change.add or change.shrink
