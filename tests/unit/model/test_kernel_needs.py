# SPDX-License-Identifier: Apache-2.0
"""The list of what a kernel needs: our own kernels have it, and the fragment is one that parses."""

from __future__ import annotations

from pathlib import Path

from liveupdate.formats import kconfig
from liveupdate.model.kernel_needs import BY_SYMBOL, HELPERS, NEEDS, fragment, lacking

CONFIG = Path(__file__).parents[3] / "guest-images/kernel/config"


def test_the_fragment_has_every_need_and_its_reason() -> None:
    parsed = kconfig.parse_config(fragment())
    assert set(parsed.values) == set(BY_SYMBOL) | set(HELPERS)
    assert set(parsed.values.values()) == {"y"}
    assert all(need.reason in fragment() for need in NEEDS)


def test_a_configuration_lacks_what_is_off_or_a_module() -> None:
    options = dict.fromkeys(BY_SYMBOL, "y")
    assert lacking(options) == ()
    del options["KVM"]
    assert lacking({**options, "VIRTIO_BLK": "m"}) == ("VIRTIO_BLK=m", "KVM=n")


def test_the_shipped_fragments_ask_for_all_of_it() -> None:
    ours = {
        symbol
        for name in ("base", "host")
        for symbol in kconfig.parse_config((CONFIG / f"{name}.config").read_text()).values
    }
    assert set(BY_SYMBOL) - ours == set()
