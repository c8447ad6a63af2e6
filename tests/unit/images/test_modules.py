# SPDX-License-Identifier: Apache-2.0
"""Our kernel modules: what their images depend on, who needs them, what linters say of them."""

from __future__ import annotations

import errno
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from liveupdate.agent.mechanisms import modules as loader
from liveupdate.agent.mechanisms.base import MechanismError
from liveupdate.core.errors import PlanError
from liveupdate.images import kernel, kit, modules, modules_check
from liveupdate.model.scenario import Scenario
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.planning.planner import make_plan
from tests.support.planner_inputs import IMAGES, MACHINE
from tests.support.vm.moduletests import MEMORY, REGIONS_START, ROWS

ROOT = Path(__file__).parents[3]
MODULES = ROOT / "guest-images/modules"
SELFTESTS = ROOT / "guest-images/selftests"
#: NAME.o that a Kbuild makes a module of
OBJ_M = re.compile(r"^obj-m\s*\+=\s*(\w+)\.o$", re.MULTILINE)


def built_modules() -> set[str]:
    return {name for path in MODULES.rglob("Kbuild") for name in OBJ_M.findall(path.read_text())}


def test_modules_follow_their_sources_and_their_kernel(tmp_path: Path) -> None:
    shutil.copytree(MODULES, tmp_path / "modules")
    a, b = map(kernel.find_variant, modules.VARIANTS)
    first = modules.modules_inputs(tmp_path / "modules", a, "k1")
    assert first == modules.modules_inputs(tmp_path / "modules", a, "k1")
    assert first != modules.modules_inputs(tmp_path / "modules", a, "k2")
    assert first != modules.modules_inputs(tmp_path / "modules", b, "k1")
    with (tmp_path / "modules/Kbuild").open("a") as stream:
        stream.write("# changed\n")
    assert first != modules.modules_inputs(tmp_path / "modules", a, "k1")


def test_selftests_follow_the_headers_of_the_modules(tmp_path: Path) -> None:
    shutil.copytree(MODULES, tmp_path / "modules")
    first = modules.selftests_inputs(SELFTESTS, tmp_path / "modules", "gcc")
    (header,) = (tmp_path / "modules").rglob("uapi/linux/lu_pool.h")
    header.write_text("")
    assert first != modules.selftests_inputs(SELFTESTS, tmp_path / "modules", "gcc")


def test_every_test_of_a_module_is_built_and_run() -> None:
    named = {row.module for row in ROWS} | {row.kunit for row in ROWS if row.kunit}
    assert named == built_modules()
    programs = {path.stem for path in SELFTESTS.glob("*.c")}
    # run by tests/vm/test_guest_mmio.py as PID 1 of a guest; it needs no module
    programs.remove("kvm_mmio")
    assert programs == {name for row in ROWS for name in row.selftests}


def test_every_suite_of_the_sources_is_looked_at() -> None:
    suites = set()
    for path in MODULES.rglob("*.c"):
        text = path.read_text()
        for block in re.findall(r"struct kunit_suite \w+ = \{(.*?)\n\};", text, re.DOTALL):
            suites |= set(re.findall(r'\.name = "([^"]+)"', block))
    assert suites == {suite for row in ROWS for suite in row.suites}


def test_regions_of_the_rows_do_not_overlap() -> None:
    regions = []
    for row in ROWS:
        for size, start in re.findall(r"memmap=(0x[0-9a-f]+)[$!](0x[0-9a-f]+)", row.append):
            regions.append((int(start, 16), int(start, 16) + int(size, 16)))
    regions.sort()
    assert all(REGIONS_START <= start < end < MEMORY - (128 << 20) for start, end in regions)
    assert all(one[1] <= two[0] for one, two in pairwise(regions))


def test_module_of_a_mechanism_is_one_that_is_built() -> None:
    wanted = {name for mechanism in MECHANISMS.values() for name in mechanism.modules}
    assert wanted <= built_modules()


def test_kit_has_the_modules_of_both_kernels(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.ko").write_bytes(name.encode())
    images = replace(
        IMAGES,
        outgoing=replace(IMAGES.outgoing, modules=str(tmp_path / "a")),
        incoming=replace(IMAGES.incoming, modules=str(tmp_path / "b")),
    )
    assert kit.module_dirs(images) == {
        IMAGES.outgoing.release: tmp_path / "a",
        IMAGES.incoming.release: tmp_path / "b",
    }
    own = replace(images, incoming=replace(images.incoming, modules=""))
    assert kit.module_dirs(own) == {IMAGES.outgoing.release: tmp_path / "a"}


@pytest.mark.parametrize("name", [name for name, item in MECHANISMS.items() if item.modules])
@pytest.mark.parametrize("which", ["outgoing", "incoming"])
def test_kernel_without_our_modules_is_refused_in_one_line(name: str, which: str) -> None:
    images = replace(IMAGES, **{which: replace(getattr(IMAGES, which), modules="")})
    scenario = Scenario(mechanism=name)
    with pytest.raises(PlanError, match="needs our modules") as caught:
        make_plan(scenario, images, MACHINE)
    assert "\n" not in str(caught.value)


# --- the agent


def test_module_that_the_kit_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        MechanismError, match=f"no module 'lu_pool' for kernel {os.uname().release}"
    ):
        loader.load("lu_pool", directory=str(tmp_path))


def test_module_that_the_kernel_refuses_is_named(tmp_path: Path) -> None:
    place = tmp_path / os.uname().release
    place.mkdir()
    (place / "junk.ko").write_bytes(b"no module")
    refusals = "|".join(os.strerror(code) for code in (errno.EPERM, errno.ENOEXEC, errno.ENOSYS))
    with pytest.raises(MechanismError, match=f"refuses module 'junk': ({refusals})"):
        loader.load("junk", directory=str(tmp_path))


# --- linters


def test_complaints_about_our_files_are_told_from_others(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text('int x;\nMODULE_LICENSE("GPL");\nmodule_param(x, int, 0);\n')
    said = f"""\
  CC [M]  a.o
{tmp_path}/a.c:1:5: warning: symbol 'x' was not declared. Should it be static?
a.c:1:5: error: unknown type
{tmp_path}/a.c:1:1: error: bad constant expression
{tmp_path}/a.c:2:1: error: bad constant expression
a.c:3:1: error: bad constant expression
/usr/src/linux/include/linux/mm.h:7:1: warning: context imbalance
/usr/src/linux/mm.h:7:1: sparse: error: something
"""
    ours, others = modules_check.complaints(said, tmp_path)
    assert len(ours) == 3
    assert others == 4


def test_style_is_checked_of_every_file() -> None:
    found = {path.name for path in modules_check.style_files(MODULES)}
    assert {"core.c", "internal.h", "lu_pool.h"} <= found
    assert "ktap.h" in {path.name for path in modules_check.style_files(SELFTESTS)}
