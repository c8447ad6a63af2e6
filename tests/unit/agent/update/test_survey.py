# SPDX-License-Identifier: Apache-2.0
"""What an agent says of a guest to whoever wants to update its host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from liveupdate.agent.base import host
from liveupdate.agent.update import survey


def guest(status: str) -> Any:
    vmm = SimpleNamespace(
        pid=7,
        query_status=lambda: status,
        check_adapter=lambda: "cpr-reboot",
        last_words=lambda: "the VMM said KVM internal error. Suberror: 1; the guest's console: -",
    )
    spec = SimpleNamespace(**dict.fromkeys(survey.SPEC_KEYS))
    return SimpleNamespace(spec=spec, vmm=vmm, ram=None, error=None)


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "find_disk", lambda name: "/dev/vdb")


def test_a_vmm_that_kvm_gave_up_on_is_quoted() -> None:
    said = survey._guest(guest("internal-error"))
    assert said["status"] == "internal-error"
    assert "Suberror: 1" in str(said["error"])


@pytest.mark.parametrize("status", ["running", "paused"])
def test_one_that_can_go_on_is_no_error(status: str) -> None:
    assert survey._guest(guest(status))["error"] is None


def test_compatible_strings_of_what_is_handed_over_are_read_with_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "KHO_DEBUGFS", str(tmp_path))
    assert survey._abi_strings() == set()
    (tmp_path / "out/sub_fdts").mkdir(parents=True)
    (tmp_path / "out/fdt").write_bytes(b"\0kho-v4\0")
    (tmp_path / "out/sub_fdts/LUO").write_bytes(b"luo-v5;block-v1\0\0")
    assert survey._abi_strings() == {"kho-v4", "luo-v5;block-v1"}
