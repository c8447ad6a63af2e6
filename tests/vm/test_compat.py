# SPDX-License-Identifier: Apache-2.0
"""What ``compat`` says of a pair is what a run with it comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.core.units import MIB
from liveupdate.images.catalogue import find_kernel
from tests.support.edited_image import edit_image
from tests.support.vm import cli


def test_a_kernel_with_the_names_of_the_next_release_passes(tmp_path: Path) -> None:
    image = find_kernel("kernel-renamed").path
    said = cli.run(
        tmp_path, "--kernel", image, "--next-kernel", image,
        "--set", "host.append=kho_scratch=64M,64M,64M",
    )  # fmt: skip
    assert said.returncode == 0, said.explain()
    run = (tmp_path / "latest").resolve()
    assert "kho_bootmem=64M" in (run / "boot-1" / "console.log").read_text()
    memory = {each["name"]: each["value"] for each in said.document["metrics"]}
    assert memory["memory.scratch"] == 3 * 64 * MIB, memory


@pytest.mark.nightly("faults")
@pytest.mark.parametrize(
    ("old", "new", "check"),
    [("kho-v4", "kho-v9", "handover.kho"), ("memfd-v2", "memfd-v9", "handover.session")],
)
def test_a_pair_that_loses_memory_is_refused_and_does_so_anyway(
    old: str, new: str, check: str, tmp_path: Path
) -> None:
    built = Path(find_kernel("kernel-b").path).read_bytes()
    image = tmp_path / "bzImage"
    image.write_bytes(edit_image(built, f"{old}\0".encode(), f"{new}\0".encode()))
    said = cli.call("compat", "kernel-a", str(image), "--json")
    assert (said.returncode, said.document["outcome"]) == (1, "LOST"), said.explain()
    refused = cli.run(tmp_path, "--next-kernel", str(image))
    assert refused.returncode == 3, refused.explain()
    assert f"{old} -> {new}" in refused.stderr, refused.explain()
    lost = cli.run(tmp_path, "--next-kernel", str(image), "--jump-anyway")
    assert lost.returncode == 1, lost.explain()
    assert lost.check(check)["status"] == "FAIL", lost.explain()
