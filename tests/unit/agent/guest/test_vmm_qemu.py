# SPDX-License-Identifier: Apache-2.0
"""The VMM's command line and the choice of the adapter are pure."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from liveupdate.agent.guest import vmm_qemu
from liveupdate.agent.guest.qmp import Qmp
from liveupdate.agent.guest.spec import GuestSpec
from liveupdate.agent.guest.vmm_qemu import QemuVmm, VmmError, build_argv, choose_adapter
from liveupdate.agent.mechanisms.base import Ram

RAM = Ram(7, 256 << 20)
FDS = {"tap": 8, "qmp": 9, "payload": 10}


def spec(**changes: object) -> GuestSpec:
    return GuestSpec({"name": "vm0", "index": 1, "memory_bytes": 256 << 20, **changes})


def test_command_line_of_both_sides_differs_only_in_incoming() -> None:
    outgoing = build_argv(spec(), RAM, FDS, "/dev/vdc", incoming=False)
    incoming = build_argv(spec(), RAM, FDS, "/dev/vdc", incoming=True)
    assert incoming == [*outgoing, "-incoming", "defer"]


def test_memory_is_the_agents_memfd_and_shared() -> None:
    argv = build_argv(spec(), RAM, FDS, "/dev/vdc", incoming=False)
    backend = argv[argv.index("-object") + 1]
    assert "mem-path=/proc/self/fd/7" in backend
    assert "share=on" in backend
    assert f"size={256 << 20}" in backend


@pytest.mark.parametrize(("pinnable", "word"), [(True, "on"), (False, "off")])
def test_disk_is_direct_only_where_pages_can_be_pinned(pinnable: bool, word: str) -> None:
    ram = Ram(7, 256 << 20, pinnable=pinnable)
    argv = build_argv(spec(), ram, FDS, "/dev/vdc", incoming=False)
    assert f"cache.direct={word}" in " ".join(argv)


def test_every_inherited_descriptor_is_named() -> None:
    fds = {**FDS, "qga": 11}
    text = " ".join(build_argv(spec(qga=True), RAM, fds, "/dev/vdc", incoming=False))
    for number in (RAM.fd, *fds.values()):
        assert f"fd={number}" in text or f"/fd/{number}," in text


def test_vmm_may_neither_start_programs_nor_get_rights() -> None:
    argv = build_argv(spec(), RAM, FDS, "/dev/vdc", incoming=False)
    rules = argv[argv.index("-sandbox") + 1].split(",")
    assert rules[0] == "on"
    assert {"elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny"} <= set(rules)


def test_image_boots_from_its_disk() -> None:
    argv = build_argv(spec(image="user.raw"), RAM, FDS, "/dev/vdc", incoming=False)
    assert "-kernel" not in argv


def test_every_device_has_its_slot() -> None:
    argv = build_argv(spec(), RAM, FDS, "/dev/vdc", incoming=False)
    devices = [argv[i + 1] for i, word in enumerate(argv) if word == "-device"]
    assert all("addr=" in d or "bus=vser.0,nr=" in d for d in devices)
    assert any("mac=52:54:00:20:00:01" in d for d in devices)


def schema(modes: list[str], capabilities: list[str]) -> list[dict[str, object]]:
    def enum(name: str, values: list[str]) -> dict[str, object]:
        return {"name": name, "meta-type": "enum", "members": [{"name": v} for v in values]}

    def struct(name: str, member: str, kind: str) -> dict[str, object]:
        members = [{"name": member, "type": kind}]
        return {"name": name, "meta-type": "object", "members": members}

    return [
        {"name": "migrate-set-parameters", "meta-type": "command", "arg-type": "1"},
        struct("1", "mode", "2"),
        enum("2", modes),
        {"name": "migrate-set-capabilities", "meta-type": "command", "arg-type": "3"},
        struct("3", "capabilities", "[4]"),
        {"name": "[4]", "meta-type": "array", "element-type": "4"},
        struct("4", "capability", "5"),
        enum("5", capabilities),
    ]


def test_adapter_is_chosen_by_what_the_schema_lists() -> None:
    assert choose_adapter(schema(["normal", "cpr-reboot"], ["x-ignore-shared"])) == "cpr-reboot"


@pytest.mark.parametrize(
    ("raw", "missing"),
    [
        (schema(["normal"], ["x-ignore-shared"]), "cpr-reboot"),
        (schema(["cpr-reboot"], ["events"]), "x-ignore-shared"),
        ([], "cpr-reboot"),
        (None, "cpr-reboot"),
        ([{"name": "migrate-set-parameters", "arg-type": ["odd"]}, 7], "cpr-reboot"),
    ],
)
def test_missing_feature_is_named(raw: object, missing: str) -> None:
    with pytest.raises(VmmError, match=missing):
        choose_adapter(raw)


def test_a_vmm_that_is_gone_is_quoted_and_so_is_its_guest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With ``-no-reboot`` a guest that panics is a VMM that is gone: why, only the console says."""
    monkeypatch.setattr(vmm_qemu, "RUN_DIR", str(tmp_path))
    (tmp_path / "vm0.stderr").write_text("qemu: terminating\n")
    (tmp_path / "vm0.serial").write_text("Kernel panic - not syncing\n")
    ours, theirs = socket.socketpair()
    vmm = QemuVmm(spec())
    vmm._qmp = Qmp(ours)
    theirs.close()
    with pytest.raises(VmmError, match=r"'vm0': .*qemu: terminating.*Kernel panic"):
        vmm.query_status()
    with pytest.raises(VmmError, match=r"'vm0': .*qemu: terminating.*Kernel panic"):
        vmm._await_migration("save")
