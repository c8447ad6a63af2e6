# SPDX-License-Identifier: Apache-2.0
"""``inspect``, ``compat`` and ``kernel needs``: what they print, and their exit codes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from liveupdate.cli.app import main
from liveupdate.images import catalogue
from liveupdate.model.kernel_needs import BY_SYMBOL
from liveupdate.model.plan import KernelImage
from tests.support.planner_inputs import kernel

IMAGE = gzip.compress(bytes(0x38) + b"ARM\x64\0Linux version 7.4.0 (x@y)\0kho-v5\0kho_bootmem\0")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "Image.gz"
    path.write_bytes(IMAGE)
    return path


def test_inspect_says_what_the_image_says(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(image)]) == 0
    out = capsys.readouterr().out
    assert "arm64 Image, gzip" in out and "kho_bootmem=" in out and "no configuration" in out
    assert main(["inspect", "--json", str(image)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["release"], said["abi"], said["lacks"]) == ("7.4.0", ["kho-v5"], None)
    image.write_bytes(b"no kernel")
    assert main(["inspect", str(image)]) == 3


@pytest.mark.parametrize(
    ("incoming", "code", "outcome"),
    [
        (replace(kernel("b"), lacks=()), 0, "PASSES"),
        (replace(kernel("b", ("kho-v4", "luo-v6", "memfd-v2")), lacks=()), 1, "PANIC"),
        (kernel("b"), 3, "UNKNOWN"),
    ],
)
def test_compat_ends_as_its_outcome(
    incoming: KernelImage,
    code: int,
    outcome: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = {"a": replace(kernel("a"), lacks=()), "b": incoming}
    monkeypatch.setattr(catalogue, "name_or_read", pair.__getitem__)
    assert main(["compat", "--json", "a", "b"]) == code
    said = json.loads(capsys.readouterr().out)
    assert said["outcome"] == said["findings"][0]["outcome"] == outcome
    assert main(["compat", "a", "b"]) == code
    assert "rule: " in capsys.readouterr().out


def test_compat_of_an_unknown_mechanism_is_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compat", "a", "b", "--mechanism", "luo-memfs"]) == 2
    assert "luo-memfd" in capsys.readouterr().err


def test_needs_prints_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", "needs"]) == 0
    out = capsys.readouterr().out
    assert all(f"CONFIG_{symbol}=y\n" in out for symbol in BY_SYMBOL)
