# SPDX-License-Identifier: Apache-2.0
"""What ``compat`` says of a pair is what a run with it comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.images.catalogue import find_kernel
from tests.support.edited_image import edit_image
from tests.support.vm import cli


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
