# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from liveupdate.target.machines import Machine, MachineState, Registry, decide, is_named

MACHINE = Machine(
    run_id="ab12",
    pid=100,
    start_time=5000,
    owner_pid=90,
    owner_start_time=4000,
    runtime_dir="/run/user/0/liveupdate/ab12",
    run_dir="/runs/x",
    ssh_port=4022,
    accel="tcg",
)
CMDLINE = b"qemu-system-x86_64\0-name\0lu-ab12\0-S\0"


def test_a_machine_with_its_owner_runs() -> None:
    assert decide(MACHINE, 5000, CMDLINE, 4000) is MachineState.RUNNING


@pytest.mark.parametrize("owner", [None, 4001])
def test_a_machine_whose_owner_is_gone_is_an_orphan(owner: int | None) -> None:
    assert decide(MACHINE, 5000, CMDLINE, owner) is MachineState.ORPHAN


@pytest.mark.parametrize(
    ("start_time", "cmdline"),
    [
        (None, b""),
        (5001, CMDLINE),
        (5000, b"bash\0"),
        (5000, CMDLINE.replace(b"ab12", b"ab13")),
        (5000, b"vim\0lu-ab12\0"),
    ],
)
def test_a_pid_used_again_is_never_ours(start_time: int | None, cmdline: bytes) -> None:
    assert decide(MACHINE, start_time, cmdline, 4000) is MachineState.DEAD


def test_the_wrapper_that_starts_qemu_counts_as_it() -> None:
    wrapped = b"setpriv\0--pdeathsig\0KILL\0sh\0-c\0x\0" + CMDLINE
    assert is_named(wrapped, "ab12")
    assert not is_named(wrapped, "ab1")


def test_a_domain_of_libvirt_is_recognised_too() -> None:
    assert is_named(b"qemu\0-name\0guest=lu-ab12,debug-threads=on\0", "ab12")
    assert not is_named(b"qemu\0-name\0guest=lu-ab123,debug-threads=on\0", "ab12")
    assert not is_named(b"qemu\0-name\0other,guest=lu-ab12\0", "ab12")


def read_back(tmp_path: Path, data: bytes) -> list[Machine]:
    """Return what a registry makes of a file with that content."""
    (tmp_path / f"{MACHINE.run_id}.machine.json").write_bytes(data)
    return [item.machine for item in Registry(tmp_path).list()]


def test_a_record_goes_round(tmp_path: Path) -> None:
    Registry(tmp_path).add(MACHINE)
    assert [item.machine for item in Registry(tmp_path).list()] == [MACHINE]
    written = (tmp_path / "ab12.machine.json").read_text()
    assert written == json.dumps(structs.asdict(MACHINE), indent=1) + "\n"


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 0},
        {"pid": -1},
        {"pid": "100"},
        {"pid": True},
        {"start_time": None},
        {"run_id": ""},
        {"run_dir": "a\0b"},
        {"runtime_dir": 7},
    ],
)
def test_a_record_that_lies_is_none(tmp_path: Path, change: dict[str, object]) -> None:
    assert read_back(tmp_path, json.dumps({**structs.asdict(MACHINE), **change}).encode()) == []


@pytest.mark.parametrize("data", [b"[" * 60_000, b'{"x":' * 60_000, b"\xff", b"", b"[]"])
def test_a_file_that_is_no_json_object_is_no_record(tmp_path: Path, data: bytes) -> None:
    assert read_back(tmp_path, data) == []


@given(st.binary(max_size=100))
def test_nonsense_is_no_record(data: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        msgspec.json.decode(data, type=Machine)
