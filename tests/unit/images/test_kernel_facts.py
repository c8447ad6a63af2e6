# SPDX-License-Identifier: Apache-2.0
"""Facts of an image come from it and from the configuration beside it, and survive being kept."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
from msgspec import UNSET

from liveupdate.core.errors import BuildError
from liveupdate.images import kernel_facts

IMAGE = gzip.compress(
    bytes(0x38) + b"ARM\x64\0Linux version 7.4.0 (x@y)\0kho-v5\0kho_bootmem\0"
    + struct.pack("<III4s20s", 4, 20, 3, b"GNU\0", bytes(20))
)  # fmt: skip


@pytest.mark.parametrize("name", [".config", "config", "config-7.4.0"])
def test_the_configuration_beside_an_image_counts(tmp_path: Path, name: str) -> None:
    image = tmp_path / "Image.gz"
    image.write_bytes(IMAGE)
    assert kernel_facts.read_image(image).lacks is UNSET
    (tmp_path / name).write_text("CONFIG_VIRTIO_BLK=m\n")
    assert "VIRTIO_BLK=m" in (kernel_facts.read_image(image).lacks or ())


def test_a_build_keeps_its_configuration_at_the_top(tmp_path: Path) -> None:
    boot = tmp_path / "arch/x86/boot"
    boot.mkdir(parents=True)
    (tmp_path / ".config").write_text("CONFIG_KVM=y\n")
    assert kernel_facts.config_beside(boot / "bzImage", "") is not None
    assert kernel_facts.config_beside(tmp_path / "other/bzImage", "") is None


def test_facts_survive_being_kept_and_older_ones_get_their_configuration(tmp_path: Path) -> None:
    path = tmp_path / "Image.gz"
    path.write_bytes(IMAGE)
    image = kernel_facts.read_image(path)
    kernel_facts.write_image_json(tmp_path / "image.json", image, "here")
    kept = kernel_facts.read_image_json(tmp_path)
    assert (kept.abi, kept.features, kept.lacks) == (("kho-v5",), ("kho_bootmem=",), UNSET)
    (tmp_path / "config").write_text("CONFIG_KVM=m\n")
    assert "KVM=m" in (kernel_facts.read_image_json(tmp_path).lacks or ())


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "Image.gz").write_bytes(IMAGE)
    (tmp_path / ".config").write_text("what\n")
    with pytest.raises(BuildError, match="CONFIG_NAME=value"):
        kernel_facts.read_image(tmp_path / "Image.gz")
